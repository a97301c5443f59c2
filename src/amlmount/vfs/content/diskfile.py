"""Files of the cache: opened close-on-exec and for their owner only, written whole or not at all."""

import errno
import os
from collections.abc import Sequence

from amlmount.vfs.content.checksum import Buffer

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
# A longer write has ext4 take larger folios for the page cache, and on a virtual machine whose host takes free memory
# back, large folios are memory that must be had anew: a GiB in writes of 128 KiB or less took 0.3 s of CPU, of 256 KiB
# 0.75 s, of 2 MiB 1.8 s (Linux 6.18).
_PIECE_BYTES = 128 << 10


class DiskFile:
    """A descriptor that is closed when nobody holds this object any more, so that nobody reads another's file by it."""

    __slots__ = ("fd", "path")

    def __init__(self, path: str) -> None:
        """Open or create. Raises OSError."""
        self.fd = -1
        self.path = path
        self.fd = os.open(path, _FLAGS, 0o600)

    def write(self, offset: int, *parts: Buffer) -> None:
        """Write all of it at `offset`. Raises OSError; ENOSPC too when only a part went in."""
        wanted = sum(map(len, parts))
        if os.pwritev(self.fd, parts, offset) != wanted:
            raise OSError(errno.ENOSPC, f"cannot write {wanted} bytes to {self.path}: the disk is full")

    def write_long(self, offset: int, data: Buffer) -> None:
        """Write what may be long, in pieces that the kernel likes; otherwise as `write`."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            self.write(offset + start, view[start : start + _PIECE_BYTES])

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Read what is there. Raises OSError."""
        return os.pread(self.fd, size_bytes, offset)

    @property
    def size_bytes(self) -> int:
        """Where the file ends."""
        return os.fstat(self.fd).st_size

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def read_all(path: str, limit_bytes: int) -> bytes:
    """Return a whole file that we wrote, at most `limit_bytes` of it. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        pieces: list[bytes] = []
        offset = 0
        while offset < limit_bytes and (piece := os.pread(file, min(limit_bytes - offset, 1 << 24), offset)):
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)
    finally:
        os.close(file)


def remove(paths: Sequence[str]) -> None:
    """Remove files that may be gone already. Raises OSError for anything else."""
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
