"""`python fsx.py PATH SEED COUNT`: one file, changed at random through every way there is, held against memory.

Reads and writes by calls and through a mapping, cuts and lengthens, syncs, closes and opens again, in any order;
after each step the file is what it should be. In the manner of fsx (Apple, then LTP), written anew.
"""

import mmap
import os
import random
import sys

MAX_BYTES = 300_000


class Exerciser:
    """The file at `path`, and what should be in it."""

    def __init__(self, path: str, seed: int) -> None:
        self.path, self.random = path, random.Random(seed)
        self.model = bytearray()
        self.log: list[str] = []
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def run(self, count: int) -> None:
        """Do so many random things."""
        acts = [self.write, self.write, self.read, self.read, self.map_write, self.map_read]
        acts += [self.truncate, self.append, self.sync, self.reopen, self.second_descriptor]
        for _ in range(count):
            act = self.random.choice(acts)
            act()
            if os.fstat(self.fd).st_size != len(self.model):
                self.fail(f"size {os.fstat(self.fd).st_size}, not {len(self.model)}")
        self.reopen()
        self.check(0, os.pread(self.fd, MAX_BYTES * 2, 0), len(self.model))

    def span(self, limit: int) -> tuple[int, int]:
        start = self.random.randint(0, max(limit - 1, 0))
        return start, self.random.randint(0, min(limit - start, 70_000))

    def put(self, start: int, data: bytes) -> None:
        if not data:
            return
        self.model.extend(bytes(max(start - len(self.model), 0)))
        self.model[start : start + len(data)] = data

    def write(self) -> None:
        start, length = self.span(MAX_BYTES)
        data = self.random.randbytes(length)
        self.log.append(f"write {start} {length}")
        assert os.pwrite(self.fd, data, start) == length
        self.put(start, data)

    def append(self) -> None:
        data = self.random.randbytes(self.random.randint(0, 5000))
        if len(self.model) + len(data) > MAX_BYTES:
            return
        self.log.append(f"append {len(data)}")
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        assert os.write(fd, data) == len(data)
        os.close(fd)
        self.put(len(self.model), data)

    def read(self) -> None:
        start, length = self.span(max(len(self.model), 1))
        self.log.append(f"read {start} {length}")
        self.check(start, os.pread(self.fd, length, start), length)

    def map_read(self) -> None:
        if not self.model:
            return
        start, length = self.span(len(self.model))
        self.log.append(f"map read {start} {length}")
        with mmap.mmap(self.fd, len(self.model), prot=mmap.PROT_READ) as mapping:
            self.check(start, mapping[start : start + length], length)

    def map_write(self) -> None:
        if not self.model:
            return
        start, length = self.span(len(self.model))
        data = self.random.randbytes(length)
        self.log.append(f"map write {start} {length}")
        with mmap.mmap(self.fd, len(self.model)) as mapping:
            mapping[start : start + length] = data
            if self.random.random() < 0.5:
                mapping.flush()
        self.put(start, data)

    def truncate(self) -> None:
        size = self.random.randint(0, MAX_BYTES)
        self.log.append(f"truncate {size}")
        if self.random.random() < 0.5:
            os.ftruncate(self.fd, size)
        else:
            os.truncate(self.path, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def sync(self) -> None:
        self.log.append("sync")
        os.fsync(self.fd)

    def reopen(self) -> None:
        self.log.append("reopen")
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)

    def second_descriptor(self) -> None:
        self.log.append("second descriptor")
        fd = os.open(self.path, os.O_RDONLY)
        self.check(0, os.pread(fd, MAX_BYTES * 2, 0), len(self.model))
        os.close(fd)

    def check(self, start: int, found: bytes, length: int) -> None:
        expected = bytes(self.model[start : start + length])
        if found != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), "the end")
            self.fail(f"{len(found)} bytes at {start} differ from {len(expected)} expected, first at {at}")

    def fail(self, what: str) -> None:
        raise SystemExit(f"{what}; lately: {self.log[-15:]}")


if __name__ == "__main__":
    Exerciser(sys.argv[1], int(sys.argv[2])).run(int(sys.argv[3]))
