"""Whether a stranger changed a file of the cache: told by its length, what it takes on disk, and its stamp (one fstat).

A file that is not as long as it was made was cut, for good: only who cut it could make it that long again, as what we
write last never reaches its end unless it is long enough. Anything else is a reason to check sums, not a proof.
"""

import os
import threading

_SECTOR_BYTES = 512  # the unit of st_blocks, whatever the file system


class ChangedError(Exception):
    """Somebody else wrote to a file, or punched holes into it: what it holds must be checked."""


class CutError(ChangedError):
    """A file is not as long as it was made: what it holds is lost."""


class Witness:
    """Watches one file of a fixed length. `look` may be called from any thread, `begin` and `end` around each write."""

    def __init__(self, fd: int, path: str, size_bytes: int, kept_bytes: int) -> None:
        """Take the file as it is; `kept_bytes` of it must be on disk at least. Raises OSError."""
        self._kept_bytes = kept_bytes
        self._fd = fd
        self._path = path
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._writing = 0
        self._slack_bytes = 0
        self._is_cut = False
        self._stamp: int | None = None  # None while we write: then a new stamp says nothing
        self.accept()

    def look(self) -> None:
        """Raise ChangedError or CutError if the file is not as we left it, OSError if it cannot be seen."""
        stamp, least_bytes = self._stamp, self._kept_bytes - self._slack_bytes
        found = os.fstat(self._fd)
        if self._is_cut or found.st_size != self._size_bytes:
            self._is_cut = True
            raise CutError(f"{self._path} is not as long as it was")
        if found.st_blocks * _SECTOR_BYTES < least_bytes:
            raise ChangedError(f"{self._path} has lost blocks")
        if stamp is not None and found.st_ctime_ns != stamp and self._stamp == stamp:
            raise ChangedError(f"{self._path} was changed by somebody else")

    def begin(self) -> None:
        """Say that a write begins. Raises as `look` does."""
        with self._lock:
            self.look()
            self._writing += 1
            self._stamp = None

    def end(self, more_bytes: int) -> None:
        """Say that a write has ended, and how much more is kept."""
        with self._lock:
            self._writing -= 1
            self._kept_bytes += more_bytes
            if not self._writing:
                self._stamp = os.fstat(self._fd).st_ctime_ns

    def count(self, more_bytes: int) -> None:
        """Say how much more must be on disk; negative for less."""
        with self._lock:
            self._kept_bytes += more_bytes

    def accept(self) -> None:
        """Take the file as it is now: from here on only what changes later counts. Its sums are checked after this.

        A file system that compresses, or counts blocks late, shows fewer than there are, and is given that much.
        """
        with self._lock:
            found = os.fstat(self._fd)
            self._slack_bytes = max(0, self._kept_bytes - found.st_blocks * _SECTOR_BYTES)
            self._stamp = None if self._writing else found.st_ctime_ns
