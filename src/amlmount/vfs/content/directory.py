"""The cache directory of one mount: what is in it, how much that takes, and taking parts of it away.

The format is docs/cache.md. One process uses a directory at a time (it holds `lock`). Which parts go, and how large
it may become, others decide: `make_room` is asked when it wants to grow beyond `limit_bytes`.
"""

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from amlmount.vfs.content.blobfile import BlobFile, name_in_map, remove_blob
from amlmount.vfs.content.diskfile import DiskFile
from amlmount.vfs.content.grid import Grid
from amlmount.vfs.content.packs import Packs

FORMAT = b"amlmount cache 1\n"
PACK_PREFIX, BLOB_PREFIX = "packs/", "blobs/"
STAMP_EVERY_S = 60.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Something that can be dropped by itself: a pack of small blobs, or one large blob.

    `id` is its path in the directory without extension. `size_bytes` is what it takes on disk, `last_used_s` when it
    was read or written last, as far as that was seen (what the kernel reads from its page cache is not).
    `name` is the blob's, empty for a pack.
    """

    id: str
    size_bytes: int
    last_used_s: float
    name: str = ""
    is_open: bool = False
    is_pinned: bool = False


@dataclass(slots=True)
class _Known:
    size_bytes: int
    last_used_s: float


class CacheDirectory:
    """An open cache directory. All methods may be called from any thread."""

    def __init__(self, path: str, *, limit_bytes: int | None = None) -> None:
        """Open or create it (0700). Raises OSError; EBUSY if another process uses it, EINVAL if it is none of ours."""
        self.path = path
        self.limit_bytes = limit_bytes
        self.make_room: Callable[[int], bool] = lambda missing_bytes: False
        self.on_drop: Callable[[str], None] = lambda entry_id: None
        for folder in (path, os.path.join(path, "packs"), os.path.join(path, "blobs")):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        os.chmod(path, 0o700)
        self._guard = _take(path)
        self._lock = threading.Lock()
        self._blobs: dict[str, _Known] = {
            entry.id: _Known(entry.size_bytes, entry.last_used_s) for entry in _blobs(path)
        }
        self._blob_bytes = sum(known.size_bytes for known in self._blobs.values())
        self._open: dict[str, int] = {}
        self._pinned = _read_pins(path)
        self.packs = Packs(os.path.join(path, "packs"), self._grow)

    @property
    def used_bytes(self) -> int:
        """What all of it takes on disk."""
        return self._blob_bytes + sum(pack.size_bytes for pack in self.packs.packs())

    def entries(self) -> list[CacheEntry]:
        """Return everything that can be dropped, least recently used first."""
        found = [CacheEntry(f"{PACK_PREFIX}{p.number:06d}", p.size_bytes, p.last_used_s) for p in self.packs.packs()]
        with self._lock:
            found += [CacheEntry(name, known.size_bytes, known.last_used_s) for name, known in self._blobs.items()]
            is_open, pinned = frozenset(self._open), frozenset(self._pinned)
        return _described(self.path, found, is_open, pinned)

    def drop(self, entry_id: str) -> int:
        """Remove one entry and return the bytes freed: 0 if it is open or pinned, or not there. Raises OSError."""
        with self._lock:
            if entry_id in self._pinned or self._open.get(entry_id):
                return 0
            known = self._blobs.pop(entry_id, None)
            self._blob_bytes -= known.size_bytes if known else 0
        if known:
            self.on_drop(entry_id)
            remove_blob(os.path.join(self.path, entry_id))
            return known.size_bytes
        number = entry_id.removeprefix(PACK_PREFIX)
        return self.packs.drop(int(number)) if number.isdigit() else 0

    def pin(self, entry_id: str, *, is_pinned: bool = True) -> None:
        """Keep an entry from being dropped, over restarts too, or no longer. Raises OSError."""
        with self._lock:
            self._pinned.add(entry_id) if is_pinned else self._pinned.discard(entry_id)
            _write_pins(self.path, self._pinned)

    def entry_of(self, key: bytes) -> str | None:
        """Return the id of the entry that holds a blob (or a part of a large one)."""
        if (name := blob_id(key)) in self._blobs:
            return name
        number = self.packs.pack_of(key)
        return None if number is None else f"{PACK_PREFIX}{number:06d}"

    def kept_bytes(self, key: bytes) -> int:
        """Return how much of a large blob is there, as far as can be said without opening its file."""
        known = self._blobs.get(blob_id(key))
        return known.size_bytes if known else 0

    def open_blob(self, key: bytes, name: str, size_bytes: int) -> BlobFile:
        """Open or create the file of a large blob; it may be dropped all the same, unless held. Raises OSError."""
        entry_id = blob_id(key)
        base = os.path.join(self.path, entry_id)
        os.makedirs(os.path.dirname(base), mode=0o700, exist_ok=True)
        with self._lock:
            known = self._blobs.setdefault(entry_id, _Known(0, 0.0))
            known.last_used_s = time.time()
        return BlobFile(base, key, name, Grid.of(size_bytes))

    def replace_blob(self, key: bytes, name: str, size_bytes: int) -> BlobFile:
        """Throw away the file of a large blob, which somebody spoilt, and begin another. Raises OSError."""
        entry_id = blob_id(key)
        remove_blob(os.path.join(self.path, entry_id))
        with self._lock:
            known = self._blobs.setdefault(entry_id, _Known(0, 0.0))
            self._blob_bytes -= known.size_bytes
            known.size_bytes = 0
        return self.open_blob(key, name, size_bytes)

    def hold(self, key: bytes) -> None:
        """Say that somebody has a large blob open: it is not dropped until as many `release`s."""
        with self._lock:
            self._open[blob_id(key)] = self._open.get(blob_id(key), 0) + 1

    def release(self, key: bytes) -> None:
        """Take back one `hold`."""
        entry_id = blob_id(key)
        with self._lock:
            left = self._open.pop(entry_id, 1) - 1
            if left > 0:
                self._open[entry_id] = left

    def write_blob(self, key: bytes, file: BlobFile, first: int, data: bytes | memoryview) -> None:
        """Write blocks into a file from `open_blob` and count them.

        Raises OSError when there is no room, ChangedError if somebody else changed the file.
        """
        self._grow(len(data))
        file.write(first, data)
        with self._lock:
            known = self._blobs.setdefault(blob_id(key), _Known(0, 0.0))
            known.size_bytes += len(data)
            known.last_used_s = time.time()
            self._blob_bytes += len(data)

    def used(self, key: bytes, file: BlobFile) -> None:
        """Note that a large blob was read; on disk once a minute."""
        now, known = time.time(), self._blobs.get(blob_id(key))
        if known is not None and now - known.last_used_s > STAMP_EVERY_S:
            known.last_used_s = now
            file.stamp(now)

    def close(self) -> None:
        """Let another process use the directory; calling it twice is harmless."""
        with self._lock:
            guard, self._guard = self._guard, -1
        if guard >= 0:
            self.packs.close()
            os.close(guard)

    def _grow(self, more_bytes: int) -> None:
        if self.limit_bytes is None:
            return
        missing = self.used_bytes + more_bytes - self.limit_bytes
        if missing > 0 and not self.make_room(missing):
            raise OSError(errno.ENOSPC, f"the cache {self.path} has reached its {self.limit_bytes} bytes")


def entries_on_disk(path: str) -> list[CacheEntry]:
    """Return what is in a cache directory that nobody has open, least recently used first. Raises OSError."""
    return _described(path, [*_blobs(path), *_packs(path)], frozenset(), frozenset(_read_pins(path)))


def _described(path: str, found: list[CacheEntry], is_open: frozenset[str], pinned: frozenset[str]) -> list[CacheEntry]:
    """Add to entries what is not known from their files' size and time, and sort them."""
    full = [
        replace(e, name=_name(os.path.join(path, e.id)), is_open=e.id in is_open, is_pinned=e.id in pinned)
        for e in found
    ]
    return sorted(full, key=lambda entry: entry.last_used_s)


def blob_id(key: bytes) -> str:
    text = key.hex()
    return f"{BLOB_PREFIX}{text[:2]}/{text}"


def _take(path: str) -> int:
    """Take the lock of a directory; it goes with the process."""
    lock = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        written = os.pread(lock, 64, 0)
        if written and written != FORMAT:
            raise OSError(errno.EINVAL, f"{path} was written by another version of amlmount")
        os.pwrite(lock, FORMAT, 0)
    except BlockingIOError:
        os.close(lock)
        raise OSError(errno.EBUSY, f"another process uses the cache {path}") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _files(folder: str, ending: str) -> Iterator[os.DirEntry[str]]:
    if os.path.isdir(folder):
        with os.scandir(folder) as found:
            yield from (
                entry for entry in found if entry.name.endswith(ending) and entry.is_file(follow_symlinks=False)
            )


def _blobs(path: str) -> Iterator[CacheEntry]:
    top = os.path.join(path, "blobs")
    for folder in sorted(os.listdir(top)) if os.path.isdir(top) else ():
        for found in _files(os.path.join(top, folder), ".map"):
            base = found.path.removesuffix(".map")
            try:
                taken = os.stat(f"{base}.data").st_blocks * 512
            except FileNotFoundError:
                taken = 0
            yield CacheEntry(os.path.relpath(base, path), taken, found.stat().st_mtime)


def _packs(path: str) -> Iterator[CacheEntry]:
    for found in _files(os.path.join(path, "packs"), ".pack"):
        base, about = found.path.removesuffix(".pack"), found.stat()
        yield CacheEntry(os.path.relpath(base, path), about.st_size, about.st_mtime)


def _name(base: str) -> str:
    if not os.path.exists(f"{base}.map"):
        return ""
    try:
        return name_in_map(f"{base}.map")
    except OSError:
        return ""


def _read_pins(path: str) -> set[str]:
    try:
        with open(os.path.join(path, "pins"), encoding="ascii") as file:
            return set(file.read().split())
    except FileNotFoundError:
        return set()


def _write_pins(path: str, pins: set[str]) -> None:
    written = DiskFile(os.path.join(path, "pins.new"))
    os.ftruncate(written.fd, 0)
    written.write(0, "".join(f"{pin}\n" for pin in sorted(pins)).encode())
    os.rename(written.path, os.path.join(path, "pins"))
