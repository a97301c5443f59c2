"""What a file system offers to whoever serves it (the FUSE adapter, a test): the contract, and its values.

Concurrency contract. Every operation takes `may_wait`. With False it must not touch a store that is not
local or wait for a lock that somebody holds over a store call: it raises WouldBlock instead, and the caller
repeats it with True from a thread that may wait. So the one thread that reads the kernel's requests never waits.

Errors are OSError with the errno the kernel shall see; the translation from store errors stands in
`vfs/errno.py` and nowhere else.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

ROOT_NODE_ID = 1


class WouldBlock(Exception):
    """The answer needs the store; ask again with may_wait=True."""


class NodeKind(enum.Enum):
    """What an inode is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


class Node:
    """One inode: a directory, or one version of a blob, that is one (path, etag).

    `node_id` (the kernel's handle) differs between two versions of a path; `ino` (what stat shows) does not.
    Both are derived from path and etag, so they mean the same to the process that takes over after a crash.
    `nlookup` counts the references the kernel holds (lookup and readdirplus give one each, forget takes them back).
    """

    __slots__ = (
        "blob_name",
        "etag",
        "ino",
        "kind",
        "mtime_ns",
        "name",
        "nlookup",
        "node_id",
        "parent_id",
        "size_bytes",
    )

    def __init__(
        self,
        node_id: int,
        ino: int,
        parent_id: int,
        name: bytes,
        kind: NodeKind,
        *,
        blob_name: str = "",
        size_bytes: int = 0,
        mtime_ns: int = 0,
        etag: str = "",
    ) -> None:
        self.node_id = node_id
        self.ino = ino
        self.parent_id = parent_id
        self.name = name
        self.kind = kind
        self.blob_name = blob_name
        self.size_bytes = size_bytes
        self.mtime_ns = mtime_ns
        self.etag = etag
        self.nlookup = 0


@dataclass(frozen=True, slots=True)
class FsStats:
    """What statfs reports: totals in bytes and in files."""

    total_bytes: int
    free_bytes: int
    files: int


class FileSystem(Protocol):
    """A tree of inodes. Read-only for now; see docs/semantics.md for what each operation promises."""

    def root(self) -> Node:
        """Return the root directory; never waits."""
        ...

    def lookup(self, parent_id: int, name: bytes, *, may_wait: bool = True) -> Node:
        """Return the entry `name` of a directory. Raises OSError ENOENT, ENOTDIR, ESTALE, EIO, EACCES, ENAMETOOLONG."""
        ...

    def node(self, node_id: int) -> Node:
        """Return an inode the kernel knows; OSError ESTALE for an unknown one (the VFS then walks the path anew)."""
        ...

    def getattr(self, node_id: int, *, may_wait: bool = True) -> Node:
        """Return the inode, asked for anew if its attributes are older than the policy allows."""
        ...

    def list_dir(self, node_id: int, *, may_wait: bool = True) -> Sequence[Node]:
        """Return the entries of a directory, fresh within the policy, without `.` and `..`.

        Sorted by name, a directory as if its name ended in `/`: the order in which Azure lists.
        """
        ...

    def read(self, node_id: int, offset: int, size_bytes: int, *, may_wait: bool = True) -> bytes | memoryview:
        """Return bytes of exactly the version this inode stands for; short only at its end. ESTALE if it is gone."""
        ...

    def readlink(self, node_id: int, *, may_wait: bool = True) -> bytes:
        """Return the target of a symlink."""
        ...

    def statfs(self) -> FsStats:
        """Return totals that make `df` sensible; never waits."""
        ...

    def remember(self, node: Node) -> None:
        """Count one reference the kernel now holds (an entry was sent to it)."""
        ...

    def remember_all(self, nodes: Sequence[Node]) -> None:
        """Do what `remember` does for each: a directory's entries were sent."""
        ...

    def forget(self, node_id: int, nlookup: int) -> None:
        """Take references back; an inode nobody refers to and that is not current is dropped."""
        ...

    def close(self) -> None:
        """Give back stores and threads."""
        ...


@runtime_checkable
class OpenFiles(Protocol):
    """A file system that wants to know what is open, and may have a file on disk behind an inode."""

    @property
    def tracks_opens(self) -> bool:
        """False if what follows is of no use here: everything is local."""
        ...

    def opened(self, node: Node) -> None:
        """A handle of a file is made. Raises OSError ESTALE for a version that is gone: the path is walked anew."""
        ...

    def released(self, node: Node) -> None:
        """A handle of a file is gone."""
        ...

    def whole_file(self, node: Node) -> int | None:
        """Return a descriptor of a file on a local disk whose bytes are exactly this inode's; the caller closes it."""
        ...

    def use_page_cache(self, store_page: Callable[[int, bytes | memoryview], object]) -> None:
        """Take a function that puts the bytes of a whole file into the kernel's page cache: `(node_id, bytes)`.

        It is called only from threads that answer no request (fuse/notify.py says why).
        """
        ...
