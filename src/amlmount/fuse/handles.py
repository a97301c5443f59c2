"""Handles of open files, and files on disk that the kernel reads by itself in their stead (FUSE_PASSTHROUGH).

One inode, one way: while a handle of an inode is open, others must be of its kind and have the same backing id, or
the kernel refuses them with EIO (fs/fuse/iomode.c). So the kind is chosen when an inode is opened first, and kept
until its last RELEASE, over the death of this process too.
"""

import errno
import fcntl
import itertools
import logging
import os
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from amlmount.fuse.protocol import OPEN_OUT, OpenFlag
from amlmount.vfs.base import Node, OpenFiles

# include/uapi/linux/fuse.h: FUSE_DEV_IOC_BACKING_OPEN and _CLOSE
_BACKING_OPEN = 0x4010E501
_BACKING_CLOSE = 0x4004E502
_BACKING_MAP = struct.Struct("<iIQ")  # fd, flags, padding
_U64 = struct.Struct("<Q")
_SLOT = struct.Struct("<QQQ")
_WHY_NOT = {
    errno.ELOOP: "the cache lies on an overlay file system",
    errno.EPERM: "it needs CAP_SYS_ADMIN",
    errno.EOPNOTSUPP: "the cache's file system cannot be read by the kernel that way",
}
log = logging.getLogger(__name__)


class BackingFiles:
    """Registers files with a connection that negotiated Feature.PASSTHROUGH; gives up at the first refusal."""

    def __init__(self, fuse_fd: int) -> None:
        self._fuse_fd = fuse_fd
        self.is_usable = True

    def register(self, fd: int) -> int:
        """Return a backing id for the file behind `fd`, 0 if the kernel will have none."""
        try:
            return int(fcntl.ioctl(self._fuse_fd, _BACKING_OPEN, bytearray(_BACKING_MAP.pack(fd, 0, 0))))
        except OSError as error:
            self.is_usable = False
            why = _WHY_NOT.get(error.errno or 0, error.strerror)
            log.info("files that are whole in the cache are read through this process: %s", why)
            return 0

    def close(self, backing_id: int) -> None:
        """Give an id back; handles that were opened with it keep their file."""
        try:
            fcntl.ioctl(self._fuse_fd, _BACKING_CLOSE, struct.pack("<I", backing_id))
        except OSError as error:
            log.debug("cannot close backing id %d: %s", backing_id, error)


class Open(NamedTuple):
    """A handle as it is written down. `backing_id` is 0 for one that is read through us."""

    handle: int
    node_id: int
    backing_id: int
    slot: int


class Ledger:
    """The open handles of a connection in memory that a successor reads: fixed slots behind the number of those used.

    A slot is (handle, node id, backing id); handle 0 is a free one. Backing ids belong to the connection and stay
    valid when the process that got them dies.
    """

    def __init__(self, memory: memoryview) -> None:
        """`memory` is all zeros, or what a predecessor left."""
        self._memory = memory
        (self._used,) = _U64.unpack_from(memory)
        self._free: list[int] = []

    def left(self) -> list[Open]:
        """Return what is open; call it before anything else."""
        found = [self._read(slot) for slot in range(1, self._used + 1)]
        self._free = [one.slot for one in found if not one.handle]
        return [one for one in found if one.handle]

    def _read(self, slot: int) -> Open:
        handle, node_id, backing_id = _SLOT.unpack_from(self._memory, slot * _SLOT.size)
        return Open(handle, node_id, backing_id, slot)

    def enter(self, handle: int, node_id: int, backing_id: int) -> int:
        """Write a handle down and return its slot, 0 if there is no room."""
        slot = self._free.pop() if self._free else self._used + 1
        if (slot + 1) * _SLOT.size > len(self._memory):
            return 0
        _SLOT.pack_into(self._memory, slot * _SLOT.size, handle, node_id, backing_id)
        if slot > self._used:
            self._used = slot
            _U64.pack_into(self._memory, 0, slot)
        return slot

    def strike(self, slot: int) -> None:
        """Take a handle out."""
        if slot:
            _SLOT.pack_into(self._memory, slot * _SLOT.size, 0, 0, 0)
            self._free.append(slot)


@dataclass(slots=True)
class _OpenInode:
    """An inode that is open. `backing_id` is what every one of its handles has, a predecessor's too; 0: cached."""

    backing_id: int = 0
    count: int = 0


class OpenInodes:
    """Which inodes are open, and how the kernel reads and writes each. Methods may be called from any thread.

    `backings` registers files, once it is known that the kernel can read them; `ledger` has what a predecessor left
    open, and gets what is opened here.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.backings: BackingFiles | None = None
        self._ledger = ledger
        self._lock = threading.Lock()
        self._handles: dict[int, Open] = {one.handle: one for one in (ledger.left() if ledger else ())}
        self._inodes: dict[int, _OpenInode] = {}
        for one in self._handles.values():
            self._inodes.setdefault(one.node_id, _OpenInode(one.backing_id)).count += 1

    def enter(self, handle: int, node_id: int, find_file: Callable[[], int | None]) -> tuple[int, bool]:
        """Count a handle, which is the inode's first or like the others. Returns the backing id, 0 if it is cached,
        and whether that is of what `find_file` found: a descriptor that is closed here, asked for at the first handle.
        """
        with self._lock:
            self._strike(handle)  # of a request that is sent again, because it was never answered
            inode, is_first = self._inodes.get(node_id), False
            if inode is None:
                inode = self._inodes[node_id] = _OpenInode(self._back(find_file))
                is_first = inode.backing_id > 0
            inode.count += 1
            slot = self._ledger.enter(handle, node_id, inode.backing_id) if self._ledger else 0
            self._handles[handle] = Open(handle, node_id, inode.backing_id, slot)
            return inode.backing_id, is_first

    def _back(self, find_file: Callable[[], int | None]) -> int:
        if self.backings is None or not self.backings.is_usable:
            return 0
        fd = find_file()
        if fd is None:
            return 0
        try:
            return self.backings.register(fd)
        finally:
            os.close(fd)

    def leave(self, handle: int) -> bool:
        """Forget a handle, ours or a predecessor's; False for one that is not known, or not any more."""
        with self._lock:
            return self._strike(handle)

    def is_backed(self, node_id: int) -> bool:
        """Say whether an inode is open, and the kernel reads and writes a file in its stead."""
        with self._lock:
            inode = self._inodes.get(node_id)
            return inode is not None and inode.backing_id > 0

    def count(self, node_id: int) -> int:
        """Return how many handles of an inode there are, a predecessor's among them."""
        with self._lock:
            inode = self._inodes.get(node_id)
            return inode.count if inode is not None else 0

    def counts(self) -> dict[int, int]:
        """Return how many handles there are of each inode that has any, by its node id."""
        with self._lock:
            return {node_id: inode.count for node_id, inode in self._inodes.items()}

    def _strike(self, handle: int) -> bool:
        known = self._handles.pop(handle, None)
        if known is None:
            return False
        if self._ledger:
            self._ledger.strike(known.slot)
        inode = self._inodes[known.node_id]
        inode.count -= 1
        if inode.count == 0:
            del self._inodes[known.node_id]
            if inode.backing_id and self.backings:
                self.backings.close(inode.backing_id)
        return True


class Handles:
    """Handles of a mount that is only read; used by the thread that reads its requests, and by no other."""

    def __init__(self, files: OpenFiles, flags: OpenFlag, ledger: Ledger | None = None) -> None:
        """`flags` is what an OPEN is answered with when the kernel does not read the file by itself."""
        self.inodes = OpenInodes(ledger)
        self._files = files
        self._flags = flags
        self._numbers = itertools.count(time.time_ns())  # those of a successor never meet ours
        self._nodes: dict[int, Node] = {}  # of the handles we made

    def open(self, node: Node) -> bytes:
        """Return the reply to an OPEN. Raises OSError ESTALE if this version of the file is gone."""
        self._files.opened(node)
        handle = next(self._numbers)
        backing_id, _ = self.inodes.enter(handle, node.node_id, lambda: self._files.whole_file(node))
        self._nodes[handle] = node
        return OPEN_OUT.pack(handle, OpenFlag.PASSTHROUGH if backing_id else self._flags, backing_id)

    def release(self, handle: int) -> None:
        """Forget a handle, ours or a predecessor's."""
        self.inodes.leave(handle)
        if node := self._nodes.pop(handle, None):
            self._files.released(node)
