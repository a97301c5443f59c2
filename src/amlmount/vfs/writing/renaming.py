"""Renaming files and directories: in the store a copy and a delete, unless the store has nothing of it yet.

A file that was never sent gets its new name here alone, so `write tmp; fsync; rename` is one upload where `fsync`
promises instead of sending. What is atomic and what is not is in docs/semantics.md.
"""

import contextlib
import errno
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from amlmount.errors import AmlmountError, BlobNotFoundError, PreconditionFailedError
from amlmount.stores.base import HasDirectories, ObjectInfo, WritableStore
from amlmount.vfs.base import Node
from amlmount.vfs.errno import as_os_error
from amlmount.vfs.nodes import DirectoryNode, FileNode, Source
from amlmount.vfs.writing.attempts import ONCE, Attempt
from amlmount.vfs.writing.ledger import Deletion
from amlmount.vfs.writing.livefile import LiveFile
from amlmount.vfs.writing.namespace import Namespace, as_errno

COPIES_AT_ONCE = 8
COMPARE_BYTES = 4 << 20
log = logging.getLogger(__name__)


class Renaming:
    """Renames in one writable file system. All of it may wait; raises OSError."""

    def __init__(self, names: Namespace) -> None:
        self._names = names
        self._files = names.files

    def rename(
        self,
        old_parent: int,
        old_name: bytes,
        new_parent: int,
        new_name: bytes,
        *,
        may_replace: bool = True,
        attempt: Attempt = ONCE,
    ) -> None:
        """Let `new_name` lead to what `old_name` leads to, in the place of what it leads to now."""
        names = self._names
        old, new = names.directory(old_parent), names.directory(new_parent)
        node, target = names.child(old, old_name), names.child(new, new_name)
        if node is None:
            if target is not None and attempt.was_begun:
                self._finish(old, old_name, target)
                return
            raise FileNotFoundError(errno.ENOENT, "no such file or directory")
        if target is node:
            return
        source, blob_name = names.name_below(new, new_name)
        if source is not old.source:
            raise OSError(errno.EXDEV, "in another container")
        _check_target(node, target, may_replace or attempt.was_begun)
        self._files.refusals.refuse(source)
        attempt.begin()
        if isinstance(node, DirectoryNode):
            self._rename_directory(node, old, new, new_name, target, attempt)
        else:
            assert isinstance(node, FileNode)
            self._rename_file(node, old, new, new_name, blob_name, target, may_replace, attempt)
        names.keep_directory(old)

    # Files

    def _rename_file(
        self,
        node: FileNode,
        old: DirectoryNode,
        new: DirectoryNode,
        name: bytes,
        blob_name: str,
        target: Node | None,
        may_replace: bool,
        attempt: Attempt,
    ) -> None:
        file = self._files.enliven(node, is_emptied=False)
        if file.state.name == blob_name:  # a process before us had come this far
            left = self._names.name_below(old, node.name)[1]
            self._files.move_child(file, old, new, name)
            self._names.delete_blob(file.source, left)
            return
        with file.sending:  # nothing of it is under way, and nothing will be until it has its name
            if self._is_only_here(file):
                with self._replaced(target, attempt) as live:
                    self._rename_here(file, old, new, name, blob_name, live or target)
                return
        if file.is_dirty:
            self._files.flush_to_store(file)
        with file.sending, self._replaced(target, attempt) as live:
            # an upload of what is replaced that came after the copy would replace that: `live.sending` is held, too
            info = self._copy(file, blob_name, may_replace)
            if live is not None:
                self._names.forget_live(live)
            before = replace(file.state)
            deletion = self._named(file, old, new, name, blob_name, info)
            self._names.delete_blob(file.source, before.name)
            self._files.ledger.deleted(deletion)

    @contextlib.contextmanager
    def _replaced(self, target: Node | None, attempt: Attempt) -> Iterator[LiveFile | None]:
        """Let whoever has a file open keep it; once a process that died has replaced it, that cannot be done."""
        with contextlib.ExitStack() as held:
            live = None
            if isinstance(target, FileNode):
                try:
                    live = held.enter_context(self._files.leaving(target))
                except OSError as error:
                    if error.errno != errno.ESTALE or not attempt.was_begun:
                        raise
                    if isinstance(target, LiveFile):
                        held.enter_context(target.sending)
                        live = target
            yield live

    def _is_only_here(self, file: LiveFile) -> bool:
        return not file.state.etag and not file.was_sent

    def _rename_here(
        self,
        file: LiveFile,
        old: DirectoryNode,
        new: DirectoryNode,
        name: bytes,
        blob_name: str,
        target: Node | None,
    ) -> None:
        """Give a file another name that the store has never heard of; what the new name leads to is replaced later."""
        if isinstance(target, LiveFile):
            etag = target.state.etag
        else:
            etag = target.etag if isinstance(target, FileNode) else ""
        self._promise_as(file, blob_name, etag)
        if isinstance(target, LiveFile):
            self._names.forget_live(target)
        self._files.move_child(file, old, new, name)
        self._files.uploads.enqueue(file)

    def _promise_as(self, file: LiveFile, blob_name: str, etag: str) -> None:
        """Make the new name last, with the content: one record of the journal, so that no crash leaves neither."""
        with file.lock:
            state = file.state
            before = (state.name, state.etag)
            state.name, state.etag = blob_name, etag
            state.change += 1
            state.dirty.add(0, state.size)
            try:
                self._files.uploads.promise(file)
            except BaseException:
                state.name, state.etag = before
                raise
            file.show()

    def _copy(self, file: LiveFile, blob_name: str, may_replace: bool) -> ObjectInfo:
        state, store = file.state, file.source.store
        assert isinstance(store, WritableStore)
        info = ObjectInfo(state.name, state.size, state.etag, state.mtime_ns, self._files.metadata_of(file))
        try:
            return store.copy(info, blob_name, if_none_match=not may_replace)
        except PreconditionFailedError as error:
            self._files.expire(self._names.directory(file.parent_id))
            raise OSError(errno.ESTALE if may_replace else errno.EEXIST, error.message) from error
        except AmlmountError as error:
            raise as_errno(error) from error

    def _named(
        self, file: LiveFile, old: DirectoryNode, new: DirectoryNode, name: bytes, blob_name: str, info: ObjectInfo
    ) -> Deletion:
        with file.lock:
            before = replace(file.state)
            file.state.name, file.state.etag, file.state.base_size = blob_name, info.etag, info.size_bytes
            file.show()
            self._files.ledger.restate(file)
            deletion = self._files.ledger.delete(before, lasts=False)
            self._files.move_child(file, old, new, name)
            return deletion

    # Directories

    def _rename_directory(
        self,
        node: DirectoryNode,
        old: DirectoryNode,
        new: DirectoryNode,
        name: bytes,
        target: Node | None,
        attempt: Attempt,
    ) -> None:
        """Copy everything below, then delete it: what fails before all is copied leaves the old name as it was."""
        files, source = self._files, node.source
        assert source
        if isinstance(target, DirectoryNode):
            self._make_way(new, target, attempt)
        before, after = node.blob_name, self._names.name_below(new, name)[1] + "/"
        live = files.live_below(source, before)
        for file in live:
            files.flush_to_store(file)
        with contextlib.ExitStack() as held:
            for file in live:
                held.enter_context(file.sending)
            if isinstance(source.store, HasDirectories):
                self._rename_at_once(source.store, before, after, attempt)
                files.move_directory(node, old, new, name, None)
                return
            moved = self._copy_all(source, before, after, attempt)
            files.move_directory(node, old, new, name, {info.name: made for info, made in moved})
        if attempt.was_begun:
            files.expire(node)  # what was deleted before is known under its new name only to the store
        self._delete_all(source, [info for info, _ in moved], before)

    def _make_way(self, parent: DirectoryNode, target: DirectoryNode, attempt: Attempt) -> None:
        """Remove an empty directory that another replaces; copies of a process that died are no hindrance."""
        try:
            self._names.remove_directory(parent, target)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or not attempt.was_begun:
                raise

    def _finish(self, old: DirectoryNode, old_name: bytes, target: Node) -> None:
        """Delete what a process that died had copied and not deleted yet; of a file, the recovery has seen to that."""
        if not isinstance(target, DirectoryNode) or target.source is None:
            return
        source, store = target.source, target.source.store
        before = self._names.name_below(old, old_name)[1] + "/"
        assert isinstance(store, WritableStore)
        try:
            left = [info for page in store.list(before) for info in page.objects if info.name != before]
            copied = [info for info in left if is_copy(store, info, target.blob_name + info.name.removeprefix(before))]
        except AmlmountError as error:
            raise as_errno(error) from error
        self._delete_all(source, copied, before)

    def _rename_at_once(self, store: HasDirectories, before: str, after: str, attempt: Attempt) -> None:
        try:
            store.rename_directory(before.removesuffix("/"), after.removesuffix("/"))
        except BlobNotFoundError as error:
            if not attempt.was_begun:
                raise as_errno(error) from error
        except AmlmountError as error:
            raise as_errno(error) from error

    def _copy_all(
        self, source: Source, before: str, after: str, attempt: Attempt
    ) -> list[tuple[ObjectInfo, ObjectInfo]]:
        store, made = source.store, list[ObjectInfo]()
        assert isinstance(store, WritableStore)

        def copy(info: ObjectInfo) -> tuple[ObjectInfo, ObjectInfo]:
            name = after + info.name.removeprefix(before)
            try:
                copied = store.copy(info, name, if_none_match=True)
            except PreconditionFailedError:
                if not (attempt.was_begun and is_copy(store, info, name)):
                    raise
                copied = store.head(name)
            else:
                made.append(copied)
            return info, copied

        try:
            self._names.make_marker(source, after.removesuffix("/"))
            infos = [info for page in store.list(before) for info in page.objects if info.name != before]
            with ThreadPoolExecutor(COPIES_AT_ONCE, "rename") as pool:
                return list(pool.map(copy, infos))
        except AmlmountError as error:
            self._take_back(source, made, after)
            raise as_os_error(error) from error

    def _take_back(self, source: Source, made: list[ObjectInfo], after: str) -> None:
        """Delete copies of a rename that failed; one that cannot be deleted is said."""
        for info in made:
            try:
                source.store.delete(info.name, if_match=info.etag)
            except AmlmountError as error:
                log.error("a rename failed, and its copy '%s' is still there: %s", info.name, error.message)
        try:
            self._names.remove_markers(source, after.removesuffix("/"))
        except OSError as error:
            log.error("a rename failed, and its directory '%s' is still there: %s", after, error)

    def _delete_all(self, source: Source, infos: list[ObjectInfo], before: str) -> None:
        """Delete what was copied, each only if it is still the version that was copied."""

        def delete(info: ObjectInfo) -> None:
            try:
                source.store.delete(info.name, if_match=info.etag)
            except PreconditionFailedError:
                log.warning("'%s' was changed while its directory was renamed: it stays where it was", info.name)

        try:
            with ThreadPoolExecutor(COPIES_AT_ONCE, "rename") as pool:
                list(pool.map(delete, infos))
            self._names.remove_markers(source, before.removesuffix("/"))
        except AmlmountError as error:
            raise as_os_error(error) from error


def is_copy(store: WritableStore, info: ObjectInfo, name: str) -> bool:
    """Tell whether a blob is the same as another, byte by byte. Raises the store's errors."""
    try:
        other = store.head(name)
    except BlobNotFoundError:
        return False
    if other.size_bytes != info.size_bytes:
        return False
    for start in range(0, info.size_bytes, COMPARE_BYTES):
        length = min(COMPARE_BYTES, info.size_bytes - start)
        one = store.get(info.name, start, length, if_match=info.etag)
        if one != store.get(name, start, length, if_match=other.etag):
            return False
    return True


def _check_target(node: Node, target: Node | None, may_replace: bool) -> None:
    """Raise what rename(2) raises for what the new name leads to."""
    if target is None:
        return
    if not may_replace:
        raise FileExistsError(errno.EEXIST, "file exists")
    if isinstance(node, DirectoryNode) and not isinstance(target, DirectoryNode):
        raise NotADirectoryError(errno.ENOTDIR, "a file has that name")
    if not isinstance(node, DirectoryNode) and isinstance(target, DirectoryNode):
        raise IsADirectoryError(errno.EISDIR, "a directory has that name")
