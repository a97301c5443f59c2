"""What the journal tells a new start: promises to be kept, names to be deleted, data that nobody was promised.

Two ways. A successor takes a mount over: every live file goes on where it was. A start from nothing: what was
promised is sent, what was not is set aside and reported, unless the store turns out to have it.
"""

import logging
from dataclasses import dataclass, field

from amlmount.errors import AmlmountError, BlobNotFoundError, PreconditionFailedError
from amlmount.stores.base import ObjectInfo
from amlmount.vfs.names import encode_segment
from amlmount.vfs.nodes import FileNode, Source
from amlmount.vfs.writing.disk import DATA
from amlmount.vfs.writing.extents import Extents
from amlmount.vfs.writing.filesystem import WritableFileSystem
from amlmount.vfs.writing.keeping import keep
from amlmount.vfs.writing.ledger import Deletion, Entry
from amlmount.vfs.writing.livefile import NOT_DIRECT, LiveFile, State
from amlmount.vfs.writing.sending import WRITE_ID, Snapshot

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recovered:
    """What came of the past: files that go on, files that are being sent, what was set aside (paths), troubles."""

    resumed: int = 0
    pending: int = 0
    kept: list[str] = field(default_factory=list)
    damaged_bytes: int = 0


def recover(files: WritableFileSystem, *, is_successor: bool = False) -> Recovered:
    """Take up what the last process over this state directory left. After `inherit`, before anything is asked.

    Raises OSError if the disk fails.
    """
    return _Recovery(files).run(is_successor)


class _Recovery:
    def __init__(self, files: WritableFileSystem) -> None:
        self._files = files
        self._sources = {files.options.places[source.index]: source for source, _ in files.tops()}
        self._found = Recovered(damaged_bytes=files.ledger.past.damaged_bytes)

    def run(self, is_successor: bool) -> Recovered:
        past = self._files.ledger.past
        if past.damaged_bytes:
            log.error("%d bytes of the journal are damaged: what they said is not known", past.damaged_bytes)
        for entry in past.entries.values():
            if is_successor and self._resume(entry):
                self._found.resumed += 1
            elif entry.is_unlinked:
                continue  # nobody is left who could want it
            elif entry.promise is not None:
                self._keep_promise(entry, entry.promise)
            else:
                self._set_aside(entry)
        if is_successor:
            self._files.count_left_open()
        self._remove_strays()
        for deletion in past.deletions.values():
            self._delete(deletion)
        self._files.ledger.past.entries = {}
        self._files.ledger.start_over()
        return self._found

    # A successor

    def _resume(self, entry: Entry) -> bool:
        """Let a live file go on as the inode that it was; False if the kernel cannot know it."""
        files, state = self._files, entry.state
        node, source = files.known(state.node_id), self._sources.get(state.place)
        if not isinstance(node, FileNode) or source is None:
            return False
        if not (state.has_data or state.whole):  # what a process was about to remove
            files.disk.remove(state.data_name)
        handles = files.count_handles(state.node_id)
        if entry.is_unlinked and not (handles and self._is_all_here(state)):
            return False
        if files.is_backed(state.node_id):
            state.direct = state.epoch
        self._measure(state)
        if entry.begun > state.stored:
            # Not every change is in the journal; whatever lands yet of what was begun is older than what is here.
            state.change = max(state.change, entry.begun + 1)
        file = LiveFile(files.disk, source, node.parent_id, node.name, state)
        file.promise, file.was_sent, file.is_unlinked = entry.promise, entry.begun > 0, entry.is_unlinked
        file.opens = max(handles, 1)
        file.noticed = None if file.is_dirty else (state.size, state.mtime_ns)
        files.put_in_place(node, file)
        files.go_on_direct(file)
        if entry.begun > state.stored and not entry.is_unlinked:
            self._settle_doubt(file)
        if file.is_pending or state.mapped:
            files.uploads.enqueue(file)
        if not handles:
            self._close(file)
        return True

    def _close(self, file: LiveFile) -> None:
        """Close a file for a process that had only begun to: nobody asks for it again."""
        try:
            self._files.close_file(file)
        except OSError as error:
            log.error("what was written to '%s' cannot be made to last: %s", file.state.name, error)
            self._files.uploads.enqueue(file)

    def _is_all_here(self, state: State) -> bool:
        return state.whole and (not state.size or self._files.disk.exists(state.data_name))

    def _measure(self, state: State) -> None:
        """Of a file that is whole here, the data file itself says how long it is."""
        if not state.whole:
            return
        name = state.data_name
        if not self._files.disk.exists(name) and state.change <= state.stored:
            state.whole, state.has_data = False, False  # it was being let go of
            state.size = state.base_end = state.base_size
            return
        if self._files.disk.exists(name):
            state.has_data = True
            state.size, mtime_ns = self._files.disk.measure(name)
            is_as_sent = (state.size, mtime_ns) == (state.base_size, state.mtime_ns) and not state.mapped
            if state.size != state.base_size or (state.is_direct and not is_as_sent):
                # The kernel has written into it since it was sent, or it was just being cut.
                state.change = max(state.change, state.stored + 1)
            if state.change > state.stored:
                state.mtime_ns = mtime_ns
        state.held = Extents([(0, state.size)])
        state.dirty = Extents([(0, state.size)]) if state.change > state.stored else Extents()
        state.change += state.change > state.stored  # writes of whole files are not counted in the journal

    def _settle_doubt(self, file: LiveFile) -> None:
        """An upload was under way: if it came through, take its version over, so that the next one replaces it."""
        present = self._head(file.source, file.state.name)
        if present is None or present.etag == file.state.etag:
            return
        with file.lock:
            snapshot = Snapshot(file, self._files.ledger.state_id)
        try:
            if snapshot.is_by_the_same(present) or (not present.metadata.get(WRITE_ID) and snapshot.is_in(present)):
                file.state.etag = present.etag
        except (AmlmountError, OSError) as error:
            log.warning("cannot tell whether '%s' is ours: %s", file.state.name, error)
        finally:
            snapshot.close()

    # A start from nothing

    def _keep_promise(self, entry: Entry, state: State) -> None:
        """Have sent what somebody was told would last; it is shown under its name until it is."""
        files = self._files
        source = self._sources.get(state.place)
        if source is None:
            self._keep(state, f"its container ({state.place}) is no part of this mount any more")
            return
        state.has_data = files.disk.exists(state.data_name)
        if entry.inline is not None:
            self._write_inline(state, entry.inline)
        elif not state.has_data and (state.whole or state.held) and state.size:
            log.error("the data of '%s' is gone from '%s'", state.name, files.disk.path(state.data_name))
            self._found.kept.append(f"{state.name}: its data is gone")
            return
        state.direct, state.mapped = NOT_DIRECT, False
        if state.whole:
            state.held = Extents([(0, state.size)])
            state.dirty = Extents([(0, state.size)])
        *folders, name = state.name.removeprefix(source.prefix).split("/")
        encoded = encode_segment(name)
        assert isinstance(encoded, bytes)
        state.node_id = files.new_number()  # the version it was made from has the old one
        file = LiveFile(files.disk, source, 0, encoded, state)
        file.promise, file.was_sent = state, True
        files.expect(source, "".join(f"{folder}/" for folder in folders), file)
        files.uploads.enqueue(file)
        self._found.pending += 1

    def _write_inline(self, state: State, data: bytes) -> None:
        disk = self._files.disk
        fd = disk.open(state.data_name, create=True)
        try:
            disk.truncate(fd, 0)
            disk.write(fd, data, 0)
            disk.sync(fd)
            disk.sync_directory(disk.path(DATA))
        finally:
            disk.close(fd)
        state.has_data = True

    def _set_aside(self, entry: Entry) -> None:
        """Of what nobody was promised anything about, keep what the store does not have."""
        state, disk = entry.state, self._files.disk
        if not disk.exists(state.data_name) or not disk.measure(state.data_name)[0]:
            disk.remove(state.data_name)
            return
        self._measure(state)
        if state.change <= state.stored or self._is_stored(state):
            disk.remove(state.data_name)
            return
        self._keep(state, "it was being written, and neither fsync nor close had returned")

    def _is_stored(self, state: State) -> bool:
        source = self._sources.get(state.place)
        present = self._head(source, state.name) if source else None
        if present is None or source is None:
            return False
        file = LiveFile(self._files.disk, source, 0, b"", state)
        try:
            snapshot = Snapshot(file, self._files.ledger.state_id)
            try:
                return present.size_bytes == state.size and snapshot.is_same(present)
            finally:
                snapshot.close()
        except (AmlmountError, OSError):
            return False
        finally:
            file.close_data()

    def _keep(self, state: State, why: str) -> None:
        path = keep(self._files.disk, state, why)
        log.error("'%s' is not in the store: %s; it is kept as '%s'", state.name, why, path)
        self._found.kept.append(path)
        self._files.news.set_aside(state.name, why, path)

    def _remove_strays(self) -> None:
        """Remove data files that no record tells of: the machine stopped before anything was said about them."""
        disk, known = self._files.disk, set()
        ledger = self._files.ledger
        for file in [*ledger.files.values(), *ledger.unlinked.values()]:
            known |= {file.state.data_name, *([file.promise.data_name] if file.promise else [])}
        for name in disk.names(DATA):
            if f"{DATA}/{name}" not in known:
                disk.remove(f"{DATA}/{name}")

    def _delete(self, deletion: Deletion) -> None:
        """Finish a deletion, unless somebody else has written under the name since."""
        source = self._sources.get(deletion.place)
        present = self._head(source, deletion.name) if source else None
        own = f"{self._files.ledger.state_id}-{deletion.file_id:x}-"
        if source is None or present is None:
            return
        if present.etag != deletion.etag and not present.metadata.get(WRITE_ID, "").startswith(own):
            return
        try:
            source.store.delete(deletion.name, if_match=present.etag)
        except (BlobNotFoundError, PreconditionFailedError):
            return
        except AmlmountError as error:
            log.error("'%s' was deleted here, and is still in the store: %s", deletion.name, error.message)

    def _head(self, source: Source, name: str) -> ObjectInfo | None:
        try:
            return source.store.head(name)
        except BlobNotFoundError:
            return None
        except AmlmountError as error:
            log.warning("cannot look at '%s': %s", name, error.message)
            return None
