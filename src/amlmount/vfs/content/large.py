"""Large blobs: fetched in ranges of blocks, each by one request however many ask, and kept in a sparse file.

Locks: `_lock` guards the table of open blobs, a blob's own lock its blocks and flights; neither is held over a
request to the store, and `_lock` is never taken with a blob's.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from amlmount.vfs.base import WouldBlock
from amlmount.vfs.content.blobfile import BlobFile
from amlmount.vfs.content.checksum import Buffer
from amlmount.vfs.content.directory import CacheDirectory, blob_id
from amlmount.vfs.content.flight import Flight
from amlmount.vfs.content.grid import Grid
from amlmount.vfs.content.keys import Keys
from amlmount.vfs.content.memory import RecentPieces
from amlmount.vfs.content.readahead import Streams
from amlmount.vfs.content.small import Download
from amlmount.vfs.content.witness import ChangedError, CutError
from amlmount.vfs.content.workers import Workers
from amlmount.vfs.nodes import FileNode

RANGE_BYTES = 2 << 20  # of one request ahead of a reader
MAX_OPEN_BLOBS = 256
_CHECKED_AT_ONCE = 16
_ATTEMPTS = 3
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Range:
    """Blocks on their way."""

    first: int
    end: int
    flight: Flight = field(default_factory=Flight)


@dataclass(slots=True)
class _Blob:
    """A large blob somebody reads. `flights` has an entry for every block on its way."""

    node: FileNode
    key: bytes
    grid: Grid
    streams: Streams
    file: BlobFile | None = None
    flights: dict[int, _Range] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_checking: bool = False


class LargeBlobs:
    """Reads large blobs, and fetches ahead of those who read them from front to back."""

    def __init__(
        self,
        keys: Keys,
        download: Download,
        directory: CacheDirectory | None,
        recent: RecentPieces,
        on_disk_trouble: Callable[[OSError | None], None],
        *,
        max_window_bytes: int,
        workers: Workers,
    ) -> None:
        self._keys = keys
        self._download = download
        self._directory = directory
        self._recent = recent
        self._on_disk_trouble = on_disk_trouble
        self._max_window_bytes = max_window_bytes
        self._workers = workers
        self._lock = threading.Lock()
        self._blobs: OrderedDict[bytes, _Blob] = OrderedDict()
        if directory is not None:
            directory.on_drop = self._dropped

    def read(self, node: FileNode, offset: int, size_bytes: int, *, may_wait: bool) -> Buffer:
        """Return bytes within the blob. Raises WouldBlock, and what the download raises."""
        blob = self._open(node)
        with blob.lock:
            ahead = blob.streams.note(offset, size_bytes)
        first, end = blob.grid.span(offset, size_bytes)
        data = self._held(blob, offset, size_bytes, first, end)
        if ahead is not None:
            self._fetch_ahead(blob, *ahead, end)
        if data is None and not may_wait:
            raise WouldBlock
        return data if data is not None else self._fetch(blob, offset, size_bytes, first, end)

    def whole_file(self, node: FileNode) -> BlobFile | None:
        """Return the file that holds exactly this blob, if it is whole and was checked; else see that it will be."""
        if self._directory is None:
            return None
        blob = self._open(node)
        self._look(blob)
        with blob.lock:
            if blob.file is None or blob.file.is_whole:
                return blob.file
            if not blob.file.needs_check or blob.is_checking:
                return None
            blob.is_checking = self._workers.submit(partial(self._check, blob))
        return None

    def hold(self, node: FileNode) -> None:
        """Say that a blob is open somewhere: it stays in the cache."""
        if self._directory is not None:
            self._directory.hold(self._keys.of(node))

    def release(self, node: FileNode) -> None:
        """Take back one `hold`."""
        if self._directory is not None:
            self._directory.release(self._keys.of(node))

    def _open(self, node: FileNode) -> _Blob:
        key = self._keys.of(node)
        with self._lock:
            blob = self._blobs.get(key)
            if blob is not None:
                self._blobs.move_to_end(key)
                return blob
            grid = Grid.of(node.size_bytes)
            blob = _Blob(node, key, grid, Streams(node.size_bytes, self._max_window_bytes), self._file(node, key))
            self._blobs[key] = blob
            if len(self._blobs) > MAX_OPEN_BLOBS:
                self._blobs.popitem(last=False)
            return blob

    def _file(self, node: FileNode, key: bytes) -> BlobFile | None:
        if self._directory is None:
            return None
        try:
            return self._directory.open_blob(key, node.blob_name, node.size_bytes)
        except OSError as error:
            self._on_disk_trouble(error)
            return None

    def _dropped(self, entry_id: str) -> None:
        with self._lock:
            for key in [key for key in self._blobs if blob_id(key) == entry_id]:
                del self._blobs[key]

    # What is there

    def _held(self, blob: _Blob, offset: int, size_bytes: int, first: int, end: int) -> Buffer | None:
        """Return bytes that need no request."""
        data = self._on_disk(blob, offset, size_bytes, first, end)
        return data if data is not None else self._remembered(blob, offset, size_bytes)

    def _on_disk(self, blob: _Blob, offset: int, size_bytes: int, first: int, end: int) -> Buffer | None:
        """Return bytes of blocks `[first, end)` if the file has all of them, as they were written."""
        file = blob.file
        if file is None:
            return None
        try:
            with blob.lock:
                is_there = file.has(first, end)
            if not is_there:
                return None
            data = file.read(offset, size_bytes)
            self._used(blob, file)
        except (OSError, ChangedError) as error:
            self._lost(blob, file, first, end, error)
            return None
        return data

    def _remembered(self, blob: _Blob, offset: int, size_bytes: int) -> Buffer | None:
        """Put bytes together from memory, and from disk where they are not in memory."""
        if not self._recent.used_bytes and not blob.flights:
            return None
        parts: list[Buffer] = []
        at, stop = offset, offset + size_bytes
        while at < stop:
            part = self._part(blob, at, stop)
            if part is None:
                return None
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, blob: _Blob, at: int, stop: int) -> Buffer | None:
        block = at // blob.grid.block_bytes
        piece = self._arrived(blob, block) or self._recent.get(blob.key, block)
        if piece is not None:
            start = blob.grid.start(piece[0])
            return memoryview(piece[1])[at - start : stop - start]
        return self._on_disk(blob, at, min(blob.grid.start(block + 1), stop) - at, block, block + 1)

    def _arrived(self, blob: _Blob, block: int) -> tuple[int, Buffer] | None:
        """Return (first block, bytes) of a range that came and is not kept yet."""
        one = blob.flights.get(block)
        data = one.flight.landed() if one else None
        return (one.first, data) if one and data is not None else None

    def _used(self, blob: _Blob, file: BlobFile) -> None:
        if self._directory is not None:
            self._directory.used(blob.key, file)

    def _look(self, blob: _Blob) -> None:
        """Find out whether somebody spoilt the file, before the kernel gets it."""
        file = blob.file
        if file is None:
            return
        try:
            file.look()
        except (OSError, ChangedError) as error:
            self._lost(blob, file, 0, 0, error)

    def _lost(self, blob: _Blob, file: BlobFile, first: int, end: int, error: Exception) -> None:
        """Believe no longer what a disk or a stranger spoilt: these blocks, any before it is checked, or the file."""
        if isinstance(error, OSError):
            self._on_disk_trouble(error)
        with blob.lock:
            if blob.file is not file:
                return
            try:
                if isinstance(error, CutError):
                    log.warning("%s; what it held is fetched again", error)
                    blob.file = self._replaced(blob)
                elif isinstance(error, ChangedError):
                    file.distrust()
                else:
                    file.forget(first, end)
            except OSError:
                blob.file = None

    def _replaced(self, blob: _Blob) -> BlobFile | None:
        if self._directory is None:
            return None
        return self._directory.replace_blob(blob.key, blob.node.blob_name, blob.grid.size_bytes)

    def _check(self, blob: _Blob) -> None:
        """Check in the background what an earlier process wrote, so that the kernel can have it."""
        try:
            is_more = True
            while is_more and blob.file is not None:
                with blob.lock:
                    is_more = blob.file.check_next(_CHECKED_AT_ONCE)
        finally:
            blob.is_checking = False

    # What must be fetched

    def _fetch(self, blob: _Blob, offset: int, size_bytes: int, first: int, end: int) -> Buffer:
        for _ in range(_ATTEMPTS):
            mine, others = self._join(blob, first, end)
            for one in mine:
                self._fly(blob, one)
            for one in (*mine, *others):
                data = one.flight.result()
                start = blob.grid.start(one.first)
                if start <= offset and offset + size_bytes <= start + len(data):
                    return memoryview(data)[offset - start : offset - start + size_bytes]
            held = self._held(blob, offset, size_bytes, first, end)
            if held is not None:
                return held
        return self._download(blob.node, offset, size_bytes)  # the cache loses things faster than we can look

    def _join(self, blob: _Blob, first: int, end: int) -> tuple[list[_Range], list[_Range]]:
        """Return the ranges that this thread must fetch, and those that others do already."""
        with blob.lock:
            others = list({id(one): one for block in range(first, end) if (one := blob.flights.get(block))}.values())
            return self._claim(blob, first, end, end - first), others

    def _claim(self, blob: _Blob, first: int, end: int, max_blocks: int, cut: int = -1) -> list[_Range]:
        """Enter flights for what is neither there nor on its way; a new one from `cut` on. Needs the blob's lock."""
        claimed: list[_Range] = []
        for block in range(first, end):
            if block in blob.flights or self._has(blob, block):
                continue
            last = claimed[-1] if claimed else None
            if last is None or last.end != block or block == cut or block - last.first >= max_blocks:
                last = _Range(block, block)
                claimed.append(last)
            last.end = block + 1
            blob.flights[block] = last
        return claimed

    def _has(self, blob: _Blob, block: int) -> bool:
        return (blob.file is not None and blob.file.sums[block] != 0) or (blob.key, block) in self._recent

    def _fly(self, blob: _Blob, one: _Range) -> None:
        """Fetch a range, hand it out, and keep it; until it is kept it is found in its flight.

        An error of the download goes to those who wait for it.
        """
        try:
            length = blob.grid.length(one.first, one.end)
            data = self._download(blob.node, blob.grid.start(one.first), length)
        except BaseException as error:
            self._landed(blob, one)
            one.flight.fail(error)
            if not isinstance(error, Exception):
                raise
            return
        one.flight.land(data)
        try:
            self._keep(blob, one, data)
        finally:
            self._landed(blob, one)

    def _landed(self, blob: _Blob, one: _Range) -> None:
        with blob.lock:
            for block in range(one.first, one.end):
                blob.flights.pop(block, None)

    def _keep(self, blob: _Blob, one: _Range, data: Buffer) -> None:
        file = blob.file
        if self._directory is not None and file is not None:
            try:
                self._directory.write_blob(blob.key, file, one.first, data)
                self._on_disk_trouble(None)
                return
            except OSError as error:
                self._on_disk_trouble(error)
            except ChangedError as error:
                self._lost(blob, file, one.first, one.end, error)
        self._recent.put(blob.key, one.first, data, one.end - one.first)

    def _fetch_ahead(self, blob: _Blob, start: int, stop: int, needed_end: int) -> None:
        """Fetch what will be read; what somebody waits for now, up to block `needed_end`, in a request of its own."""
        first, end = blob.grid.span(start, stop - start)
        with blob.lock:
            ranges = self._claim(blob, first, end, max(RANGE_BYTES // blob.grid.block_bytes, 1), needed_end)
        for one in ranges:
            if not self._workers.submit(partial(self._fly, blob, one)):
                self._fly(blob, one)
