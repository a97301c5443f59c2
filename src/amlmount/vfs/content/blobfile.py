"""One version of one large blob on disk: a sparse file of its size, and a map with the sum of every block in it.

See docs/cache.md for the format. A block counts as there only if the map has its sum; bytes are written first. What
an earlier process wrote, or a stranger may have changed, is believed only once its sum was checked.
"""

import logging
import os
import struct
import zlib
from array import array

from amlmount.vfs.content.checksum import Buffer, block_sum, block_sums
from amlmount.vfs.content.diskfile import DiskFile, read_all, remove
from amlmount.vfs.content.grid import Grid
from amlmount.vfs.content.witness import CutError, Witness

MAGIC = b"AMLMAP1\n"
HEAD = struct.Struct("<8sIIQ16sI")  # magic, offset of the sums, block bytes, blob bytes, key, bytes of its name
_MAX_MAP_BYTES = 1 << 20
_END_BYTES = 4096
log = logging.getLogger(__name__)


class BlobFile:
    """Blocks of a blob. Not locked: its owner lets one thread write a block, and calls the rest under a lock."""

    def __init__(self, base: str, key: bytes, name: str, grid: Grid) -> None:
        """Open `base`.data and .map; what does not fit `key` and `grid` is begun anew. Raises OSError."""
        self.grid = grid
        self.base = base
        self._data = DiskFile(f"{base}.data")
        self._map = DiskFile(f"{base}.map")
        self._head = _head(key, name, grid)
        self.sums: array[int] = array("I", bytes(4 * grid.count))
        self._unchecked: set[int] = set()
        self._level = logging.WARNING
        if not self._load():
            self._begin_anew()
        self._witness = Witness(self._data.fd, self._data.path, grid.size_bytes, self._length_of(0, grid.count))

    @property
    def fd(self) -> int:
        """The descriptor of the data; stays open as long as this object."""
        return self._data.fd

    @property
    def is_whole(self) -> bool:
        """True when every byte is there and none is unchecked."""
        return not self._unchecked and 0 not in self.sums

    @property
    def needs_check(self) -> bool:
        """True when everything seems to be there, and some of it was written by an earlier process."""
        return bool(self._unchecked) and 0 not in self.sums

    def has(self, first: int, end: int) -> bool:
        """Tell whether blocks `[first, end)` are there; those not checked yet are checked now."""
        if 0 in self.sums[first:end]:
            return False
        if self._unchecked and not self._unchecked.isdisjoint(range(first, end)):
            return self._check(first, end)
        return True

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of blocks that are there. Raises OSError, and ChangedError if they may be others by now."""
        data = self._data.read(offset, size_bytes)
        while len(data) < size_bytes:
            more = self._data.read(offset + len(data), size_bytes - len(data))
            if not more:
                raise CutError(f"{self._data.path} is not as long as it was")
            data += more
        self._witness.look()  # after the bytes were read: what was cut before that is seen for ever
        return data

    def look(self) -> None:
        """Raise ChangedError or CutError if somebody else changed the file, OSError if it cannot be seen."""
        self._witness.look()

    def write(self, first: int, data: Buffer) -> None:
        """Keep the bytes of blocks from `first` on, then their sums.

        Raises OSError, and ChangedError if somebody else changed the file; nothing is claimed then.
        """
        self._witness.begin()
        kept_bytes = 0
        try:
            self._write_bytes(self.grid.start(first), memoryview(data))
            sums = block_sums(data, self.grid.block_bytes)
            kept_bytes = len(data) - self._length_of(first, first + len(sums))
            self.sums[first : first + len(sums)] = sums
            self._map.write(len(self._head) + 4 * first, memoryview(sums).cast("B"))
        finally:
            self._witness.end(kept_bytes)

    def distrust(self) -> None:
        """Believe no block until its sum was checked again. Raises OSError."""
        log.log(self._level, "%s was changed by somebody else, its blocks are checked again", self._data.path)
        self._level = logging.DEBUG
        self._witness.accept()
        self._unchecked = {block for block, total in enumerate(self.sums) if total}

    def forget(self, first: int, end: int) -> None:
        """Claim no longer that blocks are there. Raises OSError."""
        self._witness.count(-self._length_of(first, end))
        self.sums[first:end] = array("I", bytes(4 * (end - first)))
        self._unchecked.difference_update(range(first, end))
        self._map.write(len(self._head) + 4 * first, bytes(4 * (end - first)))

    def check_next(self, blocks: int) -> bool:
        """Check up to `blocks` of what is unchecked; False when nothing is left to check."""
        for block in sorted(self._unchecked)[:blocks]:
            self._check(block, block + 1)
        return bool(self._unchecked)

    def stamp(self, used_s: float) -> None:
        """Note on disk when it was used last."""
        os.utime(self._map.fd, (used_s, used_s))

    def _check(self, first: int, end: int) -> bool:
        is_good = True
        for block in sorted(self._unchecked.intersection(range(first, end))):
            data = self._data.read(self.grid.start(block), self.grid.length(block, block + 1))
            if block_sum(data) == self.sums[block]:
                self._unchecked.discard(block)
                continue
            log.log(self._level, "%s is damaged in block %d, which is fetched again", self._data.path, block)
            self._level = logging.DEBUG  # said once
            self.forget(block, block + 1)
            is_good = False
        return is_good

    def _write_bytes(self, offset: int, data: memoryview) -> None:
        """Write; what reaches the end of the file only when it is as long as it must be, so that none is lengthened."""
        if offset + len(data) == self.grid.size_bytes:
            self._data.write_long(offset, data[:-_END_BYTES])
            self._witness.look()
            offset, data = offset + len(data[:-_END_BYTES]), data[-_END_BYTES:]
        self._data.write_long(offset, data)

    def _length_of(self, first: int, end: int) -> int:
        """Return how many bytes those of the blocks have that are there."""
        there = self.sums[first:end]
        if not there:
            return 0
        short_bytes = end * self.grid.block_bytes - self.grid.size_bytes if there[-1] else 0
        return (len(there) - there.count(0)) * self.grid.block_bytes - max(0, short_bytes)

    def _begin_anew(self) -> None:
        """Make new files: what else has the old ones open, the kernel too, goes on to read what is in them."""
        remove_blob(self.base)
        self._data, self._map = DiskFile(self._data.path), DiskFile(self._map.path)
        self._map.write(0, self._head)
        os.ftruncate(self._data.fd, self.grid.size_bytes)

    def _load(self) -> bool:
        found = read_all(self._map.path, _MAX_MAP_BYTES)
        begin, end = len(self._head), len(self._head) + 4 * self.grid.count
        if found[:begin] != self._head or self._data.size_bytes != self.grid.size_bytes:
            return False
        self.sums = array("I", found[begin:end].ljust(4 * self.grid.count, b"\0"))
        self._unchecked = {block for block, total in enumerate(self.sums) if total}
        return True


def _head(key: bytes, name: str, grid: Grid) -> bytes:
    text = name.encode("utf-8", "surrogateescape")
    length = -(-(HEAD.size + len(text) + 4) // 64) * 64
    body = (HEAD.pack(MAGIC, length, grid.block_bytes, grid.size_bytes, key, len(text)) + text).ljust(length - 4, b"\0")
    return body + zlib.crc32(body).to_bytes(4, "little")


def name_in_map(path: str) -> str:
    """Return the name of the blob a map belongs to, empty if it is no intact map. Raises OSError."""
    found = read_all(path, 8192)
    if len(found) < HEAD.size or found[:8] != MAGIC:
        return ""
    _, length, _, _, _, name_bytes = HEAD.unpack_from(found)
    if length > len(found) or zlib.crc32(found[: length - 4]).to_bytes(4, "little") != found[length - 4 : length]:
        return ""
    return found[HEAD.size : HEAD.size + name_bytes].decode("utf-8", "surrogateescape")


def remove_blob(base: str) -> None:
    """Remove a blob's files, the map first: bytes without a map are nothing. Raises OSError."""
    remove([f"{base}.map", f"{base}.data"])
