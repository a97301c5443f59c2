"""The inodes of a container's tree and the numbers that name them.

A number is a hash, so that a process that takes over gives the same one to the same thing.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol
from zlib import crc32

from amlmount.stores.base import ObjectInfo, ObjectStore
from amlmount.vfs.base import ROOT_NODE_ID, Node, NodeKind
from amlmount.vfs.entries import Entries
from amlmount.vfs.globs import Glob
from amlmount.vfs.names import HiddenReason, decode_segment

ID_BITS = 63
_FIRST_ID = ROOT_NODE_ID + 1
STALE = -math.inf
IS_SYMLINK = "is_symlink"  # metadata by which blobfuse2 tells a symlink; the target is the content
_FILE = NodeKind.FILE
_SPREAD = 0x9E3779B97F4A7C15  # odd: two sums never come to the same


class Source:
    """One container, or the part of it below `prefix` (empty, or ending in `/`), as the tree sees it."""

    __slots__ = ("glob", "index", "name", "prefix", "store")

    def __init__(self, index: int, name: str, store: ObjectStore, prefix: str = "", glob: Glob | None = None) -> None:
        """`index` is its place in the mount's list of sources and part of every inode number."""
        self.index = index
        self.name = name
        self.store = store
        self.prefix = prefix
        self.glob = glob


class FileNode(Node):
    """One version of one blob. It never changes: another etag is another node."""

    __slots__ = ("source",)

    def __init__(self, node_id: int, ino: int, parent_id: int, name: bytes, source: Source, info: ObjectInfo) -> None:
        # Not by super(): a listing makes millions of these, and this halves the time.
        self.node_id = node_id
        self.ino = ino
        self.parent_id = parent_id
        self.name = name
        self.kind = _FILE
        self.source = source
        self.blob_name, self.size_bytes, self.etag, self.mtime_ns, _ = info
        self.nlookup = 0


class DirectoryNode(Node):
    """A prefix of a container, or the plain top directory of several (`source` None).

    `listed_at` is the clock's time when the listing that `children` show was begun, None if there was none yet,
    STALE if it is not to be relied on. `children` is replaced, never changed in place: a reader may keep it.
    """

    __slots__ = ("children", "fetch", "hidden", "listed_at", "path", "source")

    def __init__(
        self, node_id: int, ino: int, parent_id: int, name: bytes, source: Source | None, path: str, mtime_ns: int
    ) -> None:
        """`path` is relative to the source: empty, or ending in `/`."""
        super().__init__(node_id, ino, parent_id, name, NodeKind.DIRECTORY, mtime_ns=mtime_ns)
        self.source = source
        self.path = path
        self.blob_name = source.prefix + path if source else ""
        self.children: dict[bytes, Node] = {}
        self.listed_at: float | None = None
        self.fetch: Fetch | None = None
        self.hidden: Counter[HiddenReason] | None = None


class Fetch:
    """A listing under way, begun at `started_at`. Guarded by the lock of the file system.

    `children` and `entries` are what has come so far; `before` what the directory held, if that was something else.
    """

    __slots__ = ("before", "children", "done", "entries", "error", "started_at", "superseded")

    def __init__(self, started_at: float, entries: Entries) -> None:
        self.started_at = started_at
        self.entries = entries
        self.children: dict[bytes, Node] = {}
        self.before: dict[bytes, Node] | None = None
        self.done = False
        self.error: BaseException | None = None
        self.superseded = False


class _Hash(Protocol):
    def copy(self) -> "_Hash": ...
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class Numbers:
    """Makes inode numbers of `bits` bits; tests take few, to see collisions.

    The number of a file's version is that of its path, mixed with a sum of its etag: one hash less for every name.
    """

    def __init__(self, bits: int = ID_BITS) -> None:
        self._mask = (1 << bits) - 1

    def directory_hash(self, source_index: int, path: str) -> _Hash:
        """Return the hash of a directory's path, to be continued by the names of its entries."""
        text = f"{source_index}\0{path}".encode("utf-8", "surrogateescape")
        return blake2b(text, digest_size=8)

    def number(self, state: _Hash) -> int:
        """Return the number for a hash: never 0 or 1."""
        return max(int.from_bytes(state.digest(), "little") & self._mask, _FIRST_ID)

    def maker(self, directory: DirectoryNode, source: Source) -> Callable[[bytes, ObjectInfo], FileNode]:
        """Return a function that makes the nodes of a directory's files: one hash an entry, from a common start."""
        copy, mask = self.directory_hash(source.index, directory.path).copy, self._mask
        return functools.partial(_make_file, copy, mask, directory.node_id, source)

    def make_directory(self, parent: DirectoryNode, source: Source, name: bytes, mtime_ns: int) -> DirectoryNode:
        """Make the node of a directory within a source; its number and its ino are one."""
        state = self.directory_hash(source.index, parent.path)
        state.update(name)
        number = self.number(state)
        path = f"{parent.path}{decode_segment(name)}/"
        return DirectoryNode(number, number, parent.node_id, name, source, path, mtime_ns)

    def next_number(self, node: Node, attempt: int) -> int:
        """Return another number for a node whose own is taken by something else."""
        text = b"%d\0%d\0%s\0%s" % (attempt, node.parent_id, node.name, node.etag.encode("utf-8", "surrogateescape"))
        return self.number(blake2b(text, digest_size=8))


def _make_file(
    copy: Callable[[], _Hash], mask: int, parent_id: int, source: Source, name: bytes, info: ObjectInfo
) -> FileNode:
    state = copy()
    state.update(name)
    ino = int.from_bytes(state.digest(), "little") & mask
    node_id = (ino ^ (crc32(info.etag.encode("utf-8", "surrogateescape")) + 1) * _SPREAD) & mask
    if ino < _FIRST_ID or node_id < _FIRST_ID:
        ino, node_id = max(ino, _FIRST_ID), max(node_id, _FIRST_ID)
    node = FileNode(node_id, ino, parent_id, name, source, info)
    if info.metadata and info.metadata.get(IS_SYMLINK) == "true":
        node.kind = NodeKind.SYMLINK
    return node
