"""What a process that takes over must know of the inodes the kernel holds: written down as listings arrive.

Each record is one change of the tree, in order: a directory's entries that came and went, or inodes that no path
leads to any more but somebody may have open. A successor that replays them knows every inode its predecessor knew,
by the same number, and shows what it showed, without asking a store.
"""

import marshal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from amlmount.stores.base import ObjectInfo
from amlmount.vfs.base import Node, NodeKind
from amlmount.vfs.names import HiddenReason, decode_segment
from amlmount.vfs.nodes import DirectoryNode, FileNode, Source
from amlmount.vfs.tree import Tree

_OPENED, _LISTED, _HELD, _CHANGED = 0, 1, 2, 3
_FILE = NodeKind.FILE
_HELD_BY_KERNEL = 1  # what we take a restored inode's references for: it is dropped at the kernel's next forget
# name, node id, ino, size (of a directory: -1; of a symlink: -2 less its size), mtime, etag
_Entry = tuple[bytes, int, int, int, int, str]


class Journal(Protocol):
    """Where records go, in an order that a crash at any moment keeps. Called with the tree lock held."""

    def append(self, record: bytes) -> None:
        """Add one record."""
        ...

    @property
    def wants_rewrite(self) -> bool:
        """Say whether most of what it holds is outdated."""
        ...

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Replace everything by `records`."""
        ...


class Succession:
    """Writes the changes of one tree into a journal. Needs the tree lock for every call."""

    def __init__(self, tree: Tree, journal: Journal) -> None:
        self._tree = tree
        self._journal = journal
        journal.rewrite(_dump(tree))

    def listed(self, directory: DirectoryNode, before: dict[bytes, Node]) -> None:
        """Note that `directory.children` took the place of `before`."""
        if self._tree.nodes.get(directory.node_id) is not directory:
            return  # dropped while it was being listed
        self._journal.append(_listed(directory, before))
        self._rewrite_if_wanted()

    def changed(self, changes: Sequence[tuple[DirectoryNode, Iterable[Node], Iterable[bytes]]]) -> None:
        """Note, as one step, names of directories that lead to something else now (came), or nowhere (went).

        An inode that came may have been somewhere else before; what went is noted before what came.
        """
        known = [change for change in changes if self._tree.nodes.get(change[0].node_id) is change[0]]
        steps = [
            (directory.node_id, directory.listed_at, directory.mtime_ns, [_entry(node) for node in came], list(went))
            for directory, came, went in known
        ]
        self._journal.append(marshal.dumps((_CHANGED, steps)))
        self._rewrite_if_wanted()

    def _rewrite_if_wanted(self) -> None:
        if self._journal.wants_rewrite:
            self._journal.rewrite(_dump(self._tree))


def replay(tree: Tree, sources: Sequence[Source], records: Iterable[bytes]) -> None:
    """Bring a new tree over the same sources to where its predecessor's was. Needs the tree lock.

    Raises ValueError, EOFError, TypeError or KeyError if these are not records of this very version.
    """
    for record in records:
        kind, *fields = marshal.loads(record)
        if kind == _LISTED:
            _replay_listing(tree, *fields)
        elif kind == _CHANGED:
            for step in fields[0]:
                _replay_change(tree, *step)
        elif kind == _HELD:
            _replay_held(tree, sources, *fields)
        else:
            tree.set_opened(*fields)


def _dump(tree: Tree) -> Iterator[bytes]:
    """Yield records that bring an empty tree to where this one is, parents first."""
    yield marshal.dumps((_OPENED, tree.opened_ns))
    for directory in tree.listed_below(tree.root):
        yield _listed(directory, {})
    held = [_held(node) for node in tree.nodes.values() if node.nlookup > 0 and not tree.is_current(node)]
    if held:
        yield marshal.dumps((_HELD, held))


def _listed(directory: DirectoryNode, before: dict[bytes, Node]) -> bytes:
    children = directory.children
    known = before.get
    came = [  # not by _entry where it need not be: this is a third of what a listing's record costs
        (name, node.node_id, node.ino, node.size_bytes, node.mtime_ns, node.etag)
        if node.kind is _FILE
        else _entry(node)
        for name, node in children.items()
        if known(name) is not node
    ]
    return _record(directory, came, [name for name in before if name not in children])


def _record(directory: DirectoryNode, came: list[_Entry], went: list[bytes]) -> bytes:
    hidden = [(reason.name, count) for reason, count in (directory.hidden or {}).items()]
    facts = (directory.node_id, directory.listed_at, directory.mtime_ns)
    return marshal.dumps((_LISTED, *facts, came, went, hidden))


def _entry(node: Node) -> _Entry:
    size = -1 if node.kind is NodeKind.DIRECTORY else node.size_bytes
    if node.kind is NodeKind.SYMLINK:
        size = -2 - size
    return node.name, node.node_id, node.ino, size, node.mtime_ns, node.etag


def _held(node: Node) -> tuple[Any, ...]:
    assert isinstance(node, FileNode | DirectoryNode)
    path = node.path if isinstance(node, DirectoryNode) else node.blob_name
    return (_entry(node), node.parent_id, node.source.index if node.source else -1, path)


def _replay_listing(
    tree: Tree,
    node_id: int,
    listed_at: float | None,
    mtime_ns: int,
    came: list[_Entry],
    went: list[bytes],
    hidden: list[tuple[str, int]],
) -> None:
    directory = tree.nodes[node_id]
    if not isinstance(directory, DirectoryNode) or directory.source is None:
        raise ValueError(f"inode {node_id} is no directory of a container")
    children = dict(directory.children)
    for name in went:
        children.pop(name, None)
    children.update(_restored(directory, directory.source, came))
    if went or len(children) > len(came):
        children = dict(sorted(children.items(), key=_listing_order))
    tree.install(directory, children, Counter({HiddenReason[name]: count for name, count in hidden}))
    directory.listed_at, directory.mtime_ns = listed_at, mtime_ns


def _replay_change(
    tree: Tree, node_id: int, listed_at: float | None, mtime_ns: int, came: list[_Entry], went: list[bytes]
) -> None:
    directory = tree.nodes[node_id]
    if not isinstance(directory, DirectoryNode) or directory.source is None:
        raise ValueError(f"inode {node_id} is no directory of a container")
    for name in went:
        tree.take_child(directory, name)
    for name, node in _restored(directory, directory.source, came):
        tree.take_child(directory, name)
        tree.nodes.pop(node.node_id, None)  # what had this number was the same inode, somewhere else
        tree.put_child(directory, node)
    directory.listed_at, directory.mtime_ns = listed_at, mtime_ns


def _restored(directory: DirectoryNode, source: Source, came: list[_Entry]) -> Iterator[tuple[bytes, Node]]:
    start, parent_id = directory.blob_name, directory.node_id
    for name, node_id, ino, size, mtime_ns, etag in came:
        segment = decode_segment(name)
        node: Node
        if size == -1:
            node = DirectoryNode(node_id, ino, parent_id, name, source, f"{directory.path}{segment}/", mtime_ns)
        else:
            node = _file(node_id, ino, parent_id, name, source, ObjectInfo(start + segment, size, etag, mtime_ns))
        node.nlookup = _HELD_BY_KERNEL
        yield name, node


def _replay_held(tree: Tree, sources: Sequence[Source], held: list[tuple[_Entry, int, int, str]]) -> None:
    for (name, node_id, ino, size, mtime_ns, etag), parent_id, source_index, path in held:
        source = sources[source_index] if source_index >= 0 else None
        node: Node
        if size == -1:
            node = DirectoryNode(node_id, ino, parent_id, name, source, path, mtime_ns)
        else:
            assert source
            node = _file(node_id, ino, parent_id, name, source, ObjectInfo(path, size, etag, mtime_ns))
        node.nlookup = _HELD_BY_KERNEL
        tree.nodes[node_id] = node


def _file(node_id: int, ino: int, parent_id: int, name: bytes, source: Source, info: ObjectInfo) -> FileNode:
    is_symlink = info.size_bytes < 0
    whole = info._replace(size_bytes=-2 - info.size_bytes) if is_symlink else info
    node = FileNode(node_id, ino, parent_id, name, source, whole)
    if is_symlink:
        node.kind = NodeKind.SYMLINK
    return node


def _listing_order(item: tuple[bytes, Node]) -> bytes:
    name, node = item
    return name + b"/" if node.kind is NodeKind.DIRECTORY else name
