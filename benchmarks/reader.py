"""What a training job does to a folder, timed from inside a process of its own: `python reader.py WORK PATH`.

Prints one line of JSON: seconds, bytes, CPU seconds, and for works that read the same bytes everywhere a digest of
them. Standard library only, so that nothing else is timed; other libraries are imported before the clock starts.
"""

import importlib
import json
import os
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

READ_BYTES = 1 << 20
HEAD_BYTES = 64  # of every read of a large file go into the digest: all of it would be timed too
BATCH_FILES = 64
READERS = 4


def files_of(folder: str) -> Iterator[str]:
    """Walk in directory order, names sorted within a directory."""
    for base, _, names in os.walk(folder):
        for name in sorted(names):
            yield f"{base}/{name}"


def shuffled(folder: str) -> list[str]:
    """Return every file in an order that is random and the same in every trial."""
    found = list(files_of(folder))
    random.Random(3).shuffle(found)
    return found


def contents(path: str) -> bytes:
    """Read a file as readers in C do: open(2), read(2) until there is no more, close(2)."""
    handle = os.open(path, os.O_RDONLY)
    data = os.read(handle, READ_BYTES)
    while more := os.read(handle, READ_BYTES):
        data += more
    os.close(handle)
    return data


def digest_all(paths: Iterator[str] | Sequence[str]) -> tuple[int, int]:
    """Return bytes and the sum of all checksums, which is the same in whatever order the files are read."""
    total_bytes = digest = 0
    for path in paths:
        data = contents(path)
        total_bytes += len(data)
        digest += zlib.crc32(data)
    return total_bytes, digest


def list_and_stat(folder: str) -> int:
    """Stat every file by its path; returns no bytes."""
    for path in files_of(folder):
        os.stat(path)
    return 0


def names(folder: str) -> tuple[int, int]:
    """List every directory and ask nothing else; the digest is the number of files."""
    return 0, sum(1 for _ in files_of(folder))


def read_with_open2(folder: str) -> int:
    """Read every file by open(2)."""
    total_bytes = 0
    for path in files_of(folder):
        handle = os.open(path, os.O_RDONLY)
        while chunk := os.read(handle, READ_BYTES):
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


def first_epoch(folder: str) -> tuple[int, int]:
    """Read every file in directory order, as somebody who has never been here."""
    return digest_all(files_of(folder))


def shuffled_epoch(folder: str) -> tuple[int, int]:
    """List everything, then read it in random order."""
    return digest_all(shuffled(folder))


def loader_epoch(folder: str) -> tuple[int, int]:
    """List everything, then have 4 processes read shuffled batches in turn, as torch's DataLoader does."""
    paths = shuffled(folder)
    batches = [paths[start : start + BATCH_FILES] for start in range(0, len(paths), BATCH_FILES)]
    pipes = [_forked([path for batch in batches[number::READERS] for path in batch]) for number in range(READERS)]
    parts = [json.loads(pipe.read()) for pipe in pipes]
    for _ in pipes:
        os.wait()
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def _forked(paths: list[str]) -> Any:
    receiver, sender = os.pipe()
    if os.fork() == 0:
        os.write(sender, json.dumps(digest_all(paths)).encode())
        os._exit(0)
    os.close(sender)
    return os.fdopen(receiver)


def sequential(path: str) -> tuple[int, int]:
    """Read a large file from front to back, 1 MiB at a time."""
    total_bytes = digest = 0
    buffer = memoryview(bytearray(READ_BYTES))
    with open(path, "rb", buffering=0) as handle:
        while count := handle.readinto(buffer):
            if total_bytes % READ_BYTES == 0:
                digest += zlib.crc32(buffer[:HEAD_BYTES])
            total_bytes += count
    return total_bytes, digest


def first_bytes(path: str) -> tuple[int, int]:
    """Read the first 4 KiB of a large file."""
    return at_places(path, [0], 4096)


def random_reads(path: str, count: int, size_bytes: int) -> tuple[int, int]:
    """Read `count` different pieces at random, aligned, the same ones in every trial."""
    places = range(os.stat(path).st_size // size_bytes)
    chosen = random.Random(1).sample(places, min(count, len(places)))
    return at_places(path, [place * size_bytes for place in chosen], size_bytes)


def at_places(path: str, offsets: list[int], size_bytes: int) -> tuple[int, int]:
    """Read `size_bytes` at each offset, one after the other."""
    total_bytes = digest = 0
    with open(path, "rb", buffering=0) as handle:
        for offset in offsets:
            handle.seek(offset)
            data = handle.read(size_bytes) or b""
            total_bytes += len(data)
            digest += zlib.crc32(data[:HEAD_BYTES])
    return total_bytes, digest


def with_library(module: str, read: Callable[[Any, str], int]) -> Callable[[str], int]:
    """Return a work that reads every file through a library: imported now, timed later."""
    library = importlib.import_module(module)
    return lambda folder: sum(read(library, path) for path in files_of(folder))


def decoded_bytes(image: Any, path: str) -> int:
    """Open and decode an image with PIL."""
    with image.open(path) as picture:
        return len(picture.tobytes())


WORK: dict[str, Callable[[str], int | tuple[int, int]]] = {
    "list": list_and_stat,
    "names": names,
    "open2": read_with_open2,
    "open": read_with_open,
    "first-epoch": first_epoch,
    "shuffled-epoch": shuffled_epoch,
    "loader-epoch": loader_epoch,
    "sequential": sequential,
    "first-bytes": first_bytes,
    "random-256k": lambda path: random_reads(path, 200, 256 << 10),
    "random-4k": lambda path: random_reads(path, 2000, 4 << 10),
}
LIBRARIES: dict[str, tuple[str, Callable[[Any, str], int]]] = {
    "pil": ("PIL.Image", decoded_bytes),
    "numpy": ("numpy", lambda numpy, path: int(numpy.fromfile(path, dtype="u1").nbytes)),
    "pandas": ("pandas", lambda pandas, path: int(pandas.read_csv(path).size)),
}


def main() -> None:
    """Do one piece of work and report."""
    name, path = sys.argv[1:3]
    work = WORK[name] if name in WORK else with_library(*LIBRARIES[name])
    started, cpu = time.perf_counter(), os.times()
    done = work(path)
    seconds, ended = time.perf_counter() - started, os.times()
    total_bytes, digest = done if isinstance(done, tuple) else (done, None)
    cpu_s = sum(ended[:4]) - sum(cpu[:4])
    print(json.dumps({"seconds": seconds, "bytes": total_bytes, "cpu_s": cpu_s, "digest": digest}))


if __name__ == "__main__":
    main()
