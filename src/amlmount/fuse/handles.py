"""Handles of open files, and files on disk that the kernel reads by itself in their stead (FUSE_PASSTHROUGH).

One inode, one way: while a handle of an inode is open, others must be of its kind, or the kernel refuses them with
EIO (fs/fuse/iomode.c). So the kind is chosen when an inode is opened first, and kept until its last RELEASE.
"""

import errno
import fcntl
import itertools
import logging
import os
import struct
import time
from dataclasses import dataclass

from amlmount.fuse.protocol import OPEN_OUT, OpenFlag
from amlmount.vfs.base import Node, OpenFiles

# include/uapi/linux/fuse.h: FUSE_DEV_IOC_BACKING_OPEN and _CLOSE
_BACKING_OPEN = 0x4010E501
_BACKING_CLOSE = 0x4004E502
_BACKING_MAP = struct.Struct("<iIQ")  # fd, flags, padding
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


@dataclass(slots=True)
class _OpenInode:
    node: Node
    count: int = 0
    backing_id: int = 0


class Handles:
    """What is open on a connection; used by the thread that reads its requests, and by no other."""

    def __init__(self, files: OpenFiles, flags: OpenFlag) -> None:
        """`flags` is what an OPEN is answered with when the kernel does not read the file by itself."""
        self._files = files
        self._flags = flags
        self._numbers = itertools.count(time.time_ns())  # those of a successor never meet ours
        self._handles: dict[int, _OpenInode] = {}
        self._inodes: dict[int, _OpenInode] = {}
        self.backings: BackingFiles | None = None

    def open(self, node: Node) -> bytes:
        """Return the reply to an OPEN. Raises OSError ESTALE if this version of the file is gone."""
        self._files.opened(node)
        inode = self._inodes.get(node.node_id)
        if inode is None:
            inode = self._inodes[node.node_id] = _OpenInode(node)
            inode.backing_id = self._back(node)
        inode.count += 1
        handle = next(self._numbers)
        self._handles[handle] = inode
        flags = OpenFlag.PASSTHROUGH if inode.backing_id else self._flags
        return OPEN_OUT.pack(handle, flags, inode.backing_id)

    def release(self, handle: int) -> None:
        """Forget a handle; one of a predecessor's is none of ours."""
        inode = self._handles.pop(handle, None)
        if inode is None:
            return
        self._files.released(inode.node)
        inode.count -= 1
        if inode.count == 0:
            del self._inodes[inode.node.node_id]
            if inode.backing_id and self.backings:
                self.backings.close(inode.backing_id)

    def _back(self, node: Node) -> int:
        if self.backings is None or not self.backings.is_usable:
            return 0
        fd = self._files.whole_file(node)
        if fd is None:
            return 0
        try:
            return self.backings.register(fd)
        finally:
            os.close(fd)
