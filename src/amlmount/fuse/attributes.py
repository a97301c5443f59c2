"""Inodes as the structs the kernel wants: attributes, entries, and directory records, packed as fast as Python can.

What is the same for every inode of a mount (timeouts, owner, mode) is packed once, so a record costs one call.
"""

import stat
import struct
from collections.abc import Sequence

from amlmount.config.spec import Ownership, Policy
from amlmount.fuse.protocol import DIRENT_HEADER, NAME_MAX_BYTES
from amlmount.vfs.base import Node, NodeKind

_FOREVER_S = 10**9  # the kernel turns seconds into jiffies and clamps; infinity itself does not fit
_NS = 10**9
_BLOCK_BYTES = 4096
_TIMEOUTS = struct.Struct("<QQII")
_ATTR_TIMEOUT = struct.Struct("<QII")
_TAIL = struct.Struct("<7I")  # mode nlink uid gid rdev blksize flags
_ATTR = struct.Struct("<16s6Q3I28s")
# node id | generation | timeouts | ino size blocks, three times: seconds, then nanoseconds | tail
_ENTRY_FORMAT = "<QQ24s6Q3I28s"
_ENTRY = struct.Struct(_ENTRY_FORMAT)

Filled = tuple[int, int]  # where to go on in the listing, bytes written


def _split(seconds: float) -> tuple[int, int]:
    return divmod(int(min(max(seconds, 0.0), _FOREVER_S) * _NS), _NS)


def _kind(mode: int, nlink: int, ownership: Ownership) -> tuple[bytes, int]:
    """What all inodes of a kind share: the end of their attributes, and the type in a directory record."""
    return _TAIL.pack(mode, nlink, ownership.uid, ownership.gid, 0, _BLOCK_BYTES, 0), mode >> 12


class InodePacker:
    """Packs the nodes of one mount, with the timeouts of its policy and its owner and modes."""

    def __init__(self, policy: Policy, ownership: Ownership) -> None:
        entry_s, entry_ns = _split(policy.entry_timeout_s)
        attr_s, attr_ns = _split(policy.attr_timeout_s)
        self._timeouts = _TIMEOUTS.pack(entry_s, attr_s, entry_ns, attr_ns)
        self._attr_timeout = _ATTR_TIMEOUT.pack(attr_s, attr_ns, 0)
        negative_s, negative_ns = _split(policy.negative_timeout_s)
        self.negative_entry = struct.pack("<QQQQII88x", 0, 0, negative_s, 0, negative_ns, 0)
        self._kinds = {
            NodeKind.FILE: _kind(stat.S_IFREG | ownership.file_mode, 1, ownership),
            NodeKind.DIRECTORY: _kind(stat.S_IFDIR | ownership.dir_mode, 2, ownership),
            NodeKind.SYMLINK: _kind(stat.S_IFLNK | 0o777, 1, ownership),
        }
        self._records: dict[int, struct.Struct] = {}

    def attr(self, node: Node) -> bytes:
        """Struct fuse_attr_out: the reply to GETATTR."""
        seconds, ns = divmod(node.mtime_ns, _NS)
        size = node.size_bytes
        tail = self._kinds[node.kind][0]
        return _ATTR.pack(
            self._attr_timeout, node.ino, size, (size + 511) >> 9, seconds, seconds, seconds, ns, ns, ns, tail
        )

    def entry(self, node: Node) -> bytes:
        """Struct fuse_entry_out: the reply to LOOKUP."""
        seconds, ns = divmod(node.mtime_ns, _NS)
        size = node.size_bytes
        tail = self._kinds[node.kind][0]
        # fmt: off
        return _ENTRY.pack(
            node.node_id, 0, self._timeouts,
            node.ino, size, (size + 511) >> 9, seconds, seconds, seconds, ns, ns, ns, tail,
        )
        # fmt: on

    def fill_plus(self, listing: Sequence[Node], start: int, cookie: int, buffer: memoryview) -> Filled:
        """Write direntplus records of `listing[start:]` into `buffer`; the kernel gets a reference by each.

        `cookie` is the offset that the record of `listing[0]` bears; the kernel hands it back to go on behind it.
        A name the kernel would not take (it would refuse the whole directory) is left out.
        """
        records, kinds, timeouts = self._records, self._kinds, self._timeouts
        position, room = 0, len(buffer)
        for index in range(start, len(listing)):
            node = listing[index]
            name = node.name
            length = len(name)
            record = records.get(length)
            if record is None:
                if length > NAME_MAX_BYTES:
                    continue
                record = records[length] = struct.Struct(f"{_ENTRY_FORMAT}QQII{length + -length % 8}s")
            if position + record.size > room:
                return index, position
            size, ino = node.size_bytes, node.ino
            tail, type_ = kinds[node.kind]
            seconds, ns = divmod(node.mtime_ns, 1_000_000_000)
            # fmt: off
            record.pack_into(
                buffer, position, node.node_id, 0, timeouts,
                ino, size, (size + 511) >> 9, seconds, seconds, seconds, ns, ns, ns, tail,
                ino, cookie + index, length, type_, name,
            )
            # fmt: on
            position += record.size
        return len(listing), position

    def fill(self, listing: Sequence[Node], start: int, cookie: int, buffer: memoryview) -> Filled:
        """Write plain dirent records, otherwise as `fill_plus`; the kernel gets no reference by them."""
        position = 0
        for index in range(start, len(listing)):
            node = listing[index]
            if len(node.name) > NAME_MAX_BYTES:
                continue
            record = dirent(node.ino, cookie + index, self._kinds[node.kind][1], node.name)
            if position + len(record) > len(buffer):
                return index, position
            buffer[position : position + len(record)] = record
            position += len(record)
        return len(listing), position


def dirent(ino: int, cookie: int, type_: int, name: bytes) -> bytes:
    """One struct fuse_dirent, padded."""
    return DIRENT_HEADER.pack(ino, cookie, len(name), type_) + name + bytes(-len(name) % 8)
