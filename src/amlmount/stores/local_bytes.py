"""The bytes of a local store's files: ranges read, and temporary files filled from bytes, content or another blob.

Whoever fills one also makes it last and gives it its time; naming it is the store's business.
"""

import contextlib
import os
import time
from collections.abc import Mapping

from amlmount.metrics import UPLOADS
from amlmount.stores.base import Content, ObjectInfo, ObjectStore
from amlmount.stores.local_names import TEMP_PREFIX
from amlmount.stores.metadata import MTIME, parse_mtime

PIECE_BYTES = 4 << 20


class Copied:
    """One version of a blob as the content of another."""

    def __init__(self, store: ObjectStore, source: ObjectInfo) -> None:
        self._store = store
        self._source = source

    @property
    def size_bytes(self) -> int:
        """See Content."""
        return self._source.size_bytes

    def read(self, start: int, length: int) -> bytes:
        """See Content. Raises PreconditionFailedError if the blob has become another version."""
        return self._store.get(self._source.name, start, length, if_match=self._source.etag)


def read_range(fd: int, start: int, length: int | None) -> bytes:
    """Read to the end of the range or of the file: pread stops at 2 GiB - 4 KiB (read(2)), so ask again."""
    wanted = max(os.fstat(fd).st_size - start, 0) if length is None else length
    parts: list[bytes] = []
    while wanted > 0 and (data := os.pread(fd, wanted, start)):
        parts.append(data)
        start += len(data)
        wanted -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def fill(fd: int, data: bytes, metadata: Mapping[str, str] | None) -> None:
    """Write `data`, make it last, and set the file's time to what `metadata` says, else to now."""
    _write_all(fd, data)
    set_time(fd, metadata)
    os.fsync(fd)


def fill_with(fd: int, content: Content, metadata: Mapping[str, str] | None, mtime_ns: int | None = None) -> None:
    """Do the same with content read in pieces; one that is empty still has to be the version it says it is."""
    size, sent_bytes = content.size_bytes, 0
    try:
        for start in range(0, size, PIECE_BYTES) if size else ():
            _write_all(fd, piece := content.read(start, min(PIECE_BYTES, size - start)))
            sent_bytes += len(piece)
            UPLOADS.add(len(piece))
    except BaseException:
        UPLOADS.add(-sent_bytes)
        raise
    if not size:
        content.read(0, 0)
    set_time(fd, metadata, mtime_ns)
    os.fsync(fd)


def remove_empty(name: str, parent_fd: int) -> None:
    """Remove a directory with nothing in it but temporary files of processes that died. Raises OSError."""
    with contextlib.suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent_fd)
        try:
            if all(found.startswith(TEMP_PREFIX) for found in os.listdir(fd)):
                for found in os.listdir(fd):
                    os.unlink(found, dir_fd=fd)
        finally:
            os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)


def set_time(fd: int, metadata: Mapping[str, str] | None, mtime_ns: int | None = None) -> None:
    """Set the time of an open file to `mtime_ns`, to what `metadata` says, or to now.

    Always by hand: the kernel's own timestamps move in steps of milliseconds, and two puts in one step must not
    look alike.
    """
    said = parse_mtime((metadata or {}).get(MTIME, "")) if mtime_ns is None else mtime_ns
    now_ns = time.time_ns()
    os.utime(fd, ns=(now_ns, now_ns if said is None else said))


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
