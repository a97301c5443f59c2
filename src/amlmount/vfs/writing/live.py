"""The tree of a writable mount: inodes that become live files and cease to be, and names that this mount changes.

What is written into live files, and how it lasts, is the business of `filesystem`.
"""

import errno
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from amlmount.config.spec import Policy
from amlmount.errors import AmlmountError, BlobNotFoundError
from amlmount.stores.base import ObjectInfo
from amlmount.stores.metadata import MTIME, format_mtime
from amlmount.vfs.base import Node, NodeKind
from amlmount.vfs.entries import Entries
from amlmount.vfs.errno import as_os_error
from amlmount.vfs.filesystem import BlobFileSystem
from amlmount.vfs.names import decode_segment
from amlmount.vfs.nodes import DirectoryNode, FileNode, Source
from amlmount.vfs.writing.disk import Disk, open_disk
from amlmount.vfs.writing.ledger import Ledger
from amlmount.vfs.writing.livefile import LiveFile, State
from amlmount.vfs.writing.own import OwnChanges
from amlmount.vfs.writing.sending import WRITE_ID

Change = tuple[DirectoryNode, Iterable[Node], Iterable[bytes]]  # what came into it, what went
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WritingOptions:
    """`places` names the container of each source, by index: what is promised for one never goes into another.

    `max_pending_bytes`: beyond that much not yet in the store, `durability: journal` waits like `store`.
    """

    state_dir: str
    places: Mapping[int, str]
    durability: str = "store"
    upload_timeout_s: float = 300.0
    max_pending_bytes: int = 64 << 30
    upload_threads: int = 4


class LiveTree(BlobFileSystem):
    """BlobFileSystem whose inodes may be live files, and whose directories change one name at a time."""

    def __init__(
        self,
        sources: Sequence[tuple[bytes | None, Source]],
        policy: Policy,
        *,
        options: WritingOptions,
        disk: Disk | None = None,
        **more: Any,
    ) -> None:
        """Take what BlobFileSystem takes; `disk` in the place of the state directory's.

        Raises AmlmountError for a state directory that cannot be used, BusyError for one that is in use.
        """
        self.options = options
        self.disk = disk or open_disk(options.state_dir)
        self._lock_fd = self.disk.lock()
        self.ledger = Ledger(self.disk)
        self.own = OwnChanges()
        self._readers: Counter[int] = Counter()
        super().__init__(sources, policy, **more)
        self._listings.amend = self.own.amend

    def enliven(self, node: FileNode, *, is_emptied: bool) -> LiveFile:
        """Return the live file of an inode, made if there is none. Raises ESTALE if it is not what is there now.

        `is_emptied`: its content is not wanted, so the store need not be asked for it.
        """
        if isinstance(node, LiveFile):
            self._refuse_displaced(node)
            if node.state.id not in self.ledger.files and not node.is_unlinked:
                raise OSError(errno.ESTALE, "an ordinary inode has its name by now")
            node.notice_now()
            if is_emptied or node.is_dirty or node.opens or node.is_unlinked:
                return node
        present = None if is_emptied else self._look(node)
        if isinstance(node, LiveFile):
            return node
        state = self._state_of(node, present)
        file = LiveFile(self.disk, node.source, node.parent_id, node.name, state)
        with file.lock:
            with self._lock:
                held = self._tree.nodes.get(node.node_id)
                if isinstance(held, LiveFile):
                    return held
                if held is not node or not self._tree.is_current(node):
                    raise OSError(errno.ESTALE, "no longer what the name leads to")
                self._tree.replace(node, file)
                file.opens = self._readers.pop(node.node_id, 0)
                self.own.note(self._parent(file), file.name, file, self._clock())
            self.ledger.enter(file)
        return file

    def _state_of(self, node: FileNode, info: ObjectInfo | None) -> State:
        metadata = dict(info.metadata) if info else {}
        kept = {key: value for key, value in metadata.items() if key not in (MTIME, WRITE_ID)}
        return State(
            id=self.ledger.new_id(),
            node_id=node.node_id,
            ino=node.ino,
            place=self.options.places[node.source.index],
            name=node.blob_name,
            etag=node.etag,
            size=node.size_bytes,
            base_size=node.size_bytes,
            base_end=node.size_bytes,
            mtime_ns=node.mtime_ns,
            whole=False,
            metadata=kept,
        )

    def _look(self, node: FileNode) -> ObjectInfo:
        """Ask the store for what is under a name now; ESTALE, and a new listing, if that is another version."""
        try:
            info = node.source.store.head(node.blob_name)
        except BlobNotFoundError as error:
            self._expire(node.parent_id)
            raise as_os_error(error) from error
        except AmlmountError as error:
            self._troubles.failed(node.source.name, error)
            raise as_os_error(error) from error
        if info.etag != node.etag:
            self._expire(node.parent_id)
            raise OSError(errno.ESTALE, "somebody else has changed it")
        return info

    def forget(self, node_id: int, nlookup: int) -> None:
        """See FileSystem.forget."""
        super().forget(node_id, nlookup)
        node = self._tree.nodes.get(node_id)
        if isinstance(node, LiveFile):
            if node.nlookup <= 0:
                node.opens = 0  # the kernel forgets nothing that is open; a predecessor's handles we never counted
            self._let_go_if_unknown(node, may_wait=False)

    def _let_go_if_unknown(self, file: LiveFile, *, may_wait: bool = True) -> None:
        """Let a file that is in the store as it is, and that nobody holds, be an ordinary inode again."""
        if not file.lock.acquire(blocking=may_wait):
            return  # whoever holds it looks again
        try:
            with self._lock:
                if file.is_wanted or not self.ledger.knows(file):
                    return
                parent = self._tree.nodes.get(file.parent_id)
                if isinstance(parent, DirectoryNode) and self._tree.is_current(file):
                    self._make_ordinary(parent, file)
                else:
                    self.own.let_go(file, self._numbers)
                self._tree.nodes.pop(file.node_id, None)
            self.ledger.gone(file)
            file.drop_data()
        finally:
            file.lock.release()

    def _make_ordinary(self, parent: DirectoryNode, file: LiveFile) -> None:
        state = file.state
        info = ObjectInfo(state.name, state.size, state.etag, state.mtime_ns)
        node = self._numbers.maker(parent, file.source)(file.name, info)
        self._tree.put_child(parent, node)
        self.own.replace(parent, file, parent.children[file.name])
        self.tell_successor([(parent, [parent.children[file.name]], [])])

    def metadata_of(self, file: LiveFile) -> dict[str, str]:
        """Return what is kept of a file besides its content, as its blob has it."""
        return file.state.metadata | {MTIME: format_mtime(file.state.mtime_ns)}

    def _live(self, node_id: int) -> LiveFile:
        node = self.node(node_id)
        if not isinstance(node, LiveFile):
            raise OSError(errno.ESTALE, "not open for writing")
        return node

    def _refuse_displaced(self, file: LiveFile) -> None:
        if file.is_displaced:
            raise OSError(errno.ESTALE, str(file.trouble))

    def _parent(self, node: Node) -> DirectoryNode:
        parent = self._tree.nodes.get(node.parent_id)
        if not isinstance(parent, DirectoryNode):
            raise OSError(errno.ESTALE, "its directory is gone")
        return parent

    def _touched(self, file: LiveFile, was_clean: bool, mtime_ns: int | None = None) -> None:
        file.state.change += 1
        file.state.mtime_ns = time.time_ns() if mtime_ns is None else mtime_ns
        if was_clean:
            file.dirty_since = time.time()
        self._show(file)

    def _show(self, file: LiveFile) -> None:
        with self._lock:
            before = file.size_bytes
            file.show()
            if file.size_bytes != before and self._tree.is_current(file):
                self._tree.size_bytes += file.size_bytes - before

    def _note(self, file: LiveFile, write_down: Any) -> None:
        if not file.is_unlinked and not file.is_displaced:
            write_down(file)

    # The tree

    def list_dir(self, node_id: int, *, may_wait: bool = True) -> Sequence[Node]:
        """See FileSystem.list_dir."""
        return sorted(super().list_dir(node_id, may_wait=may_wait), key=_listing_order)

    def lookup(self, parent_id: int, name: bytes, *, may_wait: bool = True) -> Node:
        """See FileSystem.lookup; what we changed is not looked for in a listing that is still going on."""
        with self._lock:
            parent = self._tree.nodes.get(parent_id)
            own = self.own.of(parent).get(name) if isinstance(parent, DirectoryNode) and parent.fetch else None
        if own is None:
            return super().lookup(parent_id, name, may_wait=may_wait)
        if own.node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file or directory")
        return own.node

    def stream_dir(self, node_id: int, *, may_wait: bool = True) -> Entries:
        """Return all entries: what we changed has no place in half a listing."""
        return Entries.of(self.list_dir(node_id, may_wait=may_wait))

    def _present_children(self, node_id: int) -> dict[bytes, Node] | None:
        children = super()._present_children(node_id)
        if children is None or not self.ledger.files:
            return children
        return {name: node for name, node in children.items() if not isinstance(node, LiveFile)}

    def tell_successor(self, changes: Sequence[Change]) -> None:
        """Write down, as one step, what a process that takes over must know of changed directories: what came, what
        went. Needs the tree lock."""
        if self._succession is not None:
            self._succession.changed(changes)

    # What a recovery needs

    def tops(self) -> list[tuple[Source, DirectoryNode]]:
        """Return every source and the directory that is its top."""
        return self._tops()

    def known(self, node_id: int) -> Node | None:
        """Return an inode that the kernel may know."""
        return self._tree.nodes.get(node_id)

    def put_in_place(self, node: FileNode, file: LiveFile) -> None:
        """Let a live file that goes on be the inode that an inherited one stands for."""
        with self._lock:
            self._tree.replace(node, file)
            parent = self._tree.nodes.get(file.parent_id)
            if isinstance(parent, DirectoryNode) and self._tree.is_current(file):
                self.own.note(parent, file.name, file, self._clock())
        (self.ledger.unlinked if file.is_unlinked else self.ledger.files)[file.state.id] = file

    def expect(self, source: Source, path: str, file: LiveFile) -> None:
        """Show a file that goes into the store under this path, once its directory is listed."""
        with self._lock:
            self.own.expect(source, path, file.name, file)
        self.ledger.files[file.state.id] = file

    # One name at a time

    def put_child(self, directory: DirectoryNode, node: Node) -> None:
        """Let a name lead to a new inode."""
        with self._lock:
            self._tree.put_child(directory, node)
            self._own_change(directory, node.name, directory.children[node.name])
            self.tell_successor([(directory, [directory.children[node.name]], [])])

    def take_child(self, directory: DirectoryNode, name: bytes) -> None:
        """Let a name lead nowhere."""
        with self._lock:
            self._tree.take_child(directory, name)
            self._own_change(directory, name, None)
            self.tell_successor([(directory, [], [name])])

    def move_child(self, node: Node, old: DirectoryNode, new: DirectoryNode, name: bytes) -> None:
        """Let another name lead to an inode, in the place of what it leads to, and its old one nowhere."""
        with self._lock:
            self.tell_successor(self._move_child(node, old, new, name))

    def _move_child(self, node: Node, old: DirectoryNode, new: DirectoryNode, name: bytes) -> list[Change]:
        old_name = node.name
        self._tree.detach(old, old_name)
        self._own_change(old, old_name, None)
        self._tree.take_child(new, name)
        node.name = name
        self._tree.attach(new, node)
        self._own_change(new, name, node)
        return [(old, [], [old_name]), (new, [node], [])]

    def _own_change(self, directory: DirectoryNode, name: bytes, node: Node | None) -> None:
        directory.mtime_ns = time.time_ns()
        self.own.note(directory, name, node, self._clock())

    def live_below(self, source: Source, prefix: str) -> list[LiveFile]:
        """Return the live files whose blob names begin with `prefix`."""
        files = list(self.ledger.files.values())
        return [file for file in files if file.source is source and file.state.name.startswith(prefix)]

    def move_directory(
        self,
        node: DirectoryNode,
        old: DirectoryNode,
        new: DirectoryNode,
        name: bytes,
        moved: Mapping[str, ObjectInfo] | None,
    ) -> None:
        """Let a directory, with all that is known below it, have another place: `moved` has the new versions by old
        blob name; None: the versions are as they were, under new names."""
        assert node.source
        old_path, old_prefix = node.path, node.blob_name
        with self._lock:
            changes = self._move_child(node, old, new, name)
            self.own.move(node.source, old_path, f"{new.path}{decode_segment(name)}/")
            self._move_below(node, new, lambda file: _moved(file, old_prefix, node, moved))
            below = self._tree.listed_below(node)
            self.tell_successor([*changes, *((directory, directory.children.values(), []) for directory in below)])

    def _move_below(
        self, node: DirectoryNode, parent: DirectoryNode, find: Callable[[FileNode], ObjectInfo | None]
    ) -> None:
        node.path = f"{parent.path}{decode_segment(node.name)}/"
        node.blob_name = f"{parent.blob_name}{decode_segment(node.name)}/"
        for child in list(node.children.values()):
            if isinstance(child, DirectoryNode):
                self._move_below(child, node, find)
            elif isinstance(child, FileNode):
                self._move_file(node, child, find(child))

    def _move_file(self, parent: DirectoryNode, file: FileNode, info: ObjectInfo | None) -> None:
        if info is None:  # it came after the directory was listed to be copied
            self._tree.take_child(parent, file.name)
        elif isinstance(file, LiveFile):
            file.state.name, file.state.etag = info.name, info.etag
            file.show()
            self.ledger.restate(file)
        else:
            kind, made = file.kind, FileNode(file.node_id, file.ino, file.parent_id, file.name, file.source, info)
            made.kind = kind
            self._tree.replace(file, made)

    def expire(self, directory: DirectoryNode) -> None:
        """Have a directory listed anew at its next use."""
        self._expire(directory.node_id)

    def entries_of(self, directory: DirectoryNode) -> dict[bytes, Node]:
        """Return what is in a directory; asks the store if what is known is too old. Raises OSError."""
        return self._children(directory, True)

    def make_directory(self, parent: DirectoryNode, source: Source, name: bytes) -> DirectoryNode:
        """Return a new inode for a directory that is empty."""
        made = self._numbers.make_directory(parent, source, name, time.time_ns())
        made.listed_at = self._clock()
        return made

    def make_file(self, parent: DirectoryNode, source: Source, name: bytes, info: ObjectInfo) -> FileNode:
        """Return a new inode for a version of a blob."""
        return self._numbers.maker(parent, source)(name, info)

    def new_number(self) -> int:
        """Return a number for an inode that is no version of a blob yet; `put_child` settles it."""
        return self._numbers.number(blake2b(os.urandom(16), digest_size=8))

    def path_number(self, directory: DirectoryNode, name: bytes) -> int:
        """Return what stat shows as the number of a path."""
        assert directory.source
        state = self._numbers.directory_hash(directory.source.index, directory.path)
        state.update(name)
        return self._numbers.number(state)

    @property
    def tree_lock(self) -> Any:
        """The lock that guards inodes and names."""
        return self._lock


def _moved(
    file: FileNode, old_prefix: str, top: DirectoryNode, moved: Mapping[str, ObjectInfo] | None
) -> ObjectInfo | None:
    is_moved = not file.blob_name.startswith(old_prefix)  # a process that died had come this far with it
    name = file.blob_name if is_moved else top.blob_name + file.blob_name.removeprefix(old_prefix)
    if moved is None or is_moved:
        return ObjectInfo(name, file.size_bytes, file.etag, file.mtime_ns)
    made = moved.get(file.blob_name)
    return made._replace(mtime_ns=file.mtime_ns) if made else None


def _listing_order(node: Node) -> bytes:
    return node.name + b"/" if node.kind is NodeKind.DIRECTORY else node.name
