"""A container, or several side by side, as a read-only tree of inodes: `FileSystem` over object stores.

Locks. `_lock` (the tree lock) guards the table of inodes and every field of a DirectoryNode; it is never held
over a store call. A directory has at most one listing under way (`directory.fetch`); whoever finds one waits on
`_listed`, which belongs to `_lock`. A FileNode never changes after it was entered, but for `nlookup`, which the
tree lock guards too. Lock order: `_lock`, then whatever a TroubleLog or a store locks inside.
"""

import errno
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeGuard

from amlmount.config.spec import Policy
from amlmount.errors import AmlmountError
from amlmount.stores.base import HasDiskSpace
from amlmount.vfs.ahead import ListAhead
from amlmount.vfs.base import ROOT_NODE_ID, FsStats, Node, NodeKind, WouldBlock
from amlmount.vfs.content import ContentReader, OpenContent
from amlmount.vfs.entries import Entries
from amlmount.vfs.errno import Trouble, TroubleLog, as_os_error, errno_of
from amlmount.vfs.listing import Listing
from amlmount.vfs.listings import Listings, mark_stale
from amlmount.vfs.names import MAX_SEGMENT_BYTES, HiddenReason, encode_segment
from amlmount.vfs.nodes import DirectoryNode, FileNode, Numbers, Source
from amlmount.vfs.probe import probe_source
from amlmount.vfs.succession import Journal, Succession, replay
from amlmount.vfs.tally import StoreTally
from amlmount.vfs.tree import Change, Tree, changes_between

LOCAL_AHEAD, REMOTE_AHEAD = 1, 4  # directories: a local listing costs CPU, a remote one a round trip
UNLIMITED_BYTES = 1 << 50  # 1 PiB, what `df` shows as free where a store has no end


class BlobFileSystem:
    """FileSystem over one source as the root, or over several as directories of a plain root.

    `on_change(directory, children_before)` is called, from any thread and with no lock held, after a listing replaced
    one that the kernel may have been told of. It must not wait.
    """

    def __init__(
        self,
        sources: Sequence[tuple[bytes | None, Source]],
        policy: Policy,
        *,
        clock: Callable[[], float] = time.monotonic,
        numbers: Numbers | None = None,
        open_content: OpenContent | None = None,
    ) -> None:
        """Take sources with the name each appears under; one with None is the root and must be the only one.

        `open_content` makes what reads from stores that are not local; without it every read is a request.
        """
        self._sources = [source for _, source in sources]
        self._policy = policy
        self._clock = clock
        self._numbers = numbers or Numbers()
        self._opened_ns = time.time_ns()
        self._lock = threading.Lock()
        self._troubles = TroubleLog()
        self.tally = StoreTally()
        self.on_change: Callable[[DirectoryNode, dict[bytes, Node]], None] = lambda directory, before: None
        whole = next((source for name, source in sources if name is None), None)
        self._root = DirectoryNode(ROOT_NODE_ID, ROOT_NODE_ID, ROOT_NODE_ID, b"", whole, "", self._opened_ns)
        self._tree = Tree(self._root, self._numbers, self._opened_ns)
        self._succession: Succession | None = None
        width = LOCAL_AHEAD if all(source.store.is_local for source in self._sources) else REMOTE_AHEAD
        self._listings = Listings(self._tree, self._lock, policy, clock, self._troubles, self.tally.listings)
        self._listings.on_installed = self._installed
        self._listings.on_change = lambda directory, before: self.on_change(directory, before)
        self._ahead = ListAhead(lambda directory: self._listings.entries(directory, may_wait=True), width)
        self._gone: set[int] = set()  # versions the store said are gone, as long as the kernel holds them
        self._content = open_content(self._download, self._present_children) if open_content else None
        self._store_page: Callable[[int, bytes | memoryview], object] | None = None
        if whole is None:
            self._add_children([(name, source) for name, source in sources if name is not None])

    def _add_children(self, sources: Iterable[tuple[bytes, Source]]) -> None:
        children: dict[bytes, Node] = {}
        for name, source in sorted(sources, key=lambda pair: pair[0] + b"/"):
            number = self._numbers.number(self._numbers.directory_hash(source.index, ""))
            children[name] = DirectoryNode(number, number, ROOT_NODE_ID, name, source, "", self._opened_ns)
        self._tree.install(self._root, children, Listing().hidden)

    # What the kernel asks

    def root(self) -> Node:
        """See FileSystem.root."""
        return self._root

    def node(self, node_id: int) -> Node:
        """See FileSystem.node."""
        with self._lock:
            return self._known(node_id)

    def lookup(self, parent_id: int, name: bytes, *, may_wait: bool = True) -> Node:
        """See FileSystem.lookup."""
        if len(name) > MAX_SEGMENT_BYTES:
            raise OSError(errno.ENAMETOOLONG, "cannot look up a name longer than 1,024 bytes")
        try:
            found = self._listings.find(self._directory(parent_id), name, may_wait)
        except AmlmountError as error:
            raise as_os_error(error) from error
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such file or directory")
        return found

    def getattr(self, node_id: int, *, may_wait: bool = True) -> Node:
        """Return the inode as it is: a file's is one version and never changes, its successor comes by lookup."""
        return self.node(node_id)

    def list_dir(self, node_id: int, *, may_wait: bool = True) -> Sequence[Node]:
        """See FileSystem.list_dir."""
        directory = self._directory(node_id)
        entries = list(self._children(directory, may_wait).values())
        self._ahead.came_to(directory, self._tree.nodes.get(directory.parent_id))
        return entries

    def stream_dir(self, node_id: int, *, may_wait: bool = True) -> Entries:
        """See StreamsDirectories.stream_dir."""
        directory = self._directory(node_id)
        try:
            entries = self._listings.stream(directory, may_wait)
        except AmlmountError as error:
            raise as_os_error(error) from error
        self._ahead.came_to(directory, self._tree.nodes.get(directory.parent_id))
        return entries

    def read(self, node_id: int, offset: int, size_bytes: int, *, may_wait: bool = True) -> bytes | memoryview:
        """See FileSystem.read."""
        node = self.node(node_id)
        if not isinstance(node, FileNode):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        wanted = min(size_bytes, node.size_bytes - offset)
        if wanted <= 0:
            return b""
        if self._content is not None and not node.source.store.is_local:
            return self._content.read(node, offset, wanted, may_wait=may_wait)
        if not may_wait and not node.source.store.is_local:
            raise WouldBlock
        return self._download(node, offset, wanted)

    def _download(self, node: FileNode, start: int, size_bytes: int) -> bytes | memoryview:
        """Ask the store for bytes that the blob has; it sends exactly those or this raises OSError."""
        store, tally = node.source.store, self.tally
        get = getattr(store, "get_buffer", store.get)  # without a last copy, where a store has that
        begun_ns = time.perf_counter_ns()
        try:
            data: bytes | memoryview = get(node.blob_name, start, size_bytes, if_match=node.etag)
        except AmlmountError as error:
            tally.reads.failed += 1
            raise self._read_failed(node, error) from error
        tally.reads.note(time.perf_counter_ns() - begun_ns)
        tally.read_bytes += len(data)
        self._troubles.worked(node.source.name)
        if len(data) != size_bytes:
            raise OSError(
                errno.EIO, f"cannot read {node.blob_name!r}: the store sent {len(data)} of {size_bytes} bytes"
            )
        return data

    def _present_children(self, node_id: int) -> dict[bytes, Node] | None:
        node = self._tree.nodes.get(node_id)
        return node.children if isinstance(node, DirectoryNode) else None

    def _read_failed(self, node: FileNode, error: AmlmountError) -> OSError:
        self._troubles.failed(node.source.name, error)
        if errno_of(error) == errno.ESTALE and not self._policy.pinned:
            self._gone.add(node.node_id)
            self._expire(node.parent_id)  # the next open finds what is there now, not after the listing's time
        return as_os_error(error)

    def readlink(self, node_id: int, *, may_wait: bool = True) -> bytes:
        """See FileSystem.readlink; the target is the content of the blob."""
        node = self.node(node_id)
        if node.kind is not NodeKind.SYMLINK:
            raise OSError(errno.EINVAL, "not a symlink")
        return bytes(self.read(node_id, 0, node.size_bytes, may_wait=may_wait))

    def statfs(self) -> FsStats:
        """Return the disk's own figures for local stores on one disk, else the bytes known as used and 1 PiB free."""
        with self._lock:
            used, files = self._tree.size_bytes, self._tree.file_count
        disks = [self._disk_space(source) for source in self._sources]
        if (disk := disks[0]) and all(other and other[0] == disk[0] for other in disks):
            return FsStats(*disk, files)
        return FsStats(used + UNLIMITED_BYTES, UNLIMITED_BYTES, files)

    def _disk_space(self, source: Source) -> tuple[int, int] | None:
        if not isinstance(source.store, HasDiskSpace):
            return None
        try:
            return source.store.disk_space()
        except AmlmountError as error:
            self._troubles.failed(source.name, error)
            return None

    def remember(self, node: Node) -> None:
        """See FileSystem.remember."""
        with self._lock:
            self._tree.remember(node)

    def remember_all(self, nodes: Sequence[Node]) -> None:
        """See FileSystem.remember_all."""
        with self._lock:
            self._tree.remember_all(nodes)

    def forget(self, node_id: int, nlookup: int) -> None:
        """See FileSystem.forget."""
        with self._lock:
            self._tree.forget(node_id, nlookup)
            self._gone.discard(node_id)

    def close(self) -> None:
        """See FileSystem.close."""
        self._ahead.close()
        self._listings.close()
        if self._content is not None:
            self._content.close()
        for store in {id(source.store): source.store for source in self._sources}.values():
            store.close()

    # What reading from the network offers besides; see `vfs.base.OpenFiles`

    @property
    def tracks_opens(self) -> bool:
        """See OpenFiles.tracks_opens."""
        return self._content is not None

    def opened(self, node: Node) -> None:
        """See OpenFiles.opened; a version that is gone from the store is not opened any more."""
        if self._content is not None and _is_remote(node):
            if node.node_id in self._gone:
                raise OSError(errno.ESTALE, "this version is gone")
            self._content.opened(node)

    def released(self, node: Node) -> None:
        """See OpenFiles.released."""
        if self._content is not None and _is_remote(node):
            self._content.released(node)

    def whole_file(self, node: Node) -> int | None:
        """See OpenFiles.whole_file."""
        return self._content.whole_file(node) if self._content is not None and _is_remote(node) else None

    def use_page_cache(self, store_page: Callable[[int, bytes | memoryview], object]) -> None:
        """See OpenFiles.use_page_cache."""
        self._store_page = store_page
        if self._content is not None:
            self._content.use_page_cache(store_page)

    def exchange_content(self, open_content: OpenContent) -> None:
        """Read by another reader from now on, whose cache directory was not to be had before.

        What the present one is at, it brings to its end.
        """
        content = open_content(self._download, self._present_children)
        if self._store_page is not None:
            content.use_page_cache(self._store_page)
        self._content = content

    # What the owner of the mount asks

    @property
    def content(self) -> ContentReader | None:
        """What reads from stores that are not local, None if all are."""
        return self._content

    def probe(self) -> None:
        """Ask every source for its first entries, so that what is wrong is known before anything is mounted.

        Raises the store's errors, and NotFoundError for a `path` under which there is nothing.
        """
        for source, directory in self._tops():
            started_at = self._clock()
            page = probe_source(source)
            if page is not None:
                self._listings.know(directory, source, page, started_at)

    def _tops(self) -> list[tuple[Source, DirectoryNode]]:
        tops = [self._root, *self._root.children.values()] if self._root.source is None else [self._root]
        return [(top.source, top) for top in tops if isinstance(top, DirectoryNode) and top.source]

    def warm_up(self) -> None:
        """Have the stores get ready to be read, so that the first reader does not wait for that."""
        for source in self._sources:
            getattr(source.store, "warm_up", lambda: None)()
        if self._content is not None and not all(source.store.is_local for source in self._sources):
            self._content.warm_up()

    def leave_to(self, journal: Journal) -> None:
        """Write down, from now on, what a process that takes this one's place must know; the past goes in first."""
        with self._lock:
            self._succession = Succession(self._tree, journal)

    def inherit(self, records: Iterable[bytes]) -> None:
        """Take the place of a file system over the same sources that wrote these records; before anything else.

        Raises what `succession.replay` raises for anything else.
        """
        with self._lock:
            replay(self._tree, self._sources, records)

    def refresh(self, path: str | None = None) -> list[Change]:
        """List anew what has been listed (all of it, or `path` and the directory it is in) and return what changed.

        The kernel must be told of every change: INVAL_ENTRY for its name, INVAL_INODE for `parent_id` and
        `old_node_id`. Raises the store's errors; what could not be listed is listed at its next use.
        """
        with self._lock:
            stale = [(directory, directory.children) for directory in self._to_refresh(path)]
            for directory, _ in stale:
                mark_stale(directory)
        changes: list[Change] = []
        for directory, before in stale:
            with self._lock:
                is_current = self._tree.is_current(directory)
            if is_current:  # else its parent's listing has said that it is gone
                changes += changes_between(directory.node_id, before, self._entries_or_none(directory))
        return changes

    def _entries_or_none(self, directory: DirectoryNode) -> dict[bytes, Node]:
        try:
            return self._listings.entries(directory, may_wait=True)
        except OSError:  # another thread's listing of its parent has just dropped it
            return {}

    def _to_refresh(self, path: str | None) -> list[DirectoryNode]:
        directory, parents = self._root, []
        for segment in [part for part in (path or "").split("/") if part]:
            parents = [directory]
            name = encode_segment(segment)
            child = None if isinstance(name, HiddenReason) else directory.children.get(name)
            if not isinstance(child, DirectoryNode):
                return [found for found in parents if found.listed_at is not None]
            directory = child
        return [found for found in parents if found.listed_at is not None] + self._tree.listed_below(directory)

    def hidden_counts(self) -> dict[HiddenReason, int]:
        """Return how many names of the directories listed so far are not shown, by reason."""
        with self._lock:
            return {reason: count for reason, count in self._tree.hidden.items() if count}

    @property
    def last_error(self) -> Trouble | None:
        """The trouble a store is in now, None when all is well."""
        return self._troubles.latest()

    # Listing

    def _known(self, node_id: int) -> Node:
        node = self._tree.nodes.get(node_id)
        if node is None:
            raise OSError(errno.ESTALE, "unknown inode")
        return node

    def _directory(self, node_id: int) -> DirectoryNode:
        node = self.node(node_id)
        if not isinstance(node, DirectoryNode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return node

    def _children(self, directory: DirectoryNode, may_wait: bool) -> dict[bytes, Node]:
        try:
            return self._listings.entries(directory, may_wait)
        except AmlmountError as error:
            raise as_os_error(error) from error

    def _installed(self, directory: DirectoryNode, before: dict[bytes, Node]) -> None:
        if self._succession is not None:
            self._succession.listed(directory, before)

    def _expire(self, node_id: int) -> None:
        with self._lock:
            node = self._tree.nodes.get(node_id)
            if isinstance(node, DirectoryNode):
                mark_stale(node)


def _is_remote(node: Node) -> TypeGuard[FileNode]:
    return isinstance(node, FileNode) and not node.source.store.is_local
