"""Reads files through a mount, so that they are in its cache, from a child process that can be abandoned.

Which files is for the caller to say; whether they are cached already it asks elsewhere.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO

from amlmount.errors import AmlmountError
from amlmount.run import DEVNULL, Process, base_env, how_it_ended, spawn

PIPE_BYTES = 1 << 20
END_S = 2.0


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file below a mount: its path there, its size, its time (seconds since 1970)."""

    path: str
    size_bytes: int
    mtime_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a warm-up is. `failed`: path and errno of files that could not be read."""

    files: int = 0
    bytes: int = 0
    failed: tuple[tuple[str, int], ...] = field(default=())


def list_files(target: str) -> Iterator[FoundFile]:
    """Yield every file below `target`, in the order of the listing. Raises AmlmountError."""
    with _child(["list", target], None) as lines:
        for line in lines:
            yield FoundFile(*json.loads(line))


def read_files(target: str, paths: Iterable[str], *, jobs: int) -> Iterator[Progress]:
    """Read files from beginning to end, `jobs` at a time, and yield how far it is, twice a second and at the end.

    Closing the iterator ends it at once. Raises AmlmountError.
    """
    failed: tuple[tuple[str, int], ...] = ()
    with tempfile.TemporaryFile() as names:
        for path in paths:
            names.write(json.dumps(path).encode() + b"\n")
        names.flush()
        names.seek(0)
        with _child(["read", target, str(jobs)], names) as lines:
            for line in lines:
                state = json.loads(line)
                failed += tuple((path, number) for path, number in state["failed"])
                yield Progress(state["files"], state["bytes"], failed)


@contextlib.contextmanager
def _child(args: list[str], stdin: IO[bytes] | None) -> Iterator[IO[bytes]]:
    """Run the child and hand out its lines; it is killed if they are not read to the end, and never waited for long."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=PIPE_BYTES) as lines, tempfile.TemporaryFile() as words:
        try:
            argv = [sys.executable, "-P", "-m", "amlmount.cache.warm_child", *args]
            names = DEVNULL if stdin is None else stdin.fileno()
            child = spawn(argv, env=base_env(), stdin=names, stdout=writer, stderr=words.fileno(), cwd="/")
        finally:
            os.close(writer)
        try:
            yield lines
            _check(child, words, args[1])
        finally:
            _end(child)


def _check(child: Process, words: IO[bytes], target: str) -> None:
    returncode = child.wait(END_S)
    if returncode:
        words.seek(0)
        said = words.read().decode(errors="replace").strip().splitlines()
        raise AmlmountError(f"cannot read below '{target}': {said[-1] if said else how_it_ended(returncode)}")


def _end(child: Process) -> None:
    """Kill it if it is still there; one that hangs in the mount stays until that is taken away."""
    if child.poll() is None:
        child.send_signal(9)
        child.wait(END_S)
    child.close()
