"""The process that looks below a mount for `cache warm`: if the mount hangs, only this does, and nothing of it is ours.

`python -m amlmount.cache.warm_child list TARGET` writes a JSON array [path, bytes, mtime] a line; `read TARGET JOBS`
takes paths as JSON lines and reads them, and writes {"files", "bytes", "failed": [[path, errno]]} twice a second.
"""

import json
import os
import queue
import stat
import sys
import threading
from collections.abc import Iterable, Iterator

READ_BYTES = 1 << 20
EVERY_S = 0.5


def list_files(target: str) -> Iterator[tuple[str, int, float]]:
    """Yield path below `target`, size and time of every file, in the order of the listing; other disks are left out."""
    device = os.stat(target).st_dev
    waiting = [target]
    while waiting:
        folders = []
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    yield os.path.relpath(entry.path, target), found.st_size, found.st_mtime
                elif stat.S_ISDIR(found.st_mode) and found.st_dev == device:
                    folders.append(entry.path)
        waiting += reversed(folders)


class Reading:
    """Files being read by several threads, and how far they are."""

    def __init__(self, target: str, jobs: int) -> None:
        self._target = target
        self._jobs = jobs
        # Bounded, so that a million paths are not in memory and nobody waits for the last of them to be known.
        self._paths: queue.Queue[str | None] = queue.Queue(maxsize=4096)
        self._lock = threading.Lock()
        self._files = 0
        self._bytes = 0
        self._failed: list[tuple[str, int]] = []

    def run(self, paths: Iterable[str]) -> None:
        """Read all of them and write how it goes."""
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._jobs)]
        for thread in threads:
            thread.start()
        over = threading.Event()
        reporter = threading.Thread(target=self._report_until, args=(over,), daemon=True)
        reporter.start()
        for path in paths:
            self._paths.put(path)
        for _ in threads:
            self._paths.put(None)
        for thread in threads:
            thread.join()
        over.set()
        reporter.join()

    def _work(self) -> None:
        buffer = bytearray(READ_BYTES)
        while (path := self._paths.get()) is not None:
            try:
                self._read(path, buffer)
            except OSError as error:
                with self._lock:
                    self._failed.append((path, error.errno or 0))
            with self._lock:
                self._files += 1

    def _read(self, path: str, buffer: bytearray) -> None:
        with open(os.path.join(self._target, path), "rb", buffering=0) as file:
            while size_bytes := file.readinto(buffer):
                with self._lock:
                    self._bytes += size_bytes

    def _report_until(self, over: threading.Event) -> None:
        while not over.wait(EVERY_S):
            self._report()
        self._report()

    def _report(self) -> None:
        with self._lock:
            failed, self._failed = self._failed, []
            state = {"files": self._files, "bytes": self._bytes, "failed": failed}
        _say(state)


def _say(value: object) -> None:
    """Write a line; whoever started us may be gone, and then so are we."""
    try:
        os.write(1, json.dumps(value).encode() + b"\n")
    except OSError:
        os._exit(1)


def _list(target: str) -> None:
    block: list[bytes] = []
    for found in list_files(target):
        block.append(json.dumps(found).encode() + b"\n")
        if len(block) >= 512:
            _write_all(b"".join(block))
            block.clear()
    _write_all(b"".join(block))


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def main() -> None:
    """Do what the arguments say; an OSError is told by its text and exit code 1."""
    try:
        if sys.argv[1] == "list":
            _list(sys.argv[2])
        else:
            Reading(sys.argv[2], int(sys.argv[3])).run(json.loads(line) for line in sys.stdin.buffer)
    except OSError as error:
        sys.exit((error.strerror or "error").lower())


if __name__ == "__main__":
    main()
