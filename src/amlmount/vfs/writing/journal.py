"""The append-only file that remembers what was promised: each record is found again after a crash, or was never needed.

What the records mean stands in `ledger`; this writes them in order, makes them last when asked, and begins anew
when most of them are outdated.
"""

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from amlmount.errors import AmlmountError
from amlmount.vfs.writing.disk import Disk
from amlmount.vfs.writing.records import Found, JournalFormatError, Record, decode, encode, encode_header

NAME, NEW_NAME = "journal", "journal.new"
SLACK_BYTES = 4 << 20  # how much outdated journal is not worth writing it anew


class Journal:
    """Methods may be called from any thread. Raises OSError when the disk fails: then nothing was promised."""

    def __init__(self, disk: Disk) -> None:
        """Open the journal of a state directory, or begin one. Raises AmlmountError if it cannot be read."""
        self._disk = disk
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self.found = self._open()
        self._size_when_rewritten = self._end
        self._synced_end = self._end

    def append(self, kind: str, data: bytes = b"", **fields: Any) -> int:
        """Add a record and return the place to `sync` to; until then it outlives this process, not the machine."""
        record = Record(kind, fields, data)
        with self._lock:
            self._write(encode(record, self._number, self._salt))
            self._number += 1
            return self._end

    def sync(self, place: int) -> None:
        """Make everything up to `place` last; one call to the disk serves all who wait."""
        with self._sync_lock:
            if self._synced_end >= place:
                return
            with self._lock:
                end, fd = self._end, self._fd
            self._disk.sync(fd)
            self._synced_end = max(self._synced_end, end)

    @property
    def wants_rewrite(self) -> bool:
        """Say whether most of what it holds is outdated."""
        return self._end > 2 * self._size_when_rewritten + SLACK_BYTES

    def rewrite(self, records: Callable[[], Iterable[Record]]) -> None:
        """Replace everything by what `records` returns, which is asked for while nothing can be appended."""
        with self._sync_lock, self._lock:
            old_fd = self._fd
            self._begin(records())
            os.close(old_fd)
            self._size_when_rewritten = self._synced_end = self._end

    def close(self) -> None:
        """Close the file; what was not synced is written by the kernel as it sees fit."""
        os.close(self._fd)

    def _open(self) -> Found:
        self._disk.remove(NEW_NAME)
        if not self._disk.exists(NAME):
            self._begin(())
            return Found()
        self._fd = self._disk.open(NAME)
        content = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        try:
            found = decode(content)
        except JournalFormatError as error:
            os.close(self._fd)
            raise AmlmountError(
                f"cannot read the journal '{self._disk.path(NAME)}': {error}",
                hint="what it holds may be nowhere else: use the version of amlmount that wrote it, or move it away",
            ) from None
        self._salt, self._number, self._end = found.salt, found.next_number, found.end
        if len(content) < found.end:  # not even a whole header: nothing was ever promised
            os.close(self._fd)
            self._begin(())
        elif found.torn_bytes:
            self._disk.truncate(self._fd, found.end)
        return found

    def _begin(self, records: Iterable[Record]) -> None:
        salt, number = int.from_bytes(os.urandom(4), "little"), 1
        data = encode_header(salt)
        fd, end = self._disk.open(NEW_NAME, create=True), 0
        try:
            self._disk.truncate(fd, 0)
            for record in records:
                self._disk.write(fd, data, end)
                end, data = end + len(data), encode(record, number, salt)
                number += 1
            self._disk.write(fd, data, end)
            self._disk.sync(fd)
            self._disk.rename(NEW_NAME, NAME)
            self._disk.sync_directory(self._disk.root)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._salt, self._number, self._end = fd, salt, number, end + len(data)

    def _write(self, data: bytes) -> None:
        try:
            self._disk.write(self._fd, data, self._end)
        except OSError:
            self._disk.truncate(self._fd, self._end)  # half a record, and what came after it, would be damage
            raise
        self._end += len(data)
