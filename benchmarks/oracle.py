"""Readers that know every byte: `python oracle.py SOURCE MOUNT THREADS SEED` compares a mount with its source.

Run as a process of its own (standard library only): whoever kills servers must not hold anything below a mount.
It prints a line `ready`, works until standard input ends, and then prints one JSON object, see `Tally`.
"""

import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

SLOW_S = 0.02


@dataclass
class Tally:
    """What was done and what went wrong. `slow`: (begin, end) of each operation above 20 ms, monotonic seconds."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    slow: list[tuple[float, float]] = field(default_factory=list)


class Reader:
    """One thread's work: a random choice of everything one does with files, some of them open from the beginning."""

    def __init__(self, source: str, mount: str, seed: int) -> None:
        self.tally = Tally()
        self._source = source
        self._mount = mount
        self._random = random.Random(seed)
        self._tree = {
            os.path.relpath(top, source): (sorted(dirs), sorted(files)) for top, dirs, files in os.walk(source)
        }
        self._files = [
            os.path.normpath(os.path.join(top, name)) for top, (_, files) in self._tree.items() for name in files
        ]
        self._content = {name: _read(os.path.join(source, name)) for name in self._files}
        self._large = [name for name in self._files if len(self._content[name]) > 1 << 16]
        self._held = [(name, os.open(os.path.join(mount, name), os.O_RDONLY)) for name in self._large]
        self._directory = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)

    def run(self, over: threading.Event) -> None:
        """Work until `over`."""
        kinds = [
            self.read_whole,
            self.read_whole,
            self.read_held,
            self.walk,
            self.stat,
            self.from_handle,
            self.half_way,
        ]
        while not over.is_set():
            self._do(self._random.choice(kinds))

    def _do(self, what: Callable[[], bool]) -> None:
        begin = time.monotonic()
        try:
            if not what():
                self.tally.wrong.append(what.__name__)
        except OSError as error:
            self.tally.errors.append(f"{what.__name__}: {error}")
        end = time.monotonic()
        self.tally.done[what.__name__] += 1
        if end - begin > SLOW_S:
            self.tally.slow.append((begin, end))

    def read_whole(self) -> bool:
        """Open, drop what the kernel has of it, read, compare."""
        name = self._random.choice(self._files)
        with open(os.path.join(self._mount, name), "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return (file.read(1 << 22) or b"") == self._content[name]

    def read_held(self) -> bool:
        """Read somewhere in a file that has been open from the beginning."""
        name, fd = self._random.choice(self._held)
        offset = self._random.randrange(len(self._content[name]))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, 65536, offset) == self._content[name][offset : offset + 65536]

    def walk(self) -> bool:
        """List everything."""
        top = self._random.choice(list(self._tree))
        found = next(os.walk(os.path.join(self._mount, top)))
        return (sorted(found[1]), sorted(found[2])) == self._tree[top]

    def half_way(self) -> bool:
        """List with a handle that stays open for a while between its first entry and its last."""
        top = max(self._tree, key=lambda path: len(self._tree[path][1]))
        names = []
        with os.scandir(os.path.join(self._mount, top)) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) == 1:
                    time.sleep(0.005)
        return sorted(names) == sorted(self._tree[top][0] + self._tree[top][1])

    def stat(self) -> bool:
        """Ask for a size, from the working directory, which is the mount."""
        name = self._random.choice(self._files)
        return os.stat(name).st_size == len(self._content[name])

    def from_handle(self) -> bool:
        """Open a file by the handle of a directory."""
        name = self._random.choice(self._files)
        fd = os.open(name, os.O_RDONLY, dir_fd=self._directory)
        try:
            return os.read(fd, 4096) == self._content[name][:4096]
        finally:
            os.close(fd)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def main() -> None:
    """Run the readers."""
    source, mount, threads, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    os.chdir(mount)
    readers = [Reader(source, mount, seed + index) for index in range(threads)]
    over = threading.Event()
    workers = [threading.Thread(target=reader.run, args=(over,)) for reader in readers]
    for worker in workers:
        worker.start()
    print("ready", flush=True)
    sys.stdin.read()
    over.set()
    for worker in workers:
        worker.join(30)
    total = Tally()
    for reader in readers:
        total.done += reader.tally.done
        total.wrong += reader.tally.wrong
        total.errors += reader.tally.errors
        total.slow += reader.tally.slow
    print(json.dumps(vars(total)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
