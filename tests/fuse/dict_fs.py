"""A file system for tests: nested dicts, bytes are files; names that begin with a word of TRICKS misbehave.

`slow*` waits for `release` (and raises WouldBlock first), `broken*` raises a bug, `eio*` an OSError when read.
"""

import errno
import threading
from collections.abc import Iterator, Mapping, Sequence

from amlmount.vfs.base import ROOT_NODE_ID, FsStats, Node, NodeKind, WouldBlock

Tree = Mapping[str, "bytes | str | Tree"]
MTIME_NS = 1_600_000_000_123_456_789


class DictFileSystem:
    """Nodes are numbered in the order of the tree. Directories list sorted by name, whole, as one list."""

    def __init__(self, tree: Tree) -> None:
        self.release = threading.Event()
        self._nodes: dict[int, Node] = {}
        self._content: dict[int, bytes] = {}
        self._children: dict[int, list[Node]] = {}
        self._by_name: dict[tuple[int, bytes], Node] = {}
        self._lock = threading.Lock()
        self.references = self.forgotten = 0
        self._add(0, b"", tree)

    def _add(self, parent_id: int, name: bytes, value: "bytes | str | Tree") -> Node:
        node_id = len(self._nodes) + ROOT_NODE_ID
        kind, size_bytes = NodeKind.DIRECTORY, 0
        if isinstance(value, bytes | str):
            kind = NodeKind.FILE if isinstance(value, bytes) else NodeKind.SYMLINK
            self._content[node_id] = value if isinstance(value, bytes) else value.encode()
            size_bytes = len(self._content[node_id])
        node = Node(node_id, node_id, parent_id, name, kind, size_bytes=size_bytes, mtime_ns=MTIME_NS)
        self._nodes[node_id] = self._by_name[parent_id, name] = node
        if not isinstance(value, bytes | str):
            self._children[node_id] = list(self._add_all(node_id, value))
        return node

    def _add_all(self, parent_id: int, tree: Tree) -> Iterator[Node]:
        for name in sorted(name.encode() for name in tree):
            yield self._add(parent_id, name, tree[name.decode()])

    def add(self, parent_id: int, name: bytes, content: bytes) -> None:
        """Put a file into a directory, whose mtime tells that its listing is another one."""
        node = self._add(parent_id, name, content)
        self._children[parent_id] = sorted([*self._children[parent_id], node], key=lambda one: one.name)
        self._nodes[parent_id].mtime_ns += 1

    def root(self) -> Node:
        return self._nodes[ROOT_NODE_ID]

    def node(self, node_id: int) -> Node:
        try:
            return self._nodes[node_id]
        except KeyError:
            raise OSError(errno.ESTALE, f"node {node_id}") from None

    def lookup(self, parent_id: int, name: bytes, *, may_wait: bool = True) -> Node:
        found = self._by_name.get((parent_id, name))
        if found is None:
            raise OSError(errno.ENOENT, repr(name))
        return found

    def getattr(self, node_id: int, *, may_wait: bool = True) -> Node:
        return self.node(node_id)

    def list_dir(self, node_id: int, *, may_wait: bool = True) -> list[Node]:
        return list(self._children[node_id])

    def read(self, node_id: int, offset: int, size_bytes: int, *, may_wait: bool = True) -> bytes:
        name = self.node(node_id).name
        if name.startswith(b"slow"):
            if not may_wait:
                raise WouldBlock
            self.release.wait(60)
        if name.startswith(b"broken"):
            raise RuntimeError("a bug, on purpose")
        if name.startswith(b"eio"):
            raise OSError(errno.EIO, "on purpose")
        return self._content[node_id][offset : offset + size_bytes]

    def readlink(self, node_id: int, *, may_wait: bool = True) -> bytes:
        return self._content[node_id]

    def statfs(self) -> FsStats:
        return FsStats(total_bytes=1 << 40, free_bytes=1 << 39, files=len(self._nodes))

    def remember(self, node: Node) -> None:
        with self._lock:
            self.references += 1
            node.nlookup += 1

    def remember_all(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self.remember(node)

    def forget(self, node_id: int, nlookup: int) -> None:
        with self._lock:
            self.references -= nlookup
            self.forgotten += nlookup
            self._nodes[node_id].nlookup -= nlookup

    def close(self) -> None:
        pass
