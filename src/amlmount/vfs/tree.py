"""The table of inodes: which are known, which are current, what a new listing changes.

No lock and no store in here. Every method that is said to need the lock is called with the file system's tree
lock held; `arrange` is not, and may take long.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from amlmount.vfs.base import Node, NodeKind
from amlmount.vfs.listing import Listing
from amlmount.vfs.names import HiddenReason
from amlmount.vfs.nodes import DirectoryNode, FileNode, Numbers


@dataclass(frozen=True, slots=True)
class Change:
    """One name whose meaning changed. None: nothing had (has) that name; an entry with old_node_id None was new."""

    parent_id: int
    name: bytes
    old_node_id: int | None
    new_node_id: int | None


class Tree:
    """All inodes by number, and what they sum up to."""

    def __init__(self, root: DirectoryNode, numbers: Numbers, opened_ns: int) -> None:
        self._numbers = numbers
        self.opened_ns = opened_ns
        self.root = root
        self.nodes: dict[int, Node] = {root.node_id: root}
        self.file_count = 0
        self.size_bytes = 0
        self.hidden: Counter[HiddenReason] = Counter()

    def set_opened(self, opened_ns: int) -> None:
        """Let the tree be as old as its predecessor's. Needs the lock."""
        self.opened_ns = opened_ns
        for node in (self.root, *self.root.children.values()):
            node.mtime_ns = opened_ns

    def arrange(self, directory: DirectoryNode, listing: Listing) -> dict[bytes, Node]:
        """Return the children a listing gives, in order: the present node where nothing changed, else a new one.

        The order is the one in which Azure lists (a directory as if its name ended in `/`), so that pages can be
        shown as they arrive. Needs no lock: only the one fetch a directory can have calls it, and what it makes
        nobody else sees.
        """
        assert directory.source
        make = self._numbers.maker(directory, directory.source)
        old, files = directory.children, listing.files
        children: dict[bytes, Node] = {}
        for name in sorted([*files, *[name + b"/" for name in listing.directories]]):
            info = files.get(name)
            if info is None:
                name = name[:-1]
                children[name] = self._directory(directory, name, old.get(name), listing.directories[name])
                continue
            known = old.get(name)
            if known is not None and known.etag == info.etag and known.kind is not NodeKind.DIRECTORY:
                children[name] = known
            else:
                children[name] = make(name, info)
        return children

    def _directory(self, parent: DirectoryNode, name: bytes, known: Node | None, mtime_ns: int) -> Node:
        if isinstance(known, DirectoryNode):
            return known
        assert parent.source
        return self._numbers.make_directory(parent, parent.source, name, mtime_ns or self.opened_ns)

    def install(self, directory: DirectoryNode, children: dict[bytes, Node], hidden: Counter[HiddenReason]) -> bool:
        """Make these the children of a directory and tell whether that changes anything. Needs the lock."""
        if self.nodes.get(directory.node_id) is not directory:
            return False  # dropped while it was being listed
        old = directory.children
        added = [node for name, node in children.items() if old.get(name) is not node]
        self._enter(added, children)
        gone = [node for name, node in old.items() if children.get(name) is not node]
        directory.children = children
        self._count_hidden(directory, hidden)
        self._retire(gone)
        return bool(added or gone)

    # What this mount changes by itself, one name at a time. Each needs the lock.

    def put_child(self, directory: DirectoryNode, node: Node) -> None:
        """Let a name of a directory lead to `node`, which no path leads to yet; what had the name is retired."""
        self.take_child(directory, node.name)
        children = {**directory.children, node.name: node}
        self._enter([node], children)
        directory.children = children

    def take_child(self, directory: DirectoryNode, name: bytes) -> Node | None:
        """Let a name lead nowhere and return what had it."""
        gone = self.detach(directory, name)
        if gone is not None:
            self._retire([gone])
        return gone

    def detach(self, directory: DirectoryNode, name: bytes) -> Node | None:
        """Let a name lead nowhere, only to `attach` what had it somewhere else."""
        children = dict(directory.children)
        gone = children.pop(name, None)
        directory.children = children
        return gone

    def attach(self, directory: DirectoryNode, node: Node) -> None:
        """Let a name lead to a node that was detached."""
        node.parent_id = directory.node_id
        directory.children = {**directory.children, node.name: node}

    def replace(self, old: Node, new: Node) -> None:
        """Put a node in the place of another with the same number: paths and the kernel's references lead to it."""
        new.nlookup = old.nlookup
        self.nodes[new.node_id] = new
        parent = self.nodes.get(old.parent_id)
        if isinstance(parent, DirectoryNode) and parent.children.get(old.name) is old:
            parent.children = {**parent.children, old.name: new}

    def _enter(self, added: list[Node], children: dict[bytes, Node]) -> None:
        enter = self.nodes.setdefault
        others = [index for index, node in enumerate(added) if enter(node.node_id, node) is not node]
        for index in others:
            node = added[index]
            added[index] = children[node.name] = self.settle(node)
        files = [node for node in added if node.kind is not NodeKind.DIRECTORY]
        self.file_count += len(files)
        self.size_bytes += sum([node.size_bytes for node in files])

    def settle_all(self, nodes: dict[bytes, Node]) -> None:
        """Settle what a dictionary leads to, in place. Needs the lock."""
        enter = self.nodes.setdefault
        others = [(name, node) for name, node in nodes.items() if enter(node.node_id, node) is not node]
        for name, node in others:
            nodes[name] = self.settle(node)

    def settle(self, node: Node) -> Node:
        """Give a node its number for good; the very same thing, still known to the kernel, comes back instead.

        Needs the lock.
        """
        attempt = 0
        while (held := self.nodes.setdefault(node.node_id, node)) is not node:
            if is_same(held, node):
                return held
            attempt += 1
            node.node_id = self._numbers.next_number(node, attempt)
        return node

    def _count_hidden(self, directory: DirectoryNode, hidden: Counter[HiddenReason]) -> None:
        if directory.hidden:
            self.hidden -= directory.hidden
        directory.hidden = hidden or None
        self.hidden += hidden

    def _retire(self, gone: Iterable[Node]) -> None:
        """Take nodes, and all below them, out of what is current; those the kernel still holds stay known."""
        waiting = list(gone)
        while waiting:
            node = waiting.pop()
            if isinstance(node, DirectoryNode):
                waiting += node.children.values()
                node.children, node.listed_at = {}, None
                self._count_hidden(node, Counter())
            else:
                self.file_count -= 1
                self.size_bytes -= node.size_bytes
            if node.nlookup <= 0:
                self._drop(node)

    def is_current(self, node: Node) -> bool:
        """Tell whether a path leads to this node. Needs the lock."""
        if node is self.root:
            return True
        parent = self.nodes.get(node.parent_id)
        return isinstance(parent, DirectoryNode) and parent.children.get(node.name) is node

    def remember(self, node: Node) -> None:
        """Count a reference; a node that was dropped meanwhile is known again. Needs the lock."""
        self.nodes.setdefault(node.node_id, node).nlookup += 1

    def remember_all(self, nodes: Iterable[Node]) -> None:
        """Count a reference to each. Needs the lock."""
        know = self.nodes.setdefault
        for node in nodes:
            know(node.node_id, node).nlookup += 1

    def forget(self, node_id: int, nlookup: int) -> None:
        """Take references back and drop the node if that was the last use of it. Needs the lock."""
        node = self.nodes.get(node_id)
        if node is None or node is self.root:
            return
        node.nlookup = max(node.nlookup - nlookup, 0)
        if node.nlookup == 0 and not self.is_current(node):
            if isinstance(node, DirectoryNode):
                self._retire([node])
            else:
                self._drop(node)

    def abandon(self, node: Node) -> None:
        """Drop a node that was settled and never installed, unless somebody holds it. Needs the lock."""
        if node.nlookup <= 0 and not self.is_current(node):
            self._drop(node)

    def _drop(self, node: Node) -> None:
        if self.nodes.get(node.node_id) is node:
            del self.nodes[node.node_id]

    def listed_below(self, top: DirectoryNode) -> list[DirectoryNode]:
        """Return the directories that have been listed at and below `top`, parents first. Needs the lock."""
        found: list[DirectoryNode] = []
        waiting: list[Node] = [top]
        while waiting:
            node = waiting.pop()
            if isinstance(node, DirectoryNode) and (node.listed_at is not None or node.source is None):
                found += [node] if node.source else []
                waiting += node.children.values()
        return found


def is_same(one: Node, other: Node) -> bool:
    """Tell whether two nodes stand for the same version of the same thing."""
    mine = one.source if isinstance(one, FileNode | DirectoryNode) else None
    theirs = other.source if isinstance(other, FileNode | DirectoryNode) else None
    return (one.kind, one.etag, one.blob_name, one.parent_id) == (
        other.kind,
        other.etag,
        other.blob_name,
        other.parent_id,
    ) and mine is theirs


def changes_between(parent_id: int, before: dict[bytes, Node], after: dict[bytes, Node]) -> list[Change]:
    """Return what became of the entries of one directory, sorted by name."""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) is not after.get(name))
    return [Change(parent_id, name, _id_of(before.get(name)), _id_of(after.get(name))) for name in names]


def _id_of(node: Node | None) -> int | None:
    return node.node_id if node else None
