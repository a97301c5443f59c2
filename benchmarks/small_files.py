"""10,000 small files of a local store, profile `epochs`, against the same files on the local disk."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import amlmount
from amlmount.engines.python import PythonEngine
from amlmount.session.loop import loop_thread
from amlmount.session.source import resolve_source
from benchmarks.pairs import Line, at_least, paired, read_in_child


@contextmanager
def mounted(container: Path) -> Iterator[str]:
    """Mount the container read-only with profile `epochs` and yield the mount point."""
    with amlmount.mount(str(container), profile="epochs") as mount:
        yield str(mount.mount_point)


def first_listing(container: Path, *, cold: bool) -> float:
    """Return the seconds of list and stat in a mount that nobody has looked into."""
    with mounted(container) as point:
        if cold:
            drop_caches()
        return read_in_child("list", point)


def disk_listing(container: Path, *, cold: bool) -> float:
    """Return the seconds of list and stat on the disk: for the first time too if `cold`, else from its own caches."""
    if cold:
        drop_caches()
    return read_in_child("list", container)


def drop_caches() -> None:
    """Forget pages, dentries and inodes (root only)."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def listing_lines(container: Path, trials: int) -> Iterator[Line]:
    """Measure `list and stat of everything`: both for the first time, and against a disk that has all in its caches."""
    name = "list and stat of 10,000 files, first time"
    if os.geteuid() == 0:
        yield at_least(f"{name}, caches dropped for both", listings(container, trials, cold=True), 0.5)
    read_in_child("list", container)
    yield at_least(f"{name}, against a disk that is warm", listings(container, trials, cold=False), None)


def listings(container: Path, trials: int, *, cold: bool) -> tuple[float, ...]:
    """Return the ratios of whole listings, mount against disk."""
    return paired(lambda: first_listing(container, cold=cold), lambda: disk_listing(container, cold=cold), trials)


def epoch_lines(container: Path, trials: int) -> Iterator[Line]:
    """Measure second and later epochs, by open(2) and by Python's open()."""
    with mounted(container) as point:
        read_in_child("open2", point)
        read_in_child("open2", container)
        yield at_least("second epoch, open(2)", epochs("open2", point, container, trials), 0.8)
        yield at_least("second epoch, Python's open(), no front", epochs("open", point, container, trials), None)


@contextmanager
def fronted(container: Path) -> Iterator[str]:
    """Mount it as root's daemon does, with an overlay in front, and yield the mount point."""
    with tempfile.TemporaryDirectory(prefix="amb-") as folder:
        target = os.path.join(os.path.realpath(folder), "mount")
        os.mkdir(target)
        spec = resolve_source(str(container), target, read_only=True, profile="epochs", engine="python")
        spec = spec.model_copy(update={"allow_other": True, "front": "overlay"})
        engine, loop = PythonEngine(front_dir=folder), loop_thread()
        running = loop.call(lambda: engine.start(spec, timeout_s=30))
        try:
            yield target
        finally:
            loop.call(lambda: engine.stop(running, lazy=True, timeout_s=10))


def front_lines(container: Path, trials: int) -> Iterator[Line]:
    """Measure later epochs with an overlay in front (root only)."""
    if os.geteuid() != 0:
        return
    with fronted(container) as point:
        for work in ("open", "open2"):
            read_in_child(work, point)
            read_in_child(work, container)
        name = "second epoch, Python's open(), overlay in front"
        yield at_least(name, epochs("open", point, container, trials), 0.6)
        yield at_least("second epoch, open(2), overlay in front", epochs("open2", point, container, trials), None)


def epochs(work: str, point: str, container: Path, trials: int) -> tuple[float, ...]:
    """Return the ratios of whole readings, mount against disk."""
    return paired(lambda: read_in_child(work, point), lambda: read_in_child(work, container), trials)
