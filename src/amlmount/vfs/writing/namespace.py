"""What changes names: files and directories made, removed, linked to. Renaming has a module of its own.

The store hears of it before it is acknowledged; a file's content goes there when it is closed.
"""

import errno
import os
import time
from collections.abc import Iterator

from amlmount.errors import AmlmountError, BlobNotFoundError, BusyError, PreconditionFailedError, UsageError
from amlmount.stores.base import HasDirectories, ObjectInfo, WritableStore
from amlmount.vfs.base import Node, NodeKind, WouldBlock
from amlmount.vfs.errno import as_os_error
from amlmount.vfs.listing import is_folder_marker
from amlmount.vfs.names import HiddenReason, decode_segment, encode_segment
from amlmount.vfs.nodes import DirectoryNode, FileNode, Source
from amlmount.vfs.writing.attempts import ONCE, Attempt
from amlmount.vfs.writing.filesystem import WritableFileSystem
from amlmount.vfs.writing.livefile import LiveFile, State
from amlmount.vfs.writing.sending import WRITE_ID

FOLDER = {"hdi_isfolder": "true"}
SYMLINK = {"is_symlink": "true"}
MAX_RESERVE = 3  # a name that is taken and then free is asked for again
MAX_BLOB_NAME = 1024  # characters, "Naming and referencing containers, blobs, and metadata"
_ERRNO = {UsageError: errno.EINVAL, BusyError: errno.EBUSY}


class Namespace:
    """Changes of names in one writable file system. All of it may wait; raises OSError."""

    def __init__(self, files: WritableFileSystem) -> None:
        self.files = files

    def create(
        self, parent_id: int, name: bytes, flags: int, attempt: Attempt = ONCE, *, may_wait: bool = True
    ) -> Node:
        """Return a file opened as `flags` say, made if it is not there. Raises EEXIST (O_EXCL), EISDIR, EACCES..."""
        files, directory = self.files, self.directory(parent_id)
        present = self.child(directory, name, may_wait=may_wait)
        if not may_wait and (present is not None or flags & os.O_EXCL or files.uploads.refused is not None):
            raise WouldBlock
        if present is not None:
            if flags & os.O_EXCL and not (attempt.was_begun and not present.size_bytes):
                raise FileExistsError(errno.EEXIST, "file exists")
            return files.open_file(present.node_id, flags)
        source, blob_name = self.name_below(directory, name)
        files.refusals.refuse(source)
        attempt.begin()
        number = files.ledger.new_id()
        etag = self._reserve(directory, source, blob_name, number, attempt) if flags & os.O_EXCL else ""
        return self._make(directory, source, name, blob_name, number, etag)

    def _reserve(self, directory: DirectoryNode, source: Source, blob_name: str, number: int, attempt: Attempt) -> str:
        """Make the empty blob at once: of several machines that try, one succeeds; by the metadata it knows its own."""
        store, whose = source.store, f"{self.files.ledger.state_id}-"
        own = {WRITE_ID: f"{whose}{number:x}-0"} if isinstance(store, WritableStore) and store.keeps_metadata else {}
        try:
            for _ in range(MAX_RESERVE):
                try:
                    return store.put(blob_name, b"", if_none_match=True, metadata=own).etag
                except PreconditionFailedError:
                    present = _head(source, blob_name)
                if present is not None and attempt.was_begun and _is_reserved(present, whose if own else ""):
                    return present.etag
                if present is not None:
                    break
        except AmlmountError as error:
            raise as_errno(error) from error
        self.files.expire(directory)
        raise FileExistsError(errno.EEXIST, "somebody else has just made it")

    def _make(
        self, directory: DirectoryNode, source: Source, name: bytes, blob_name: str, number: int, etag: str
    ) -> LiveFile:
        files = self.files
        state = State(
            id=number,
            node_id=files.new_number(),
            ino=files.path_number(directory, name),
            place=files.options.places[source.index],
            name=blob_name,
            etag=etag,
            mtime_ns=time.time_ns(),
            change=1,
            stored=1 if etag else 0,
        )
        file = LiveFile(files.disk, source, directory.node_id, name, state)
        file.opens = 1
        with file.lock:
            files.ledger.enter(file)  # first: a name that leads to nothing is worse than one that is not there yet
            files.put_child(directory, file)
            if file.node_id != state.node_id:
                state.node_id = file.node_id
                files.ledger.restate(file)
        return file

    def unlink(self, parent_id: int, name: bytes, attempt: Attempt = ONCE) -> None:
        """Remove a file; whoever has it open keeps it. Raises ENOENT, EISDIR, EACCES, EIO."""
        directory = self.directory(parent_id)
        node = self._existing(directory, name, attempt)
        if node is None:
            return
        if not isinstance(node, FileNode):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        attempt.begin()
        try:
            self.remove_file(directory, node)
        except OSError as error:
            if error.errno != errno.ESTALE or not attempt.was_begun or _head(node.source, node.blob_name) is not None:
                raise
            self._take_removed(directory, node)
        self.keep_directory(directory)

    def _take_removed(self, directory: DirectoryNode, node: FileNode) -> None:
        """Take away the name of what a process that died has deleted; nobody can have its content any more."""
        file = self.files.known(node.node_id)
        if isinstance(file, LiveFile):
            self.forget_live(file)
        self.files.take_child(directory, node.name)

    def forget_live(self, file: LiveFile) -> None:
        """Forget a live file that no name leads to any more: its blob is gone or was replaced, or will be."""
        with file.lock:
            file.is_unlinked = True
            self.files.ledger.unlink(file)
            if not file.opens:
                file.drop_data()

    def remove_file(self, directory: DirectoryNode, node: FileNode) -> None:
        """Delete the blob of a file, and forget what was to be sent. Raises OSError."""
        files = self.files
        with files.leaving(node) as file:
            if file is None:
                self.delete_blob(node.source, node.blob_name)
            else:
                file.is_unlinked = True
                try:
                    self._delete_live(file)
                except BaseException:
                    file.is_unlinked = False
                    raise
            files.take_child(directory, node.name)
        if file is not None and not file.opens:
            with file.lock:
                file.drop_data()

    def _delete_live(self, file: LiveFile) -> None:
        state, ledger = file.state, self.files.ledger
        if not state.etag and not state.promised and not file.was_sent:
            ledger.unlink(file)
            return
        deletion = ledger.delete(state)
        ledger.unlink(file)
        try:
            self.delete_blob(file.source, state.name)
        except BaseException:
            file.is_unlinked = False
            ledger.enter(file)
            if state.promised > state.stored:
                self.files.uploads.promise_again(file)
            ledger.deleted(deletion)
            raise
        ledger.deleted(deletion)

    def delete_blob(self, source: Source, name: str) -> None:
        """Delete a blob; one that is not there is deleted. Raises OSError."""
        try:
            source.store.delete(name)
        except BlobNotFoundError:
            return
        except AmlmountError as error:
            raise as_errno(error) from error

    # Directories

    def mkdir(self, parent_id: int, name: bytes, attempt: Attempt = ONCE) -> DirectoryNode:
        """Make a directory, which is a marker blob where the store has none. Raises EEXIST, EACCES, EIO."""
        files, directory = self.files, self.directory(parent_id)
        present = self.child(directory, name)
        if isinstance(present, DirectoryNode) and attempt.was_begun:
            return present
        if present is not None:
            raise FileExistsError(errno.EEXIST, "file exists")
        source, blob_name = self.name_below(directory, name)
        files.refusals.refuse(source)
        attempt.begin()
        self.make_marker(source, blob_name)
        made = files.make_directory(directory, source, name)
        files.put_child(directory, made)
        return made

    def make_marker(self, source: Source, blob_name: str) -> None:
        """Have the store show a directory even if there is nothing in it. Raises OSError."""
        try:
            if isinstance(source.store, HasDirectories):
                source.store.make_directory(blob_name)
                return
            for _ in range(MAX_RESERVE):
                try:
                    source.store.put(blob_name, b"", if_none_match=True, metadata=FOLDER)
                    return
                except PreconditionFailedError:
                    if _head(source, blob_name) is not None:
                        return  # it is there: as a marker, or as a blob that whoever looks next sees
        except AmlmountError as error:
            raise as_errno(error) from error

    def rmdir(self, parent_id: int, name: bytes, attempt: Attempt = ONCE) -> None:
        """Remove an empty directory. Raises ENOTEMPTY, ENOTDIR, ENOENT, EACCES, EIO."""
        directory = self.directory(parent_id)
        node = self._existing(directory, name, attempt)
        if node is None:
            return
        if not isinstance(node, DirectoryNode) or node.source is None:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        attempt.begin()
        self.remove_directory(directory, node)
        self.keep_directory(directory)

    def remove_directory(self, parent: DirectoryNode, node: DirectoryNode) -> None:
        """Remove a directory that the store, asked again, shows to be empty. Raises OSError."""
        assert node.source
        self.files.expire(node)
        if self.files.entries_of(node):
            raise OSError(errno.ENOTEMPTY, "directory not empty")
        self.remove_markers(node.source, node.blob_name.removesuffix("/"))
        self.files.take_child(parent, node.name)

    def remove_markers(self, source: Source, path: str) -> None:
        """Remove what shows an empty directory, in either form. Raises OSError."""
        store = source.store
        try:
            if isinstance(store, HasDirectories):
                store.remove_directory(path)
                return
            for info in list(self._markers(source, path)):
                store.delete(info, if_match=None)
        except BusyError as error:
            raise OSError(errno.ENOTEMPTY, "directory not empty") from error
        except BlobNotFoundError:
            return
        except AmlmountError as error:
            raise as_errno(error) from error

    def _markers(self, source: Source, path: str) -> Iterator[str]:
        for page in source.store.list(path, delimiter=True):
            yield from (info.name for info in page.objects if info.name == path and is_folder_marker(info))
        for page in source.store.list(f"{path}/", delimiter=True):
            yield from (info.name for info in page.objects if info.name == f"{path}/" and not info.size_bytes)

    def keep_directory(self, directory: DirectoryNode) -> None:
        """Let a directory outlive its last entry: without a marker it would vanish with it."""
        if directory.source is None or not directory.path or self.files.entries_of(directory):
            return
        self.make_marker(directory.source, directory.blob_name.removesuffix("/"))

    # Symlinks

    def symlink(self, parent_id: int, name: bytes, target: bytes, attempt: Attempt = ONCE) -> Node:
        """Make a symlink as blobfuse2 stores it: a blob with the target as content, and metadata that says so."""
        directory = self.directory(parent_id)
        present = self.child(directory, name)
        if present is not None and present.kind is NodeKind.SYMLINK and attempt.was_begun:
            return present
        if present is not None:
            raise FileExistsError(errno.EEXIST, "file exists")
        source, blob_name = self.name_below(directory, name)
        store = source.store
        if not isinstance(store, WritableStore) or not store.keeps_metadata:
            raise OSError(errno.EPERM, "this store has no way to tell a symlink from a file")
        self.files.refusals.refuse(source)
        attempt.begin()
        try:
            info = store.put(blob_name, target, if_none_match=True, metadata=SYMLINK)
        except PreconditionFailedError:
            self.files.expire(directory)
            raise FileExistsError(errno.EEXIST, "somebody else has just made it") from None
        except AmlmountError as error:
            raise as_errno(error) from error
        node = self.files.make_file(directory, source, name, info)
        self.files.put_child(directory, node)
        return node

    # What all of them need

    def directory(self, node_id: int) -> DirectoryNode:
        """Return a directory in which names can change. Raises ENOTDIR, ESTALE, EPERM (the plain root of several)."""
        node = self.files.node(node_id)
        if not isinstance(node, DirectoryNode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        if node.source is None:
            raise OSError(errno.EPERM, "the directory of sources is not itself in a store")
        return node

    def child(self, directory: DirectoryNode, name: bytes, *, may_wait: bool = True) -> Node | None:
        """Return what has a name, None if nothing has."""
        try:
            return self.files.lookup(directory.node_id, name, may_wait=may_wait)
        except FileNotFoundError:
            return None

    def _existing(self, directory: DirectoryNode, name: bytes, attempt: Attempt) -> Node | None:
        """Return what has a name, None if this very attempt may have removed it. Raises ENOENT."""
        node = self.child(directory, name)
        if node is None and not attempt.was_begun:
            raise FileNotFoundError(errno.ENOENT, "no such file or directory")
        return node

    def name_below(self, directory: DirectoryNode, name: bytes) -> tuple[Source, str]:
        """Return the blob name of a name in a directory. Raises EILSEQ, ENAMETOOLONG, EINVAL."""
        assert directory.source
        segment = decode_segment(name)
        if isinstance(encode_segment(segment), HiddenReason):
            raise OSError(errno.EINVAL, "not a name that could be shown")
        blob_name = directory.blob_name + segment
        if not directory.source.store.is_local:
            if len(blob_name) > MAX_BLOB_NAME:
                raise OSError(errno.ENAMETOOLONG, "longer than a blob's name can be")
            if not _is_utf8(segment):
                raise OSError(errno.EILSEQ, "not UTF-8, which a blob's name must be")
        return directory.source, blob_name


def _head(source: Source, blob_name: str) -> ObjectInfo | None:
    try:
        return source.store.head(blob_name)
    except BlobNotFoundError:
        return None


def _is_reserved(present: ObjectInfo, whose: str) -> bool:
    """Say whether a blob may be what a process before us made to have the name."""
    return not present.size_bytes and present.metadata.get(WRITE_ID, "").startswith(whose)


def _is_utf8(segment: str) -> bool:
    try:
        segment.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_errno(error: AmlmountError) -> OSError:
    """Return the OSError for a store's error in a change of names."""
    number = _ERRNO.get(type(error))
    return OSError(number, error.message) if number else as_os_error(error)
