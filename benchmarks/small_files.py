"""10,000 small files of a local store, profile `epochs`, against the same files on the local disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import amlmount
from benchmarks.pairs import Line, at_least, paired, read_in_child


@contextmanager
def mounted(container: Path) -> Iterator[str]:
    """Mount the container read-only with profile `epochs` and yield the mount point."""
    with amlmount.mount(str(container), profile="epochs") as mount:
        yield str(mount.mount_point)


def first_listing(container: Path) -> float:
    """Return the seconds of list and stat in a mount that nobody has looked into."""
    with mounted(container) as point:
        return read_in_child("list", point)


def listing_line(container: Path, trials: int) -> Line:
    """Measure `list and stat of everything`, the first time."""
    read_in_child("list", container)
    ratios = paired(lambda: first_listing(container), lambda: read_in_child("list", container), trials)
    return at_least("list and stat of 10,000 files, first time", ratios, 0.5)


def epoch_lines(container: Path, trials: int) -> Iterator[Line]:
    """Measure second and later epochs, by open(2) and by Python's open()."""
    with mounted(container) as point:
        read_in_child("open2", point)
        read_in_child("open2", container)
        yield at_least("second epoch, open(2)", epochs("open2", point, container, trials), 0.8)
        yield at_least("second epoch, Python's open(), no front", epochs("open", point, container, trials), None)


def epochs(work: str, point: str, container: Path, trials: int) -> tuple[float, ...]:
    """Return the ratios of whole readings, mount against disk."""
    return paired(lambda: read_in_child(work, point), lambda: read_in_child(work, container), trials)
