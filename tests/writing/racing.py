"""`python racing.py PATH NUMBER SECONDS`: a program that opens, unlinks and renames the names that others use, too.

POSIX gives it ENOENT at times and no other error. A process of its own: whoever starts a mount's workers must have
nothing open in it.
"""

import contextlib
import os
import random
import sys
import time

NAMES = ("a", "b", "c")
LINE_BYTES = 64
NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
WAYS = [NEW, NEW, os.O_WRONLY | os.O_CREAT, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_APPEND]


def check(data: bytes) -> None:
    """Fail unless all of it is lines that some program has written."""
    for start in range(0, len(data), LINE_BYTES):
        line = data[start : start + LINE_BYTES]
        assert len(line) == LINE_BYTES and line[:1] == b"<" and line[-1:] == b"\n", (start, len(data), line)


class Racer:
    """Does one thing after the other, at random."""

    def __init__(self, path: str, number: int) -> None:
        self.path, self.number = path, number
        self.random = random.Random(number)

    def name(self) -> str:
        return f"{self.path}/{self.random.choice(NAMES)}"

    def lines(self) -> bytes:
        return (b"<%d.%d" % (self.number, time.monotonic_ns())).ljust(LINE_BYTES - 1, b".") + b"\n"

    def step(self) -> None:
        acts = [self.write, self.write, self.write, self.read, self.replace]
        acts += [lambda: os.unlink(self.name()), lambda: os.rename(self.name(), self.name())]
        self.random.choice(acts)()

    def write(self) -> None:
        flags = self.random.choice(WAYS)
        fd = os.open(self.name(), flags)
        try:
            os.write(fd, self.lines() * self.random.choice([1, 3, 1000]))
            if flags & os.O_RDWR:
                check(os.pread(fd, 1 << 20, 0))
            if self.random.random() < 0.3:
                os.fsync(fd)
        finally:
            os.close(fd)

    def read(self) -> None:
        fd = os.open(self.name(), os.O_RDONLY)
        try:
            for _ in range(2):
                check(os.pread(fd, 1 << 20, 0))
        finally:
            os.close(fd)

    def replace(self) -> None:
        mine = f"{self.path}/mine-{self.number}"
        with open(mine, "wb") as file:
            file.write(self.lines())
        os.rename(mine, self.name())


def main() -> None:
    racer, deadline = Racer(sys.argv[1], int(sys.argv[2])), time.monotonic() + float(sys.argv[3])
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            racer.step()
    print("done")


if __name__ == "__main__":
    main()
