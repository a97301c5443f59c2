"""Directories that somebody still holds, or works in: everything asked through them is done in the new mount.

So a program whose working directory lies in the mount goes on as if nothing had been.
"""

import errno
import itertools
import os
import stat
import struct
import threading
from collections.abc import Callable

from amlmount.fuse.protocol import ATTR_OUT, DIRENT_HEADER, ENTRY_OUT

FIRST_NEW_NODE = 1 << 40  # libfuse's own count to 2**32


class Directories:
    """Paths below the new mount, by node id. Methods raise OSError, which is the caller's answer."""

    def __init__(self, base: Callable[[], str | None], paths: dict[int, str]) -> None:
        """`base` is where the new mount is, if there is one."""
        self._base = base
        self._paths = dict(paths)
        self._nodes: dict[str, int] = {}
        self._listings: dict[int, list[tuple[bytes, int, int]]] = {}
        self._numbers = itertools.count(FIRST_NEW_NODE)
        self._lock = threading.Lock()

    def add(self, node_id: int, path: str) -> None:
        """Know one more."""
        with self._lock:
            self._paths.setdefault(node_id, path)

    def knows(self, node_id: int) -> bool:
        """Say whether somebody holds it, or found it by way of one that is held."""
        return node_id in self._paths

    def place(self, node_id: int, name: str = "") -> str:
        """Return where the new mount has it: EIO if there is none, ESTALE for a node that nobody holds."""
        if (path := self._paths.get(node_id)) is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        if (base := self._base()) is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.path.join(base, path, name).rstrip("/")

    def entry(self, parent: int, name: str) -> bytes:
        """Answer LOOKUP: attributes, and a node id that stays the same for a name; nothing is to be cached."""
        found = os.lstat(self.place(parent, name))
        path = os.path.join(self._paths[parent], name)
        with self._lock:
            node = self._nodes.setdefault(path, next(self._numbers))
            self._paths[node] = path
        return ENTRY_OUT.pack(node, 0, 0, 0, 0, 0, *attributes(node, found))

    def attr(self, node_id: int) -> bytes:
        """Answer GETATTR."""
        return ATTR_OUT.pack(0, 0, 0, *attributes(node_id, os.lstat(self.place(node_id))))

    def entries(self, node_id: int, offset: int, size_bytes: int, *, plus: bool) -> bytes:
        """Answer READDIR and READDIRPLUS. An offset is how many entries came before, as blobfuse2 counts them."""
        if offset == 0 or node_id not in self._listings:
            self._listings[node_id] = _listing(self.place(node_id))
        answer = bytearray()
        for number, (name, inode, kind) in enumerate(self._listings[node_id][offset:], offset + 1):
            record = DIRENT_HEADER.pack(inode, number, len(name), kind) + name
            record += bytes(-len(record) % 8)
            record = bytes(ENTRY_OUT.size) + record if plus else record  # node id 0: no attributes given
            if len(answer) + len(record) > size_bytes:
                break
            answer += record
        return bytes(answer)


def attributes(node_id: int, found: os.stat_result) -> tuple[int, ...]:
    """Return struct fuse_attr."""
    times = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
    seconds, rest = [time // 10**9 for time in times], [time % 10**9 for time in times]
    owner = (found.st_mode, found.st_nlink, found.st_uid, found.st_gid, 0, 4096, 0)
    return (node_id, found.st_size, (found.st_size + 511) // 512, *seconds, *rest, *owner)


def _listing(place: str) -> list[tuple[bytes, int, int]]:
    with os.scandir(place) as entries:
        return [(os.fsencode(entry.name), entry.inode(), _kind(entry)) for entry in entries]


def _kind(entry: "os.DirEntry[str]") -> int:
    mode = stat.S_IFLNK if entry.is_symlink() else stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else stat.S_IFREG
    return mode >> 12


def names_in(body: memoryview, count: int, skip: int = 0) -> list[str]:
    """Return NUL-ended names of a request. Raises struct.error for anything else."""
    parts = bytes(body[skip:]).split(b"\0")
    if len(parts) <= count:
        raise struct.error("a name that does not end")
    return [os.fsdecode(part) for part in parts[:count]]
