"""What a training job writes into a folder, timed from inside a process of its own: `python writer.py WORK PATH N`.

Prints one line of JSON like reader.py: seconds until the last close was acknowledged, bytes, CPU seconds; of a large
file also `written_s`, from the first write to the last one's return: opened before, not closed yet. What is written is
made before.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable

CHUNK_BYTES = 1 << 20
SMALL_BYTES, SMALL_COUNT = 10 << 10, 1000
EDIT_BYTES = 1 << 20
Report = dict[str, float]


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Write what write(2) may take in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def large(path: str, size_bytes: int, *, sync: bool) -> Report:
    """Write a large file from front to back, 1 MiB at a time, and close it."""
    chunk = random.Random(5).randbytes(CHUNK_BYTES)
    started = time.perf_counter()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    opened = time.perf_counter()
    for number in range(size_bytes // CHUNK_BYTES):
        write_all(handle, number.to_bytes(8, "little") + chunk[8:])
    written_s = time.perf_counter() - opened
    if sync:
        os.fsync(handle)
    os.close(handle)
    return {"seconds": time.perf_counter() - started, "written_s": written_s, "bytes": size_bytes}


def small(folder: str, count: int, *, sync: bool) -> Report:
    """Make, write and close many files of 10 KiB, one after the other."""
    data = random.Random(6).randbytes(SMALL_BYTES)
    os.mkdir(folder)
    started = time.perf_counter()
    for number in range(count):
        handle = os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        write_all(handle, data)
        if sync:
            os.fsync(handle)
        os.close(handle)
    return {"seconds": time.perf_counter() - started, "bytes": count * SMALL_BYTES}


def edit(path: str, size_bytes: int, *, sync: bool) -> Report:
    """Change 1 MiB in the middle of a large file and close it."""
    data = random.Random().randbytes(EDIT_BYTES)
    started = time.perf_counter()
    handle = os.open(path, os.O_RDWR)
    os.lseek(handle, size_bytes // 2 + 12_345, os.SEEK_SET)
    write_all(handle, data)
    if sync:
        os.fsync(handle)
    os.close(handle)
    return {"seconds": time.perf_counter() - started, "bytes": EDIT_BYTES}


WORK: dict[str, Callable[..., Report]] = {"large": large, "small": small, "edit": edit}


def main() -> None:
    """Do one piece of work and report."""
    name, path, amount = sys.argv[1:4]
    cpu = os.times()
    report = WORK[name](path, int(amount), sync="--sync" in sys.argv)
    ended = os.times()
    print(json.dumps(report | {"cpu_s": sum(ended[:4]) - sum(cpu[:4]), "digest": None}))


if __name__ == "__main__":
    main()
