"""Files that the kernel writes to the local disk by itself (FUSE_PASSTHROUGH), so that writing is as fast as the disk.

Only where what changed can still be known: of a file that was empty when it was opened all of it is to be sent, and a
handle that only writes cannot be mapped. Whether anything was written at all is told by the data file's time.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from amlmount.stores.base import writable
from amlmount.vfs.base import Node, WouldBlock
from amlmount.vfs.writing.live import LiveTree
from amlmount.vfs.writing.livefile import NOT_DIRECT, LiveFile

NEVER = os.O_DIRECT | os.O_DSYNC  # of O_DSYNC the kernel would tell nobody, and sync the local disk alone


class DirectTree(LiveTree):
    """LiveTree with live files that the kernel may write into.

    `is_backed` says whether an inode has handles of that kind, `count_handles` how many of any kind, `left_open` all of
    these numbers; whoever answers the kernel puts them there.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.is_backed: Callable[[int], bool] = lambda node_id: False
        self.count_handles: Callable[[int], int] = lambda node_id: 1  # perhaps
        self.left_open: Callable[[], Mapping[int, int]] = dict
        self._direct: dict[int, LiveFile] = {}

    def empty_file(self, node: Node, flags: int) -> tuple[int, int] | None:
        """Return a descriptor, which the caller closes, and the epoch of the data file of an inode that is just being
        opened with `flags`, if the kernel may write into it from now on; None if it has to come to us."""
        if not isinstance(node, LiveFile) or flags & os.O_ACCMODE != os.O_WRONLY or flags & NEVER:
            return None
        if not self._knows_our_own(node):
            return None
        with node.lock:
            if not node.state.whole or node.state.size or node.is_displaced or node.state.mapped:
                return None
            return os.dup(node.fd()), node.state.epoch

    def _knows_our_own(self, file: LiveFile) -> bool:
        """Say whether an upload whose end nobody heard of is known as ours by more than content, which changes while
        no process is there."""
        return writable(file.source.store).keeps_metadata

    def begin_direct(self, node: Node, flags: int, epoch: int | None) -> bool:
        """Expect the kernel to write into a data file: that of an epoch, or (None) the one it has already. False if
        that is not the present one any more, or never was. Raises OSError."""
        if not isinstance(node, LiveFile):
            return False
        with node.lock:
            self._refuse_displaced(node)
            state = node.state
            if (state.direct if epoch is None else epoch) != state.epoch or not state.has_data:
                return False
            if flags & os.O_ACCMODE == os.O_RDWR:
                state.mapped = True
            if not state.is_direct:
                state.direct, node.noticed = state.epoch, None  # none: it counts as written to
            self._direct[node.node_id] = node
            if not node.is_dirty or state.mapped:  # else its promise, or its sending, says it
                node.notice()
                self._note(node, self.ledger.restate)
        return True

    def go_on_direct(self, file: LiveFile) -> None:
        """Take up, after a crash, what the kernel writes into."""
        if not (file.state.mapped or self.is_backed(file.node_id)):
            file.state.direct = NOT_DIRECT
        if file.state.is_direct:
            self._direct[file.node_id] = file

    def count_left_open(self) -> None:
        """Count, after a crash, who has ordinary files open; `recovery` has counted that of live ones."""
        for node_id, count in self.left_open().items():
            if not isinstance(self._tree.nodes.get(node_id), LiveFile):
                self._readers[node_id] = count

    def is_written_directly(self, file: LiveFile) -> bool:
        """Say whether the data file of a file is one that the kernel has handles of."""
        return file.state.is_direct and self.is_backed(file.node_id)

    def end_direct(self, file: LiveFile) -> None:
        """Learn what was written, when a handle is closed."""
        with file.lock:
            file.notice()
            if not self.is_backed(file.node_id):
                file.end_direct()
            self._show(file)

    # What the kernel asks: size and time as they are now

    def getattr(self, node_id: int, *, may_wait: bool = True) -> Node:
        """See FileSystem.getattr."""
        node = super().getattr(node_id, may_wait=may_wait)
        self._look_at(node, may_wait)
        return node

    def lookup(self, parent_id: int, name: bytes, *, may_wait: bool = True) -> Node:
        """See FileSystem.lookup."""
        node = super().lookup(parent_id, name, may_wait=may_wait)
        self._look_at(node, may_wait)
        return node

    def list_dir(self, node_id: int, *, may_wait: bool = True) -> Sequence[Node]:
        """See FileSystem.list_dir."""
        self.look_at_all(may_wait=may_wait)
        return super().list_dir(node_id, may_wait=may_wait)

    def look_at_all(self, *, may_wait: bool = True) -> None:
        """Learn the sizes of all files that the kernel writes into."""
        for node_id, file in list(self._direct.items()):
            if file.state.is_direct:
                self._look_at(file, may_wait)
            else:
                self._direct.pop(node_id, None)

    def _look_at(self, node: Node, may_wait: bool) -> None:
        if not isinstance(node, LiveFile) or not node.state.is_direct:
            return
        if not node.lock.acquire(blocking=may_wait):
            raise WouldBlock
        try:
            node.look()
            if (node.size_bytes, node.mtime_ns) != (node.state.size, node.state.mtime_ns):
                self._show(node)
        finally:
            node.lock.release()
