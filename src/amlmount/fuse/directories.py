"""Open directories: each handle streams one listing, at offsets that stay valid until it is closed or rewound.

Offset 0 takes a fresh listing; 1 and 2 stand behind `.` and `..`, and 3 + i behind entry i.
"""

import itertools
import threading
import time
from collections.abc import Sequence

from amlmount.config.spec import Policy
from amlmount.fuse.attributes import InodePacker, Sent, dirent
from amlmount.fuse.protocol import ENTRY_OUT, OpenFlag
from amlmount.vfs.base import FileSystem, Node, WouldBlock

_DOTS = (b".", b"..")
_TYPE_DIRECTORY = 4  # DT_DIR


class Directories:
    """The open directories of a connection. Handles are made from a random start: a successor's never meet ours."""

    def __init__(self, fs: FileSystem, policy: Policy, packer: InodePacker) -> None:
        self._fs = fs
        self._packer = packer
        self._pinned = policy.pinned
        self._entries_valid_s = min(policy.entry_timeout_s, policy.attr_timeout_s)
        self._handles = itertools.count(time.time_ns())
        self._open: dict[int, Sequence[Node]] = {}
        self._sent: dict[int, tuple[float, Sequence[Node]]] = {}  # node id -> when and what the kernel was told last
        self._lock = threading.Lock()  # guards _sent against pool threads

    def open(self, node_id: int) -> tuple[int, OpenFlag]:
        """Return a handle and the flags of the reply; raises OSError ESTALE for an unknown node."""
        self._fs.node(node_id)
        flags = OpenFlag.CACHE_DIR
        if self._kernel_is_right(node_id):
            flags |= OpenFlag.KEEP_CACHE
        return next(self._handles), flags

    def release(self, handle: int) -> None:
        """Drop the listing of a handle."""
        self._open.pop(handle, None)

    def forget(self, node_id: int) -> None:
        """Drop what is kept about a directory the kernel has dropped."""
        self._sent.pop(node_id, None)

    def read_plus(
        self, node_id: int, handle: int, offset: int, size_bytes: int, sent: Sent, *, may_wait: bool
    ) -> memoryview:
        """Return direntplus records from `offset` on, at most `size_bytes`; empty at the end."""
        listing = self._listing(node_id, handle, offset, may_wait=may_wait)
        buffer, start = self._begin(node_id, offset, size_bytes, plus=True)
        if offset < 2 and start == 0:  # not even the dots fitted
            return buffer[:0]
        _, end = self._packer.fill_plus(listing, max(offset - 2, 0), 3, buffer[start:], sent)
        return buffer[: start + end]

    def read(self, node_id: int, handle: int, offset: int, size_bytes: int, *, may_wait: bool) -> memoryview:
        """Return plain dirent records, otherwise as `read_plus`."""
        listing = self._listing(node_id, handle, offset, may_wait=may_wait)
        buffer, start = self._begin(node_id, offset, size_bytes, plus=False)
        if offset < 2 and start == 0:
            return buffer[:0]
        _, end = self._packer.fill(listing, max(offset - 2, 0), 3, buffer[start:])
        return buffer[: start + end]

    def _listing(self, node_id: int, handle: int, offset: int, *, may_wait: bool) -> Sequence[Node]:
        listing = self._open.get(handle) if offset else None
        if listing is None:  # the first read, a rewind, or a handle of our predecessor's
            listing = self._fs.list_dir(node_id, may_wait=may_wait)
            self._open[handle] = listing
            with self._lock:
                self._sent[node_id] = (time.monotonic(), listing)
        return listing

    def _begin(self, node_id: int, offset: int, size_bytes: int, *, plus: bool) -> tuple[memoryview, int]:
        """A reply buffer, with `.` and `..` written as far as `offset` asks for them."""
        head = b"".join(self._dot(node_id, index, plus=plus) for index in range(offset, 2))
        buffer = memoryview(bytearray(size_bytes))
        if len(head) > size_bytes:
            return buffer, 0
        buffer[: len(head)] = head
        return buffer, len(head)

    def _dot(self, node_id: int, index: int, *, plus: bool) -> bytes:
        node = self._fs.node(node_id)
        if index and node.parent_id:
            node = self._fs.node(node.parent_id)
        # Node id 0: the kernel takes no reference and looks at nothing but the record.
        nothing = bytes(ENTRY_OUT.size) if plus else b""
        return nothing + dirent(node.ino, index + 1, _TYPE_DIRECTORY, _DOTS[index])

    def _kernel_is_right(self, node_id: int) -> bool:
        """Say whether the listing the kernel keeps is the present one, and its entries need not be looked up anew."""
        when, listing = self._sent.get(node_id, (0.0, None))
        if listing is None or time.monotonic() - when >= self._entries_valid_s:
            return False
        if self._pinned:
            return True
        try:
            return self._fs.list_dir(node_id, may_wait=False) is listing
        except (WouldBlock, OSError):
            return False
