"""One version of one large blob on disk: a sparse file of its size, and a map with the sum of every block in it.

See docs/cache.md for the format. A block counts as there only if the map has its sum; bytes are written first. What
an earlier process wrote is believed only once its sum was checked, so a crash of the machine needs no fsync.
"""

import logging
import os
import struct
import zlib
from array import array

from amlmount.vfs.content.checksum import Buffer, block_sum, block_sums
from amlmount.vfs.content.diskfile import DiskFile, read_all, remove
from amlmount.vfs.content.grid import Grid

MAGIC = b"AMLMAP1\n"
HEAD = struct.Struct("<8sIIQ16sI")  # magic, offset of the sums, block bytes, blob bytes, key, bytes of its name
_MAX_MAP_BYTES = 1 << 20
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
            os.ftruncate(self._data.fd, 0)
            os.ftruncate(self._map.fd, 0)
            self._map.write(0, self._head)
            os.ftruncate(self._data.fd, grid.size_bytes)

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
        """Return bytes of blocks that are there. Raises OSError, and EOFError if the file was cut."""
        data = self._data.read(offset, size_bytes)
        while len(data) < size_bytes:
            more = self._data.read(offset + len(data), size_bytes - len(data))
            if not more:
                raise EOFError(f"{self._data.path} was cut short")
            data += more
        return data

    def write(self, first: int, data: Buffer) -> None:
        """Keep the bytes of blocks from `first` on, then their sums. Raises OSError; nothing is claimed then."""
        self._data.write_long(self.grid.start(first), data)
        sums = block_sums(data, self.grid.block_bytes)
        self.sums[first : first + len(sums)] = sums
        self._map.write(len(self._head) + 4 * first, memoryview(sums).cast("B"))

    def forget(self, first: int, end: int) -> None:
        """Claim no longer that blocks are there. Raises OSError."""
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
