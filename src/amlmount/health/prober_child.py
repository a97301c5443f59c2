"""The child that asks below mounts: each question in a thread that has no other, so one that hangs holds up nothing.

Run as a script, with nothing of amlmount loaded. A line `NUMBER KIND PATH-IN-HEX` comes in, `NUMBER ERRNO VALUE` goes
out. When the questions end, so does it; threads that hang in the kernel die with it, as soon as the kernel lets them.
"""

import ctypes
import os
import queue
import sys
import threading

AT_FDCWD, FORCE_SYNC, BASIC_STATS = -100, 0x2000, 0x7FF
LIBC = ctypes.CDLL(None, use_errno=True)
OUTPUT = threading.Lock()
CONTENT = b"amlmount check\n"
KEPT_THREADS = 8


def ask_attributes(path: bytes) -> int:
    """Have the server answer: statx(2) with AT_STATX_FORCE_SYNC (a plain stat is answered from memory for a while)."""
    if LIBC.statx(AT_FDCWD, path, FORCE_SYNC, BASIC_STATS, ctypes.create_string_buffer(256)):
        raise OSError(ctypes.get_errno(), "statx")
    return 0


def look_into(path: bytes) -> int:
    """See whether a directory can be listed."""
    with os.scandir(path) as entries:
        next(entries, None)
    return 0


def ask_free(path: bytes) -> int:
    """Return what is free for us on the disk that holds `path`, or will hold it, in bytes."""
    while not os.path.lexists(path) and path != b"/":
        path = os.path.dirname(path)
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def write_and_read(path: bytes) -> int:
    """Write a file, read it back, remove it."""
    name = os.path.join(path, b".amlmount-check-" + os.urandom(8).hex().encode())
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            os.write(fd, CONTENT)
            os.fsync(fd)
        finally:
            os.close(fd)
        with open(name, "rb") as file:
            return 0 if file.read() == CONTENT else 1
    finally:
        os.unlink(name)


KINDS = {"attributes": ask_attributes, "list": look_into, "free": ask_free, "write": write_and_read}


def answer(number: str, kind: str, path: bytes) -> None:
    """Answer one question, whenever that is."""
    value = error = 0
    try:
        value = KINDS[kind](path)
    except OSError as failed:
        error = failed.errno or 5
    with OUTPUT:
        os.write(1, f"{number} {error} {value}\n".encode())


class Answerers:
    """Threads that answer, one for each question that is open; a few of those that have nothing to do are kept."""

    def __init__(self) -> None:
        self._questions: queue.SimpleQueue[tuple[str, str, bytes]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0

    def ask(self, number: str, kind: str, path: bytes) -> None:
        """Have it answered by a thread that is idle, else by a new one: never by one that may hang."""
        with self._lock:
            is_new, self._idle = not self._idle, max(self._idle - 1, 0)
        self._questions.put((number, kind, path))
        if is_new:
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            answer(*self._questions.get())
            with self._lock:
                if self._idle >= KEPT_THREADS:
                    return
                self._idle += 1


def main() -> None:
    """Answer until nobody asks any more."""
    threading.stack_size(256 * 1024)
    answerers = Answerers()
    for line in sys.stdin:
        number, kind, path = line.split()
        answerers.ask(number, kind, bytes.fromhex(path))
    os._exit(0)


if __name__ == "__main__":
    main()
