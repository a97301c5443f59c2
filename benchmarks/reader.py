"""What a training job does to a folder, timed from inside a process of its own: `python reader.py WORK FOLDER`.

Prints one line of JSON: seconds, files, bytes. Standard library only, so that nothing else is timed.
"""

import json
import os
import sys
import time
from collections.abc import Iterator


def files_of(folder: str) -> Iterator[str]:
    """Walk in directory order, names sorted within a directory."""
    for base, _, names in os.walk(folder):
        for name in sorted(names):
            yield f"{base}/{name}"


def list_and_stat(folder: str) -> int:
    """Stat every file by its path; returns no bytes."""
    for path in files_of(folder):
        os.stat(path)
    return 0


def read_with_open2(folder: str) -> int:
    """Read every file as readers in C do: open(2), read(2), close(2)."""
    total_bytes = 0
    for path in files_of(folder):
        handle = os.open(path, os.O_RDONLY)
        while chunk := os.read(handle, 1 << 20):
            total_bytes += len(chunk)
        os.close(handle)
    return total_bytes


def read_with_open(folder: str) -> int:
    """Read every file by Python's own open()."""
    total_bytes = 0
    for path in files_of(folder):
        with open(path, "rb") as handle:
            total_bytes += len(handle.read())
    return total_bytes


WORK = {"list": list_and_stat, "open2": read_with_open2, "open": read_with_open}


def main() -> None:
    """Do one piece of work and report."""
    work, folder = sys.argv[1:3]
    started = time.perf_counter()
    total_bytes = WORK[work](folder)
    print(json.dumps({"seconds": time.perf_counter() - started, "bytes": total_bytes}))


if __name__ == "__main__":
    main()
