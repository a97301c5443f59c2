"""Messages to the kernel that no request asked for: drop, fill or expire what it caches, send again what is open.

Each is one write. Rules, all of them tried: never send one from the thread that reads requests, or while holding a
lock which answering a request needs: the kernel may first wait for a page or an inode that only an answer releases.
STORE blocks on a page that an unanswered READ has locked: answer the waiting READs of a node, and do not store it.
"""

import errno
import os
import struct

from amlmount.fuse.protocol import OUT_HEADER, NotifyCode

_INVAL_INODE = struct.Struct("<Qqq")
_INVAL_ENTRY = struct.Struct("<QII")
_DELETE = struct.Struct("<QQII")
_STORE = struct.Struct("<QQII")
_EXPIRE_ONLY = 1
_UNKNOWN = {errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EPERM}


class Notifier:
    """Send notifications on a connection. Every method returns False if the kernel does not know the node or name
    (any more), or the connection has ended; raises OSError for anything else."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def inval_inode(self, node_id: int, offset: int = 0, length: int = 0) -> bool:
        """Drop attributes and the pages of `[offset, offset + length)`; length 0: to the end; offset < 0: no pages."""
        return self._send(NotifyCode.INVAL_INODE, _INVAL_INODE.pack(node_id, offset, length))

    def inval_entry(self, parent_id: int, name: bytes) -> bool:
        """Forget that `name` leads anywhere; the next use looks it up."""
        return self._send(NotifyCode.INVAL_ENTRY, _INVAL_ENTRY.pack(parent_id, len(name), 0), name + b"\0")

    def expire_entry(self, parent_id: int, name: bytes) -> bool:
        """Let the timeout of `name` have run out, without detaching what is mounted or open below it.

        Needs Feature.HAS_EXPIRE_ONLY (7.38, Linux 6.2); an older kernel forgets the name, as `inval_entry` does.
        """
        return self._send(NotifyCode.INVAL_ENTRY, _INVAL_ENTRY.pack(parent_id, len(name), _EXPIRE_ONLY), name + b"\0")

    def delete(self, parent_id: int, child_id: int, name: bytes) -> bool:
        """Say that `name` was deleted: as `inval_entry`, and watchers (inotify) are told."""
        return self._send(NotifyCode.DELETE, _DELETE.pack(parent_id, child_id, len(name), 0), name + b"\0")

    def store(self, node_id: int, offset: int, data: bytes | memoryview) -> bool:
        """Put content into the page cache. `data` should be whole pages, or end where the file ends.

        The node must have been sent to the kernel before (after the reply to READDIRPLUS or LOOKUP was written),
        and no READ of it may be waiting for an answer, or this blocks until there is one.
        """
        return self._send(NotifyCode.STORE, _STORE.pack(node_id, offset, len(data), 0), data)

    def resend(self) -> bool:
        """Have everything sent again that was read and never answered, bit 63 set in `unique`.

        For a successor, before it reads. Needs Linux 6.9 (7.40); raises OSError EINVAL on an older kernel.
        """
        return self._send(NotifyCode.RESEND, b"")

    def _send(self, code: NotifyCode, head: bytes, tail: bytes | memoryview = b"") -> bool:
        length = OUT_HEADER.size + len(head) + len(tail)
        try:
            os.writev(self._fd, (OUT_HEADER.pack(length, code, 0), head, tail))
        except OSError as error:
            if error.errno in _UNKNOWN:
                return False
            raise
        return True
