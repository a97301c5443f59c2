"""What the journal's records mean: live files begun, changed, promised, sent, renamed, gone; names to be deleted.

Written as things happen, read once at the start (`replay`). docs/journal.md describes each kind of record.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from amlmount.vfs.writing.disk import DATA, Disk
from amlmount.vfs.writing.journal import Journal
from amlmount.vfs.writing.livefile import LiveFile, State
from amlmount.vfs.writing.records import Record

FILE, STATE, CHANGED, WROTE, CUT = "file", "state", "changed", "wrote", "cut"
PROMISE, BEGUN, SENT, GONE, DELETE, DELETED = "promise", "begun", "sent", "gone", "delete", "deleted"
UNLINKED = "unlinked"


TRYING, DID = "trying", "did"
ID_NAME, ID_BYTES = "id", 8
MAX_DONE = 1024  # requests of which it is remembered that they were carried out; more are never unanswered at once


@dataclass(slots=True)
class Entry:
    """A live file as the journal knows it: as it was last, as it was when somebody was promised something.

    `is_unlinked`: no name leads to it any more; only who has it open could still want it.
    """

    state: State
    promise: State | None = None
    inline: bytes | None = None
    begun: int = 0
    is_unlinked: bool = False

    def unlink(self) -> None:
        """Let its name lead elsewhere: what was promised of it is void."""
        self.is_unlinked, self.promise, self.inline = True, None, None


@dataclass(frozen=True, slots=True)
class Deletion:
    """A blob that is to be deleted: the version `etag`, or what live file `file_id` has sent and nobody heard of."""

    number: int
    place: str
    name: str
    etag: str
    file_id: int


@dataclass(slots=True)
class Past:
    """What a journal tells whoever opens it."""

    entries: dict[int, Entry] = field(default_factory=dict)
    deletions: dict[int, Deletion] = field(default_factory=dict)
    next_id: int = 1
    damaged_bytes: int = 0
    tried: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)


def replay(records: Iterable[Record]) -> Past:
    """Work out what is left of the past; a record about a file that is not known says nothing."""
    past = Past()
    for record in records:
        fields = record.fields
        number = fields.get("id", 0)
        past.next_id = max(past.next_id, number + 1)
        if record.kind == FILE:
            past.entries[number] = Entry(State.from_json(fields["state"]))
        elif record.kind == DELETE:
            past.deletions[number] = Deletion(number, fields["place"], fields["name"], fields["etag"], fields["file"])
            _forget_name(past, fields["place"], fields["name"])
        elif record.kind == TRYING:
            past.tried.append(fields["request"])
        elif record.kind == DID:
            past.done.append(fields["request"])
        elif record.kind == DELETED:
            past.deletions.pop(number, None)
        elif record.kind == GONE:
            past.entries.pop(number, None)
        elif (entry := past.entries.get(number)) is not None:
            _happened(entry, record)
            if record.kind == PROMISE:
                _forget_name(past, entry.state.place, entry.state.name, but=number)
    return past


def _forget_name(past: Past, place: str, name: str, but: int = 0) -> None:
    """Forget what was to go under a name that is to be deleted, or that another file has got."""
    for number, entry in past.entries.items():
        if number != but and (entry.state.place, entry.state.name) == (place, name):
            entry.unlink()


def _happened(entry: Entry, record: Record) -> None:
    state, fields = entry.state, record.fields
    if record.kind == STATE:
        entry.state = State.from_json(fields["state"])
    elif record.kind == PROMISE:
        entry.promise = State.from_json(fields["state"])
        entry.state = State.from_json(fields["state"])
        entry.inline = record.data if fields["inline"] else None
    elif record.kind == WROTE:
        state.held.add(fields["start"], fields["end"])
        state.dirty.add(fields["start"], fields["end"])
        state.size = max(state.size, fields["end"])
    elif record.kind == CUT:
        state.held.cut(fields["size"])
        state.dirty.cut(fields["size"])
        state.size, state.base_end = fields["size"], min(state.base_end, fields["size"])
    elif record.kind == UNLINKED:
        entry.unlink()
    elif record.kind == BEGUN:
        entry.begun, state.direct = fields["change"], fields.get("direct", state.direct)
    elif record.kind == SENT:
        _sent(entry, fields["change"], fields["etag"], fields["size"])
        if entry.state.change <= fields["change"]:
            entry.state.mtime_ns = fields.get("mtime", entry.state.mtime_ns)
    state = entry.state
    if record.kind in (WROTE, CUT, CHANGED):
        state.change, state.has_data = fields["change"], True


def _sent(entry: Entry, change: int, etag: str, size_bytes: int) -> None:
    for state in (entry.state, entry.promise):
        if state is not None:
            state.change = max(state.change, change)  # not every one is in the journal
            state.stored, state.etag, state.base_size = max(state.stored, change), etag, size_bytes
    if entry.state.change <= change:
        entry.state.dirty.cut(0)
    if entry.promise is not None and entry.promise.promised <= change:
        entry.promise = entry.inline = None


class Ledger:
    """The journal of one mount and the live files it must still know. Raises OSError when the disk fails."""

    def __init__(self, disk: Disk) -> None:
        """Open it; `past` is what it says. Raises AmlmountError for a journal that cannot be read."""
        self.disk = disk
        self.state_id = _state_id(disk)
        self.journal = Journal(disk)
        self.past = replay(self.journal.found.records)
        self.past.damaged_bytes = self.journal.found.damaged_bytes
        self.files: dict[int, LiveFile] = {}
        self.unlinked: dict[int, LiveFile] = {}  # that somebody has open
        self._tried = deque(self.past.tried, maxlen=MAX_DONE)
        self._done = deque(self.past.done, maxlen=MAX_DONE)
        self._deletions: dict[int, Deletion] = dict(self.past.deletions)
        self._lock = threading.Lock()
        self._next_id = self.past.next_id

    def new_id(self) -> int:
        """Return a number that names a live file, or a deletion, for ever."""
        with self._lock:
            self._next_id += 1
            return self._next_id - 1

    def knows(self, file: LiveFile) -> bool:
        """Say whether anything is noted of a file."""
        return file.state.id in self.files or file.state.id in self.unlinked

    def enter(self, file: LiveFile) -> None:
        """Note a file's state for the first time."""
        self.files[file.state.id] = file
        self.unlinked.pop(file.state.id, None)
        self.journal.append(FILE, id=file.state.id, state=file.state.to_json())

    def restate(self, file: LiveFile) -> int:
        """Note all of a file's state, because no smaller record says what changed; what was promised stays so."""
        return self.journal.append(STATE, id=file.state.id, state=file.state.to_json())

    def changed(self, file: LiveFile) -> None:
        """Note that a file whose data file is all of it is no longer what the store has."""
        self.journal.append(CHANGED, id=file.state.id, change=file.state.change)

    def wrote(self, file: LiveFile, start: int, end: int) -> None:
        """Note that a range is held; only after it is in the data file."""
        self.journal.append(WROTE, id=file.state.id, start=start, end=end, change=file.state.change)

    def cut(self, file: LiveFile) -> None:
        """Note a new, smaller size."""
        self.journal.append(CUT, id=file.state.id, size=file.state.size, change=file.state.change)

    def promise(self, file: LiveFile, inline: bytes | None = None) -> int:
        """Note that somebody will be told that this state lasts; return the place to sync to before that is said.

        `inline`: all of a small file. Else its data file must have been synced.
        """
        state = file.state.to_json()
        file.promise = State.from_json(state)
        return self.journal.append(PROMISE, inline or b"", id=file.state.id, state=state, inline=inline is not None)

    def begun(self, file: LiveFile, change: int) -> None:
        """Note that this change is about to be sent: afterwards it may be in the store without our knowing."""
        self.journal.append(BEGUN, id=file.state.id, change=change, direct=file.state.direct)

    def sent(self, file: LiveFile, change: int, etag: str, size_bytes: int, mtime_ns: int) -> int | None:
        """Note that the store has this change; return the place to sync to before anything is done that rests on it.

        A promise that is kept must not be kept once more after a crash, when the file may be gone or another.
        """
        fulfils = file.promise is not None and file.promise.promised <= change
        if fulfils:
            file.promise = None
        what: dict[str, Any] = {"change": change, "etag": etag, "size": size_bytes, "mtime": mtime_ns}
        place = self.journal.append(SENT, id=file.state.id, **what)
        return place if fulfils else None

    def gone(self, file: LiveFile) -> int:
        """Note that nothing of a file needs to be known any more."""
        self.files.pop(file.state.id, None)
        self.unlinked.pop(file.state.id, None)
        return self.journal.append(GONE, id=file.state.id)

    def unlink(self, file: LiveFile) -> None:
        """Note that no name leads to a file any more; who has it open keeps it, through a successor, too."""
        if not file.opens:
            self.gone(file)
            return
        self.files.pop(file.state.id, None)
        self.unlinked[file.state.id] = file
        self.journal.append(UNLINKED, id=file.state.id)

    def delete(self, state: State, *, lasts: bool = True) -> Deletion:
        """Note, so that it lasts, that a live file's blob will be deleted, and what was promised of it is void."""
        deletion = Deletion(self.new_id(), state.place, state.name, state.etag, state.id)
        self._deletions[deletion.number] = deletion
        place = self.journal.append(DELETE, **_deletion_fields(deletion))
        if lasts:
            self.journal.sync(place)
        return deletion

    def trying(self, request: int) -> None:
        """Note that a request (by the number the kernel gave it) is about to be carried out."""
        self._tried.append(request)
        self.journal.append(TRYING, request=request)

    def was_tried(self, request: int) -> bool:
        """Say whether a process before this one had begun to carry out a request."""
        return request in self._tried

    def did(self, request: int) -> None:
        """Note that a request (by the number the kernel gave it) was carried out, before its answer is sent."""
        self._done.append(request)
        self.journal.append(DID, request=request)

    def was_done(self, request: int) -> bool:
        """Say whether a request had been carried out when the process before this one died."""
        return request in self._done

    def deleted(self, deletion: Deletion) -> None:
        """Note that it is done."""
        self._deletions.pop(deletion.number, None)
        self.journal.append(DELETED, id=deletion.number)

    def start_over(self) -> None:
        """Begin the journal anew after a recovery: deletions of the past are done."""
        self._deletions.clear()
        self._rewrite()

    def tidy(self) -> None:
        """Begin the journal anew with what still matters, if most of it does not. Called with no lock held."""
        if self.journal.wants_rewrite:
            self._rewrite()

    def _rewrite(self) -> None:
        with contextlib.ExitStack() as locks:
            files = sorted([*self.files.values(), *self.unlinked.values()], key=lambda file: file.state.id)
            for file in files:
                locks.enter_context(file.lock)
            for promise in [file.promise for file in files if file.promise is not None and not file.is_unlinked]:
                self._make_data_last(promise)
            self.disk.sync_directory(self.disk.path(DATA))
            self.journal.rewrite(lambda: self._present(files))

    def _make_data_last(self, promise: State) -> None:
        if not self.disk.exists(promise.data_name):
            return  # nothing was ever written into it
        fd = self.disk.open(promise.data_name)
        try:
            self.disk.sync(fd)
        finally:
            os.close(fd)

    def _present(self, files: list[LiveFile]) -> Iterator[Record]:
        for file in files:
            number = file.state.id
            if file.promise is not None:
                yield Record(FILE, {"id": number, "state": file.promise.to_json()})
                yield Record(PROMISE, {"id": number, "state": file.promise.to_json(), "inline": False})
            yield Record(STATE if file.promise else FILE, {"id": number, "state": file.state.to_json()})
            if file.was_sent:
                yield Record(BEGUN, {"id": number, "change": file.state.change, "direct": file.state.direct})
            if number in self.unlinked:
                yield Record(UNLINKED, {"id": number})
        for request in list(self._tried):
            yield Record(TRYING, {"request": request})
        for request in list(self._done):
            yield Record(DID, {"request": request})
        for deletion in list(self._deletions.values()):
            yield Record(DELETE, _deletion_fields(deletion))


def _deletion_fields(deletion: Deletion) -> dict[str, Any]:
    fields = {"id": deletion.number, "place": deletion.place, "name": deletion.name}
    return fields | {"etag": deletion.etag, "file": deletion.file_id}


def _state_id(disk: Disk) -> str:
    """Return what tells this state directory from all others; made when it is used first."""
    fd = disk.open(ID_NAME, create=True)
    try:
        found = os.pread(fd, ID_BYTES * 2, 0)
        if len(found) < ID_BYTES * 2:
            found = os.urandom(ID_BYTES).hex().encode()
            disk.write(fd, found, 0)
            disk.sync(fd)
            disk.sync_directory(disk.root)
        return found.decode()
    finally:
        os.close(fd)
