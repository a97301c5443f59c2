"""Small blobs, whole, one after the other in pack files: one file system operation to write one, one to read one.

See docs/cache.md for the format. A record is checked (key, length, sum) every time it is read; the index is only
where to look. Bytes first, then the index: a crash leaves bytes nobody looks for, never an entry without bytes.
"""

import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from amlmount.vfs.content.checksum import Buffer, record_sum
from amlmount.vfs.content.diskfile import DiskFile, read_all, remove
from amlmount.vfs.content.keys import KEY_BYTES

PACK_BYTES = 64 << 20
MAX_RECORD_BYTES = 16 << 20
MAX_AT_ONCE = 256  # two parts each, and writev takes 1,024
RECORD = struct.Struct(f"<{KEY_BYTES}sII")  # key, length, sum of the bytes that follow
INDEX = struct.Struct(f"<{KEY_BYTES}sIII")  # key, offset of the record, length of its bytes, crc32 of these 24 bytes
_INDEXED = INDEX.size - 4
_MAX_INDEX_BYTES = 256 << 20
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Pack:
    """One pack file and its index; `end` is where the next record goes."""

    number: int
    file: DiskFile
    index: DiskFile
    end: int
    index_end: int
    last_used_s: float
    is_damaged: bool = False

    @property
    def size_bytes(self) -> int:
        """What it takes on disk."""
        return self.end + self.index_end


class Packs:
    """All packs of one cache directory. `grow` is asked before every write and raises OSError if there is no room."""

    def __init__(self, folder: str, grow: Callable[[int], None]) -> None:
        """Load what is in `folder`, which exists. Raises OSError."""
        self._folder = folder
        self._grow = grow
        self._lock = threading.Lock()
        self._where: dict[bytes, int] = {}  # pack number << 64 | offset << 32 | length
        self._packs: dict[int, Pack] = {}
        for number in sorted(_numbers(folder)):
            self._load(number)
        newest = max(self._packs, default=0)
        self._current = self._packs.get(newest)
        self._next_number = newest + 1

    def __contains__(self, key: bytes) -> bool:
        return key in self._where

    def __len__(self) -> int:
        return len(self._where)

    def get(self, key: bytes) -> memoryview | None:
        """Return a blob, None if it is not there or damaged (then it is forgotten)."""
        place = self._where.get(key)
        if place is None:
            return None
        offset, length = place >> 32 & 0xFFFFFFFF, place & 0xFFFFFFFF
        pack = self._packs.get(place >> 64)
        data = self._checked(pack, key, offset, length) if pack is not None else None
        if data is None:
            self._where.pop(key, None)
        return data

    def put(self, blobs: Sequence[tuple[bytes, Buffer]]) -> None:
        """Keep blobs, by key; those that are there already are left alone. Raises OSError when there is no room."""
        new = [(key, data) for key, data in blobs if key not in self._where and len(data) <= MAX_RECORD_BYTES]
        for begin in range(0, len(new), MAX_AT_ONCE):
            self._append(new[begin : begin + MAX_AT_ONCE])

    def _append(self, blobs: Sequence[tuple[bytes, Buffer]]) -> None:
        size = sum([RECORD.size + len(data) for _, data in blobs])
        self._grow(size + len(blobs) * INDEX.size)
        with self._lock:
            pack = self._current
            if pack is None or pack.end + size > PACK_BYTES:
                pack = self._begin()
            offset = pack.end
            pack.end += size
        parts: list[Buffer] = []
        places: list[tuple[bytes, int]] = []
        entries = bytearray()
        for key, data in blobs:
            parts += (RECORD.pack(key, len(data), record_sum(data)), data)
            entry = INDEX.pack(key, offset, len(data), 0)[:_INDEXED]
            entries += entry + zlib.crc32(entry).to_bytes(4, "little")
            places.append((key, pack.number << 64 | offset << 32 | len(data)))
            offset += RECORD.size + len(data)
        pack.file.write(offset - size, *parts)
        with self._lock:
            pack.index.write(pack.index_end, bytes(entries))
            pack.index_end += len(entries)
            self._where.update(places)

    def packs(self) -> list[Pack]:
        """Return all packs, oldest first."""
        with self._lock:
            return [self._packs[number] for number in sorted(self._packs)]

    def pack_of(self, key: bytes) -> int | None:
        """Return the number of the pack a blob is in."""
        place = self._where.get(key)
        return None if place is None else place >> 64

    def drop(self, number: int) -> int:
        """Remove a pack with all that is in it and return the bytes freed. Raises OSError."""
        with self._lock:
            pack = self._packs.pop(number, None)
            if pack is None:
                return 0
            if self._current is pack:
                self._current = None
            self._where = {key: place for key, place in self._where.items() if place >> 64 != number}
        remove([pack.index.path, pack.file.path])  # the index first: bytes without one are nothing
        return pack.size_bytes

    def _begin(self) -> Pack:
        number = self._next_number
        self._next_number += 1
        base = os.path.join(self._folder, f"{number:06d}")
        pack = Pack(number, DiskFile(f"{base}.pack"), DiskFile(f"{base}.index"), 0, 0, time.time())
        self._packs[number] = self._current = pack
        return pack

    def _checked(self, pack: Pack, key: bytes, offset: int, length: int) -> memoryview | None:
        try:
            found = pack.file.read(offset, RECORD.size + length)
        except OSError as error:
            log.warning("cannot read %s: %s; what was there is fetched again", pack.file.path, error)
            return None
        data = memoryview(found)[RECORD.size :]
        if found[: RECORD.size] == RECORD.pack(key, length, record_sum(data)) and len(data) == length:
            pack.last_used_s = time.time()
            return data
        level = logging.DEBUG if pack.is_damaged else logging.WARNING  # said once
        pack.is_damaged = True
        log.log(level, "%s is damaged at byte %d; what was there is fetched again", pack.file.path, offset)
        return None

    def _load(self, number: int) -> None:
        base = os.path.join(self._folder, f"{number:06d}")
        pack_file, index = DiskFile(f"{base}.pack"), DiskFile(f"{base}.index")
        end, used_s = pack_file.size_bytes, os.stat(pack_file.path).st_mtime
        entries = read_all(index.path, _MAX_INDEX_BYTES)
        usable = len(entries) - len(entries) % INDEX.size
        for key, offset, length in _intact(entries[:usable]):
            if offset + RECORD.size + length <= end:
                self._where[key] = number << 64 | offset << 32 | length
        self._packs[number] = Pack(number, pack_file, index, end, usable, used_s)

    def close(self) -> None:
        """Note on disk when each pack was used last."""
        for pack in self.packs():
            try:
                os.utime(pack.file.fd, (pack.last_used_s, pack.last_used_s))
            except OSError as error:
                log.debug("cannot stamp %s: %s", pack.file.path, error)


def _intact(entries: bytes) -> Iterator[tuple[bytes, int, int]]:
    view = memoryview(entries)
    for position in range(0, len(entries), INDEX.size):
        key, offset, length, total = INDEX.unpack_from(view, position)
        if zlib.crc32(view[position : position + _INDEXED]) == total:
            yield key, offset, length


def _numbers(folder: str) -> set[int]:
    return {int(name[:-5]) for name in os.listdir(folder) if name.endswith(".pack") and name[:-5].isdigit()}
