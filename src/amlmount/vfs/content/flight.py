"""One request to the store that several wait for."""

import errno
import threading

from amlmount.vfs.content.checksum import Buffer

# Longer than any store's own deadline (stores/azure/timing.py: 120 s for a call with all its attempts).
DEADLINE_S = 150.0


class Flight:
    """Lands once, with bytes or with an error. A lock, because threading.Event costs three of them."""

    __slots__ = ("_closed", "_data", "_error", "waiters")

    def __init__(self) -> None:
        self._closed = threading.Lock()
        self._closed.acquire()
        self._data: Buffer = b""
        self._error: BaseException | None = None
        self.waiters = 0

    def landed(self) -> Buffer | None:
        """Return the bytes if they are there; never waits."""
        return None if self._closed.locked() or self._error is not None else self._data

    def land(self, data: Buffer) -> None:
        """Hand the bytes to all who wait."""
        self._data = data
        self._closed.release()

    def fail(self, error: BaseException) -> None:
        """Hand the error to all who wait."""
        self._error = error
        self._closed.release()

    def result(self) -> Buffer:
        """Wait, and return the bytes. Raises the error, or OSError EIO when nothing comes."""
        if not self._closed.acquire(timeout=DEADLINE_S):
            raise OSError(errno.EIO, f"cannot read: the store did not answer within {DEADLINE_S:g} s")
        self._closed.release()
        if self._error is not None:
            raise self._error
        return self._data
