"""What this mount itself has changed, as long as a listing may not know it yet.

A listing shows the store as it was at some moment after it was begun: what we changed before that moment is in it,
what we changed later is put on top. Every method needs the tree lock.
"""

from dataclasses import dataclass

from amlmount.stores.base import ObjectInfo
from amlmount.vfs.base import Node
from amlmount.vfs.nodes import DirectoryNode, Numbers, Source
from amlmount.vfs.writing.livefile import LiveFile

_Key = tuple[int, str]


@dataclass(slots=True)
class Own:
    """What a name leads to since `at` (the file system's clock); None: nowhere."""

    node: Node | None
    at: float


class OwnChanges:
    """By directory and name."""

    def __init__(self) -> None:
        self._changes: dict[_Key, dict[bytes, Own]] = {}

    def note(self, directory: DirectoryNode, name: bytes, node: Node | None, at: float) -> None:
        """Note that we made a name lead to `node`, just now."""
        if directory.source is not None:
            self._of(directory.source, directory.path)[name] = Own(node, at)

    def expect(self, source: Source, path: str, name: bytes, node: Node) -> None:
        """Note a file that nobody has looked for yet: it is there when its directory is listed."""
        self._of(source, path)[name] = Own(node, float("-inf"))

    def touch(self, node: Node, at: float) -> None:
        """Note that what some name leads to was changed just now."""
        for changes in self._changes.values():
            for own in changes.values():
                if own.node is node:
                    own.at = at

    def drop(self, node: Node) -> None:
        """Forget that a name leads to a node: a listing will say so."""
        for changes in self._changes.values():
            for name in [name for name, own in changes.items() if own.node is node]:
                del changes[name]

    def let_go(self, file: LiveFile, numbers: Numbers) -> None:
        """Have an ordinary inode stand for a file that was sent before its directory was listed; drop any other.

        A listing that was begun before does not have it; one that will be begun has.
        """
        if file.parent_id or file.is_displaced or file.is_unlinked:
            self.drop(file)
            return
        for (_, path), changes in self._changes.items():
            own = changes.get(file.name)
            if own is not None and own.node is file:
                directory = DirectoryNode(0, 0, 0, b"", file.source, path, 0)  # nobody has one for the path yet
                info = ObjectInfo(file.state.name, file.state.size, file.state.etag, file.state.mtime_ns)
                own.node = numbers.maker(directory, file.source)(file.name, info)

    def replace(self, directory: DirectoryNode, old: Node, new: Node) -> None:
        """Let what is noted of a node hold for another one."""
        if (own := self.of(directory).get(old.name)) is not None and own.node is old:
            own.node = new

    def of(self, directory: DirectoryNode) -> dict[bytes, Own]:
        """Return what is noted of a directory, by name."""
        if directory.source is None:
            return {}
        return self._changes.get((directory.source.index, directory.path), {})

    def amend(self, directory: DirectoryNode, children: dict[bytes, Node], started_at: float) -> dict[bytes, Node]:
        """Put on top of a listing what it cannot know; what it does know is forgotten here."""
        changes = self.of(directory)
        for name, own in list(changes.items()):
            if own.at < started_at and not _is_ours_alone(own.node):
                del changes[name]
            elif own.node is None:
                children.pop(name, None)
            else:
                own.node.parent_id = directory.node_id
                children[name] = own.node
        if not changes and directory.source is not None:
            self._changes.pop((directory.source.index, directory.path), None)
        return children

    def move(self, source: Source, old: str, new: str) -> None:
        """Carry over what is noted of a directory, and of all below it, to its new path; both end in `/`."""
        for key in [key for key in self._changes if key[0] == source.index and key[1].startswith(old)]:
            self._changes[key[0], new + key[1][len(old) :]] = self._changes.pop(key)

    def _of(self, source: Source, path: str) -> dict[bytes, Own]:
        return self._changes.setdefault((source.index, path), {})


def _is_ours_alone(node: Node | None) -> bool:
    """Say whether the store does not have all of a file yet, or may soon not have it."""
    return isinstance(node, LiveFile) and not node.is_displaced and (node.is_dirty or node.opens > 0)
