"""Open directories: each handle streams one listing, at offsets that stay valid until it is closed or rewound.

Offset 0 takes a fresh listing; 1 and 2 stand behind `.` and `..`, and 3 + i behind entry i.
"""

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from amlmount.config.spec import Policy
from amlmount.fuse.attributes import InodePacker, dirent
from amlmount.fuse.protocol import DIRENT_HEADER, ENTRY_OUT, NAME_MAX_BYTES, OpenFlag
from amlmount.vfs.base import FileSystem, Node, WouldBlock
from amlmount.vfs.entries import Entries, StreamsDirectories

_DOTS = (b".", b"..")
_FIRST_COOKIE = 3
_TYPE_DIRECTORY = 4  # DT_DIR


@dataclass(slots=True)
class _Stream:
    """One handle's listing, which may grow; `next_offset` follows what was sent last, `ahead` was packed from there on.

    Nobody waits for the listing with the lock held: the thread that reads requests takes it to release the handle.
    """

    entries: Entries
    next_offset: int = 0
    ahead: memoryview | None = None
    ahead_end: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Directories:
    """The open directories of a connection. Handles are made from a random start: a successor's never meet ours."""

    def __init__(self, fs: FileSystem, policy: Policy, packer: InodePacker) -> None:
        self._fs = fs
        self._packer = packer
        self._pinned = policy.pinned
        self._entries_valid_s = min(policy.entry_timeout_s, policy.attr_timeout_s)
        self._handles = itertools.count(time.time_ns())
        self._streams: dict[int, _Stream] = {}
        self._sent: dict[int, tuple[float, int]] = {}  # node id -> when a listing was begun last, mtime it had

    def open(self, node_id: int) -> tuple[int, OpenFlag]:
        """Return a handle and the flags of the reply; raises OSError ESTALE for an unknown node."""
        self._fs.node(node_id)
        flags = OpenFlag.CACHE_DIR
        if self._kernel_is_right(node_id):
            flags |= OpenFlag.KEEP_CACHE
        return next(self._handles), flags

    def release(self, handle: int) -> None:
        """Drop a handle, its listing, and what was packed for it and not fetched."""
        stream = self._streams.pop(handle, None)
        if stream is not None:
            with stream.lock:
                self._drop_ahead(stream)

    def forget(self, node_id: int) -> None:
        """Drop what is kept about a directory the kernel has dropped."""
        self._sent.pop(node_id, None)

    def read_plus(self, node_id: int, handle: int, offset: int, size_bytes: int, *, may_wait: bool) -> memoryview:
        """Return direntplus records from `offset` on, at most `size_bytes`; empty at the end."""
        stream, start = self._stream(node_id, handle, offset, may_wait=may_wait), max(offset - 2, 0)
        while True:
            stream.entries.wait_for(start, may_wait=may_wait)
            with stream.lock:
                is_complete = stream.entries.is_complete
                records = self._take_plus(stream, node_id, offset, start, size_bytes)
                if len(records) or is_complete:
                    return records
                start = stream.next_offset - 2  # all that came bears names the kernel would not take

    def _take_plus(self, stream: _Stream, node_id: int, offset: int, start: int, size_bytes: int) -> memoryview:
        ahead, end = stream.ahead, stream.ahead_end
        if ahead is not None and offset == stream.next_offset and len(ahead) <= size_bytes:
            stream.ahead, stream.next_offset = None, end
            return ahead
        self._drop_ahead(stream)
        buffer = memoryview(bytearray(size_bytes))
        used = self._put_dots(node_id, offset, buffer, plus=True)
        if used is None:
            return buffer[:0]
        records, stream.next_offset = self._pack(stream.entries.nodes, start, buffer[used:])
        return buffer[: used + len(records)]

    def pack_ahead(self, handle: int, size_bytes: int) -> None:
        """Pack the records that will be asked for next, while the caller is busy with those it got."""
        stream = self._streams.get(handle)
        if stream is None:
            return
        with stream.lock:
            if stream.ahead is None and stream.next_offset >= _FIRST_COOKIE:
                buffer, is_complete = memoryview(bytearray(size_bytes)), stream.entries.is_complete
                ahead, end = self._pack(stream.entries.nodes, stream.next_offset - 2, buffer)
                if len(ahead) or is_complete:  # else: empty would mean the end
                    stream.ahead, stream.ahead_end = ahead, end

    def read(self, node_id: int, handle: int, offset: int, size_bytes: int, *, may_wait: bool) -> memoryview:
        """Return plain dirent records, otherwise as `read_plus`."""
        stream, start = self._stream(node_id, handle, offset, may_wait=may_wait), max(offset - 2, 0)
        buffer = memoryview(bytearray(size_bytes))
        used = self._put_dots(node_id, offset, buffer, plus=False)
        if used is None:
            return buffer[:0]
        while True:
            stream.entries.wait_for(start, may_wait=may_wait)
            is_complete = stream.entries.is_complete
            start, end = self._packer.fill(stream.entries.nodes, start, _FIRST_COOKIE, buffer[used:])
            if end or is_complete:
                return buffer[: used + end]

    def take_back(self, records: bytes | memoryview) -> None:
        """Return the references that direntplus records would have given the kernel."""
        position = 0
        while position < len(records):
            node_id = int.from_bytes(records[position : position + 8], "little")
            _, _, length, _ = DIRENT_HEADER.unpack_from(records, position + ENTRY_OUT.size)
            position += ENTRY_OUT.size + DIRENT_HEADER.size + length + -length % 8
            if node_id:
                self._fs.forget(node_id, 1)

    def _pack(self, listing: Sequence[Node], start: int, buffer: memoryview) -> tuple[memoryview, int]:
        """Return records of `listing[start:]`, and the offset behind the last of them."""
        index, used = self._packer.fill_plus(listing, start, _FIRST_COOKIE, buffer)
        self._fs.remember_all([node for node in listing[start:index] if len(node.name) <= NAME_MAX_BYTES])
        return buffer[:used], index + 2

    def _drop_ahead(self, stream: _Stream) -> None:
        if stream.ahead is not None:
            self.take_back(stream.ahead)
            stream.ahead = None

    def _stream(self, node_id: int, handle: int, offset: int, *, may_wait: bool) -> _Stream:
        stream = self._streams.get(handle)
        if stream is None or offset == 0:  # the first read, a rewind, or a handle of our predecessor's
            now, mtime_ns = time.monotonic(), self._fs.node(node_id).mtime_ns
            entries = self._list(node_id, may_wait=may_wait)
            self.release(handle)
            stream = self._streams[handle] = _Stream(entries)
            self._sent[node_id] = (now, mtime_ns)
        return stream

    def _list(self, node_id: int, *, may_wait: bool) -> Entries:
        if isinstance(self._fs, StreamsDirectories):
            return self._fs.stream_dir(node_id, may_wait=may_wait)
        return Entries.of(self._fs.list_dir(node_id, may_wait=may_wait))

    def _put_dots(self, node_id: int, offset: int, buffer: memoryview, *, plus: bool) -> int | None:
        """Write `.` and `..` as far as `offset` asks for them; return their size, None if there is no room."""
        dots = b"".join(self._dot(node_id, index, plus=plus) for index in range(offset, 2))
        if len(dots) > len(buffer):
            return None
        buffer[: len(dots)] = dots
        return len(dots)

    def _dot(self, node_id: int, index: int, *, plus: bool) -> bytes:
        node = self._fs.node(node_id)
        if index and node.parent_id:
            node = self._fs.node(node.parent_id)
        # Node id 0: the kernel takes no reference and looks at nothing but the record.
        nothing = bytes(ENTRY_OUT.size) if plus else b""
        return nothing + dirent(node.ino, index + 1, _TYPE_DIRECTORY, _DOTS[index])

    def _kernel_is_right(self, node_id: int) -> bool:
        """Say whether the listing the kernel keeps is the present one, and its entries need not be looked up anew."""
        when, mtime_ns = self._sent.get(node_id, (float("-inf"), 0))
        if time.monotonic() - when >= self._entries_valid_s:
            return False
        try:
            if not self._pinned:
                self._fs.list_dir(node_id, may_wait=False)  # WouldBlock: what we know is too old to go by
            return self._fs.node(node_id).mtime_ns == mtime_ns
        except (WouldBlock, OSError):
            return False
