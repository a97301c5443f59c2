"""`python sidebyside.py MOUNT LOCAL SEED COUNT`: random operations on a mount and on a local directory, compared.

The same errors, the same names, contents, types, sizes and times after each of them. Says before each operation which
one it is: whoever listens can kill the worker just then. A process of its own, as nobody who starts workers may have
anything open in their mount.
"""

import errno
import os
import random
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TOPS = ["a", "b", "c.txt", "d", "e", "ü x"]
PATHS = [*TOPS, *(f"{top}/{name}" for top in ("d", "e") for name in TOPS), "d/d/a", "d/d/b", "e/d/a", "d/d"]
MAX_OPEN = 5
NEAR_NS = 120 * 10**9
# Where POSIX leaves room, or the kernel checks before a file system is asked.
ALIKE = {errno.EEXIST: errno.ENOTEMPTY, errno.EPERM: errno.EISDIR, errno.EBUSY: errno.ENOTEMPTY}


@dataclass
class Open:
    """A file that is open on both sides, and what it can do."""

    fds: tuple[int, int]
    is_writer: bool


class Exerciser:
    """`sides` are the mount and the directory."""

    def __init__(self, mount: str, local: str, seed: int) -> None:
        self.sides = (mount, local)
        self.random = random.Random(seed)
        self.open: list[Open] = []
        self.log: list[str] = []
        self.times: dict[str, int] = {}

    def run(self, count: int) -> None:
        """Do so many random things, and compare everything after each tenth."""
        acts = [self.write, self.write, self.append, self.truncate, self.exclusively, self.unlink, self.mkdir]
        acts += [self.rmdir, self.rename, self.rename, self.open_file, self.open_file, self.utime, self.stat_one]
        opened = [self.write_open, self.write_open, self.read_open, self.truncate_open, self.fsync, self.close]
        for number in range(count):
            act = self.random.choice([*acts, *(opened * 2 if self.open else [])])
            act()
            if number % 10 == 9:
                self.compare()
        while self.open:
            self.close()
        self.compare()

    def say(self, what: str) -> None:
        self.log.append(what)
        print(what, flush=True)

    def both(self, what: str, act: Callable[[int], Any]) -> tuple[Any, Any]:
        """Do it on the directory, then on the mount; fail if they do not agree on whether it works."""
        self.say(what)
        results, errors = [], []
        for side in (1, 0):
            try:
                results.append(act(side))
                errors.append(0)
            except OSError as error:
                results.append(None)
                errors.append(ALIKE.get(error.errno or 0, error.errno or 0))
        if errors[0] != errors[1]:
            self.fail(f"the directory says {errors[0]}, the mount {errors[1]}")
        return results[1], results[0]

    def path(self) -> str:
        return self.random.choice(PATHS)

    def at(self, side: int, path: str) -> str:
        return f"{self.sides[side]}/{path}"

    def data(self) -> bytes:
        return self.random.randbytes(self.random.choice([0, 1, 40, 5000, 20_000]))

    def write(self) -> None:
        path, data = self.path(), self.data()

        def act(side: int) -> None:
            with open(self.at(side, path), "wb") as file:
                file.write(data)

        self.both(f"write {path} {len(data)}", act)

    def append(self) -> None:
        path, data = self.path(), self.data()

        def act(side: int) -> None:
            fd = os.open(self.at(side, path), os.O_WRONLY | os.O_APPEND)
            os.write(fd, data)
            os.close(fd)

        self.both(f"append {path} {len(data)}", act)

    def truncate(self) -> None:
        path, size = self.path(), self.random.choice([0, 3, 4096, 10_000])
        if os.path.exists(self.at(1, path)) and os.path.getsize(self.at(1, path)) == size:
            return  # here that changes nothing, and there the time
        self.both(f"truncate {path} {size}", lambda side: os.truncate(self.at(side, path), size))

    def exclusively(self) -> None:
        path = self.path()
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        self.both(f"exclusively {path}", lambda side: os.close(os.open(self.at(side, path), flags)))

    def unlink(self) -> None:
        path = self.path()
        self.both(f"unlink {path}", lambda side: os.unlink(self.at(side, path)))

    def mkdir(self) -> None:
        path = self.path()
        self.both(f"mkdir {path}", lambda side: os.mkdir(self.at(side, path)))

    def rmdir(self) -> None:
        path = self.path()
        self.both(f"rmdir {path}", lambda side: os.rmdir(self.at(side, path)))

    def rename(self) -> None:
        old, new = self.path(), self.path()
        self.both(f"rename {old} {new}", lambda side: os.rename(self.at(side, old), self.at(side, new)))

    def utime(self) -> None:
        path, ns = self.path(), self.random.randint(10**18, 10**18 + 10**17)
        if os.path.isdir(self.at(1, path)):
            return
        self.both(f"utime {path} {ns}", lambda side: os.utime(self.at(side, path), ns=(ns, ns)))

    def stat_one(self) -> None:
        path = self.path()
        found = self.both(f"stat {path}", lambda side: os.lstat(self.at(side, path)))
        if found[0] is not None:
            self.same_attributes(path, *found)

    def same_attributes(self, path: str, mine: os.stat_result, theirs: os.stat_result) -> None:
        if stat.S_IFMT(mine.st_mode) != stat.S_IFMT(theirs.st_mode):
            self.fail(f"{path}: of another type")
        if stat.S_ISDIR(mine.st_mode):
            return
        if mine.st_size != theirs.st_size:
            self.fail(f"{path}: {mine.st_size} bytes, not {theirs.st_size}")
        was_set = theirs.st_mtime_ns < 1_150_000_000 * 10**9
        if not mine.st_size:  # whoever empties what is empty changes nothing here
            return
        if abs(mine.st_mtime_ns - theirs.st_mtime_ns) > (0 if was_set else NEAR_NS):
            self.fail(f"{path}: of {mine.st_mtime_ns}, not {theirs.st_mtime_ns}")

    # What is open

    def open_file(self) -> None:
        path, access = self.path(), self.random.choice([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT])
        flags = access | self.random.choice([0, 0, os.O_TRUNC if access else 0])
        if len(self.open) >= MAX_OPEN or os.path.isdir(self.at(1, path)):
            return
        fds = self.both(f"open {path} {flags:o}", lambda side: os.open(self.at(side, path), flags, 0o644))
        if fds[0] is not None:
            self.open.append(Open(fds, is_writer=access != os.O_RDONLY))

    def one(self) -> Open:
        return self.random.choice(self.open)

    def write_open(self) -> None:
        one, data, offset = self.one(), self.data(), self.random.randint(0, 12_000)
        if one.is_writer:
            self.both(f"pwrite {one.fds[0]} {offset} {len(data)}", lambda side: os.pwrite(one.fds[side], data, offset))

    def read_open(self) -> None:
        one = self.one()
        found = self.both(f"pread {one.fds[0]}", lambda side: os.pread(one.fds[side], 1 << 20, 0))
        if found[0] != found[1]:
            self.fail(f"other bytes: {self.first_difference(*found)}")

    def truncate_open(self) -> None:
        one, size = self.one(), self.random.choice([0, 3, 4096, 10_000])
        if one.is_writer and os.fstat(one.fds[1]).st_size != size:
            self.both(f"ftruncate {one.fds[0]} {size}", lambda side: os.ftruncate(one.fds[side], size))

    def fsync(self) -> None:
        one = self.one()
        self.both(f"fsync {one.fds[0]}", lambda side: os.fsync(one.fds[side]))

    def close(self) -> None:
        one = self.open.pop(self.random.randrange(len(self.open)))
        self.both(f"close {one.fds[0]}", lambda side: os.close(one.fds[side]))

    # What is there

    def compare(self) -> None:
        mine, theirs = self.tree(0), self.tree(1)
        if mine.keys() != theirs.keys():
            self.fail(f"names: too many {mine.keys() - theirs.keys()}, missing {theirs.keys() - mine.keys()}")
        for path, (attributes, content) in mine.items():
            self.same_attributes(path, attributes, theirs[path][0])
            if content != theirs[path][1]:
                self.fail(f"{path}: other bytes: {self.first_difference(content, theirs[path][1])}")

    def tree(self, side: int) -> dict[str, tuple[os.stat_result, bytes]]:
        found: dict[str, tuple[os.stat_result, bytes]] = {}
        top = self.sides[side]
        for base, folders, names in os.walk(top):
            for name in [*folders, *names]:
                path = f"{base}/{name}"
                content = b""
                if name in names:
                    with open(path, "rb") as file:
                        content = file.read()
                found[os.path.relpath(path, top)] = (os.lstat(path), content)
        return found

    def first_difference(self, mine: bytes, theirs: bytes) -> str:
        at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), "the end")
        return f"{len(mine)} and {len(theirs)} bytes, first at {at}"

    def fail(self, what: str) -> None:
        raise SystemExit(f"{what}; lately: {self.log[-25:]}")


if __name__ == "__main__":
    started = time.monotonic()
    Exerciser(sys.argv[1], sys.argv[2], int(sys.argv[3])).run(int(sys.argv[4]))
    print(f"done in {time.monotonic() - started:.1f} s")
