"""A container as a file system that can be written: files live on the local disk until the store has them.

Locks, in the order in which they are taken: a file's `sending` (one upload at a time), its `lock`, the tree lock,
the journal's. No lock but `sending` is held over a call of the store; a file's is held while the disk works, so a
thread that must not wait only tries it. Names change in `namespace`; what a crash leaves is looked at in `recovery`.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from amlmount.config.spec import Policy
from amlmount.errors import AccessDeniedError, AmlmountError, UsageError
from amlmount.stores.base import ObjectInfo, writable
from amlmount.vfs.base import Node, NodeKind, WouldBlock
from amlmount.vfs.errno import as_os_error
from amlmount.vfs.nodes import DirectoryNode, FileNode, Source
from amlmount.vfs.writing.ahead import SendingAhead, cut
from amlmount.vfs.writing.leaving import LeavingNames
from amlmount.vfs.writing.live import WritingOptions
from amlmount.vfs.writing.livefile import LiveFile
from amlmount.vfs.writing.outcomes import UploadNews
from amlmount.vfs.writing.refusals import Refusals
from amlmount.vfs.writing.sending import Sender, own_mark
from amlmount.vfs.writing.standing import Backlog, WritingStats, look_at
from amlmount.vfs.writing.uploads import MAPPED_S, Uploads

# A new file is promised and then often renamed (`write tmp; fsync; rename`): until then it is not sent.
RENAMED_WITHIN_S = 1.0


class WritableFileSystem(LeavingNames):
    """A file system, and everything that changes it. What each operation promises is in docs/semantics.md."""

    def __init__(
        self,
        sources: Sequence[tuple[bytes | None, Source]],
        policy: Policy,
        *,
        options: WritingOptions,
        **more: Any,
    ) -> None:
        """Take what LiveTree takes. `recovery.recover` comes before anything else."""
        super().__init__(sources, policy, options=options, **more)
        self.uploads = Uploads(
            self.ledger,
            Sender(self.ledger, self._on_committed, self._on_stored, self._has_name),
            self._tell,
            self._settle,
            threads=options.upload_threads,
        )
        self.uploads.timings, self.news = self.tally.uploads, UploadNews()
        self._parts = SendingAhead() if options.durability == "store" else None
        self.refusals = Refusals(self.uploads, self._sources)
        self._backlog = Backlog(self.ledger.files, options.max_pending_bytes)

    # Opening and closing

    def open_file(self, node_id: int, flags: int, *, who: int = 0, may_wait: bool = True) -> Node:
        """Count a handle of a file for a program (`who`: its number); with O_TRUNC cut it to nothing. Raises OSError:
        ESTALE asks for another walk along the path."""
        node = self.node(node_id)
        if node.kind is not NodeKind.FILE:
            raise OSError(errno.EISDIR if node.kind is NodeKind.DIRECTORY else errno.ELOOP, "not a file")
        assert isinstance(node, FileNode)
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
            with self.coming(node, who, may_wait):
                return self._open_for_reading(node, may_wait)
        if not may_wait:
            raise WouldBlock
        self.refusals.refuse(node.source)
        with self.coming(node, who, may_wait):
            return self._open_for_writing(node_id, is_cut=bool(flags & os.O_TRUNC))

    def _open_for_writing(self, node_id: int, *, is_cut: bool) -> LiveFile:
        file = self.alive(node_id, is_emptied=is_cut)
        self.count_writer(file)
        if is_cut:
            try:
                with self._changing(file, 0):
                    self._resize(file, 0)
            except BaseException:
                self._discount(file)
                raise
        return file

    def _open_for_reading(self, node: Node, may_wait: bool) -> Node:
        present = self.count_reader(node, may_wait)
        try:
            self.opened(present)
        except BaseException:
            if (file := self.discount_reader(present)) is not None:
                self._discount(file)
            raise
        return present

    def begin_direct(self, node: Node, flags: int, epoch: int | None) -> bool:
        """See DirectTree.begin_direct; what may be mapped is looked at again and again."""
        if not super().begin_direct(node, flags, epoch):
            return False
        assert isinstance(node, LiveFile)
        if node.state.mapped:
            self.uploads.enqueue(node, MAPPED_S)
        if epoch is not None and self._parts is not None:
            self._parts.watch(node)
        return True

    def close_file(self, node: Node, *, may_wait: bool = True) -> None:
        """Take a handle back; what is then still dirty (written through a mapping) goes to the store by itself."""
        file = self._tree.nodes.get(node.node_id)
        if not isinstance(file, LiveFile) and (file := self.discount_reader(node)) is None:
            self.released(node)
            return
        if may_wait:
            file.wait_for_unlink()
            self._close_live(node, file)
            return
        if file.is_unlinked or not file.lock.acquire(blocking=False):
            raise WouldBlock
        try:
            if not self._closes_at_once(file):
                raise WouldBlock
            self._close_live(node, file)
        finally:
            file.lock.release()

    def _closes_at_once(self, file: LiveFile) -> bool:
        """Say whether nothing has to be synced or removed when a handle is closed: the flush before it has seen to all.

        Needs the file's lock.
        """
        state = file.state
        if state.mapped:
            return False
        file.notice()
        if file.is_dirty:
            return file.opens > 1 or state.promised == state.change
        return not state.is_direct

    def _close_live(self, node: Node, file: LiveFile) -> None:
        if file.state.is_direct:
            self.end_direct(file)
        if node is not file:
            self.released(node)
        self._discount(file)

    def _discount(self, file: LiveFile) -> None:
        with self._lock:
            file.opens = max(file.opens - 1, 0)
            is_last = not file.opens
        if is_last:
            self._settle(file)

    def uncount(self, node: Node) -> None:
        """Take back the count of a handle that is counted twice."""
        file = self.discount_reader(node)
        if file is not None:
            with self._lock:
                file.opens -= 1

    def _settle(self, file: LiveFile) -> None:
        """See to a file that is closed: nothing of it may be forgotten that the store does not have."""
        if file.is_dirty:
            self.uploads.promise(file)
            self.uploads.enqueue(file)
            return
        if file.state.mapped and not file.is_unlinked:
            return  # looked at again and again until the kernel forgets it
        with file.lock:
            if not file.opens and not file.is_dirty and not self.is_written_directly(file):
                if file.state.has_data or file.state.whole:
                    names = file.let_go_of_data()
                    self._note(file, self.ledger.restate)  # first: data that is said to be here must be here
                    for name in names:
                        self.disk.remove(name)
                file.close_data()
                if file.is_unlinked and self.ledger.knows(file):
                    self.ledger.gone(file)
        self._let_go_if_unknown(file)

    # Content

    def write(
        self, node_id: int, offset: int, data: bytes | memoryview, *, is_append: bool = False, may_wait: bool = True
    ) -> int:
        """Change bytes of a file that is open for writing; returns how many. Raises OSError (ENOSPC, ESTALE...).

        `is_append`: not behind the end, which the kernel does not know when another program has just cut the file.
        """
        file = self._live(node_id)
        self.fetch_if_small(file, may_wait)
        if not file.lock.acquire(blocking=may_wait):
            raise WouldBlock
        try:
            self._refuse_displaced(file)
            offset = min(offset, file.state.size) if is_append else offset
            was_clean, start = file.state.change == file.state.stored, min(offset, file.state.size)
            if file.ahead is not None:
                file.ahead.drop(start, offset + len(data))  # first: what fails half way has changed something, too
            has_changed = file.write(offset, data)
            self._touched(file, was_clean)
            if self._parts is not None:
                self._parts.wrote(file, start, offset + len(data))
            if file.state.whole:
                if was_clean:
                    self._note(file, self.ledger.changed)
            elif has_changed or was_clean:
                self._note(file, lambda live: self.ledger.wrote(live, start, offset + len(data)))
        finally:
            file.lock.release()
        return len(data)

    def resize(self, node_id: int, size_bytes: int, *, by_name: bool = False) -> None:
        """Cut or lengthen a file, with zeros. `by_name`: no close will follow. Raises OSError."""
        node = self.node(node_id)
        if not isinstance(node, FileNode):
            raise OSError(errno.EISDIR, "is a directory")
        file = self.alive(node_id, is_emptied=not size_bytes)
        if size_bytes:
            self.fetch_if_small(file, may_wait=True)
        with self._changing(file, size_bytes):
            if not file.opens:
                self.keep_name(file)
            self._resize(file, size_bytes)
        if by_name or not file.opens:
            self.flush(node_id)
        if not file.opens:
            self._settle(file)

    def lengthen(self, node_id: int, size_bytes: int) -> None:
        """Make a file that is open for writing at least so long, with zeros. Raises OSError."""
        file = self._live(node_id)
        file.notice_now()
        if size_bytes > file.state.size:
            self.resize(node_id, size_bytes)

    @contextmanager
    def _changing(self, file: LiveFile, size_bytes: int | None) -> Iterator[None]:
        """Hold the lock of a file that is to be cut (None: it is not). Raises OSError.

        What is promised of it must not be cut away. Else the rest goes on in another data file, but not if the kernel
        writes into this one: then it is sent first.
        """
        while True:
            with file.lock:
                state = file.state
                is_less = size_bytes is not None and size_bytes < state.size
                if not (is_less and file.is_pending and (state.mapped or self.is_written_directly(file))):
                    yield
                    return
            self.flush_to_store(file)

    def _resize(self, file: LiveFile, size_bytes: int) -> None:
        state, before, was_clean = file.state, file.state.size, file.state.change == file.state.stored
        if size_bytes == before and (size_bytes or state.whole):
            return
        is_turned = size_bytes < before and file.is_pending
        if is_turned:
            file.turn_epoch(size_bytes)
        cut(file, size_bytes)
        file.resize(size_bytes)
        if not size_bytes:
            state.whole = True
        self._touched(file, was_clean)
        if not size_bytes or is_turned or state.whole:
            self._note(file, self.ledger.restate)
        elif size_bytes < before:
            self._note(file, self.ledger.cut)
        else:
            self._note(file, lambda live: self.ledger.wrote(live, before, size_bytes))

    def set_mtime(self, node_id: int, mtime_ns: int) -> None:
        """Give a file another time; kept with the blob. Raises OSError. A directory's is accepted and not kept."""
        node = self.node(node_id)
        if not isinstance(node, FileNode):
            return
        file = self.alive(node_id, is_emptied=False)
        if file.is_unlinked:
            return
        with file.lock:
            if file.is_dirty or file.state.is_direct:  # what the kernel wrote before this will not show any more
                self._touched(file, not file.is_dirty, mtime_ns)
                file.stamp(mtime_ns)
                self._note(file, self.ledger.restate)
                return
        self._describe(file, mtime_ns)
        self._settle(file)

    def _describe(self, file: LiveFile, mtime_ns: int) -> None:
        with file.sending:
            if file.is_unlinked:
                return
            state, store = file.state, writable(file.source.store)
            info, before_ns = ObjectInfo(state.name, state.base_size, state.etag, mtime_ns), file.set_time(mtime_ns)
            self.ledger.begun(file, state.change + 1)  # a successor must know a new etag to be ours
            try:
                new = store.set_metadata(info, self.metadata_of(file) | own_mark(store, self.ledger, state))
            except AmlmountError as error:
                file.set_time(before_ns)
                self._expire(file.parent_id)
                raise as_os_error(error) from error
            with file.lock:
                state.etag = new.etag
                self._show(file)
                self._note(file, self.ledger.restate)
        self._on_committed(file)
        self._on_stored(file)

    # Making it last

    def flush(self, node_id: int) -> None:
        """Return once what was written is where `durability` says. Raises OSError: it is kept and sent later."""
        file = self._tree.nodes.get(node_id)
        if not isinstance(file, LiveFile):
            return
        self._refuse_displaced(file)
        file.wait_for_unlink()
        file.notice_now()
        if not file.is_dirty:
            return
        if self.options.durability == "journal" and self._backlog.takes(file.state.dirty.size_bytes):
            self.uploads.promise(file)
            self.uploads.enqueue(file, 0.0 if file.state.etag else RENAMED_WITHIN_S)
            if isinstance(file.trouble, AccessDeniedError | UsageError):  # waiting alone will not help
                raise as_os_error(file.trouble)
        else:
            self.flush_to_store(file)

    def flush_to_store(self, file: LiveFile) -> None:
        """Return once the store has a file. Raises OSError."""
        try:
            self.uploads.send_now(file, self.options.upload_timeout_s)
        except AmlmountError as error:
            raise as_os_error(error) from error

    def drain(self, timeout_s: float) -> bool:
        """Have everything sent; False if something is not in the store after `timeout_s` seconds."""
        return self.uploads.drain(timeout_s)

    def writing_stats(self) -> WritingStats:
        """Return what is not in the store yet."""
        self.look_at_all()
        refused = self.uploads.refused
        return look_at(list(self.ledger.files.values()), self.disk, refused.message if refused else "")

    def close(self) -> None:
        """See FileSystem.close. What was promised and not sent is sent by the next start."""
        if self._parts is not None:
            self._parts.close()
        self.uploads.close()
        super().close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _on_committed(self, file: LiveFile) -> None:
        """From here on a listing shows it, but not one that was begun before."""
        with self._lock:
            parent = self._tree.nodes.get(file.parent_id)
            if isinstance(parent, DirectoryNode) and self._tree.is_current(file):
                self.own.note(parent, file.name, file, self._clock())
            else:
                self.own.touch(file, self._clock())

    def _has_name(self, file: LiveFile) -> bool:
        with self._lock:
            return self._tree.is_current(file)

    def _on_stored(self, file: LiveFile) -> None:
        if file.is_displaced:
            self._expire(file.parent_id)
        elif not file.opens:
            self._settle(file)

    def _tell(self, file: LiveFile, error: AmlmountError | None) -> None:
        if error is None:
            self._troubles.worked(file.source.name)
        else:
            self._troubles.failed(file.source.name, error)
        self.news.attempted(file.blob_name, error)
        self.ledger.tidy()
