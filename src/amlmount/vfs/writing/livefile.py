"""A file that this mount writes to: its content as it is now, partly on the local disk, partly still in the store.

What is `held` lies in the data file; the rest, up to `base_end`, is that of the version `etag` in the store. `dirty`
is what the store does not have. `change` counts changes; `promised` and `stored` say up to which of them somebody
was told that they last, and the store has them.
"""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from amlmount.stores.base import ObjectInfo
from amlmount.vfs.base import NodeKind
from amlmount.vfs.nodes import IS_SYMLINK, FileNode, Source
from amlmount.vfs.writing.disk import DATA, Disk, read_exactly
from amlmount.vfs.writing.extents import Extents
from amlmount.vfs.writing.parts import Ahead

PIECE_BYTES = 4 << 20
NOT_DIRECT = -1
FAR_NS = 3600 * 10**9  # a time so far from now is no clock's
MARKS_NS = 10_000  # so many changes are told apart in one tick of a clock


@dataclass(slots=True)
class State:
    """All of a live file that a successor, or the next start, must know. `whole`: the data file is all of it.

    `direct`: the epoch whose data file the kernel writes into without our hearing of it; `mapped`: perhaps through a
    mapping, too, which outlives the handle that it was made with.
    """

    id: int
    node_id: int
    ino: int
    place: str
    name: str
    etag: str = ""
    size: int = 0
    base_size: int = 0
    base_end: int = 0
    mtime_ns: int = 0
    whole: bool = True
    held: Extents = field(default_factory=Extents)
    dirty: Extents = field(default_factory=Extents)
    change: int = 0
    promised: int = 0
    stored: int = 0
    epoch: int = 0
    has_data: bool = False
    direct: int = NOT_DIRECT
    mapped: bool = False
    metadata: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` understands; what follows from `whole` is left out."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in ("held", "dirty")}
        extents = {} if self.whole else {"held": list(self.held), "dirty": list(self.dirty)}
        return plain | extents

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "State":
        """Rebuild it; a whole file's data is dirty unless the store has all changes."""
        plain = {name: value for name, value in data.items() if name not in ("held", "dirty")}
        state = cls(**plain)
        state.held = Extents(tuple(pair) for pair in data.get("held", ()))
        state.dirty = Extents(tuple(pair) for pair in data.get("dirty", ()))
        return state

    @property
    def is_direct(self) -> bool:
        """Say whether the data file may be another than when it was looked at last."""
        return self.direct == self.epoch

    @property
    def data_name(self) -> str:
        """Where its data is in the state directory; another epoch is another file."""
        return f"{DATA}/{self.id:08x}-{self.epoch}"


class LiveFile(FileNode):
    """An inode whose content may change. `lock` guards every field; it is never held over a call of the store."""

    __slots__ = (
        "_disk",
        "_fd",
        "ahead",
        "dirty_since",
        "is_displaced",
        "is_unlinked",
        "lock",
        "noticed",
        "opens",
        "outdated",
        "promise",
        "sending",
        "since",
        "state",
        "trouble",
        "was_sent",
    )

    def __init__(self, disk: Disk, source: Source, parent_id: int, name: bytes, state: State) -> None:
        info = ObjectInfo(state.name, state.size, state.etag, state.mtime_ns)
        super().__init__(state.node_id, state.ino, parent_id, name, source, info)
        if state.metadata.get(IS_SYMLINK) == "true":
            self.kind = NodeKind.SYMLINK
        self.state = state
        self.lock = threading.RLock()
        self.sending = threading.Lock()  # one upload at a time
        self.opens = 0  # guarded by the tree lock
        self.since: Extents | None = None  # what became dirty since the upload that is under way was begun
        self.promise: State | None = None  # the state as it was when it was promised last
        self.outdated: list[str] = []  # data files of earlier epochs, needed until a later promise lasts
        self.is_unlinked = False
        self.is_displaced = False  # somebody else has the name now
        self.was_sent = False  # an attempt was begun: the store may have it without our knowing
        self.ahead: Ahead | None = None  # what was sent of it before it is closed
        self.noticed: tuple[int, int] | None = None  # length and time of a data file that the kernel writes into
        self.trouble: Exception | None = None
        self.dirty_since = time.time()
        self._disk = disk
        self._fd = -1

    @property
    def is_dirty(self) -> bool:
        """Say whether the store lacks something of it that anybody could still want there."""
        return self.state.change > self.state.stored and not self.is_unlinked and not self.is_displaced

    @property
    def is_pending(self) -> bool:
        """Say whether somebody was promised what the store does not have yet."""
        return self.state.promised > self.state.stored and not self.is_unlinked and not self.is_displaced

    @property
    def is_wanted(self) -> bool:
        """Say whether the kernel, a program or the store could still want to hear of it. Needs the tree lock, too."""
        return self.nlookup > 0 or self.opens > 0 or self.is_dirty or self.state.is_direct

    def show(self) -> None:
        """Let the inode's attributes be those of the state."""
        state = self.state
        self.size_bytes, self.mtime_ns, self.etag, self.blob_name = state.size, state.mtime_ns, state.etag, state.name

    def wait_for_unlink(self) -> None:
        """Wait until an unlink that is under way is done or has failed: until then it looks as if it were done."""
        if self.is_unlinked:
            with self.sending:
                pass

    # The data file; needs `lock`

    def fd(self) -> int:
        """Return the data file's descriptor, opened, and made if it is not there."""
        if self._fd < 0:
            self._fd = self._disk.open(self.state.data_name, create=True)
            self.state.has_data = True
        return self._fd

    def stamp(self, mtime_ns: int) -> None:
        """Give the data file a time: of a whole file a successor takes it from there."""
        if self.state.whole:
            self._disk.stamp(self.fd(), mtime_ns)
            self.noticed = self._disk.measure_open(self.fd())[0], mtime_ns

    def set_time(self, mtime_ns: int) -> int:
        """Give the file, and the data that is here, a time; return the one it had. Takes the lock."""
        with self.lock:
            before_ns, self.state.mtime_ns = self.state.mtime_ns, mtime_ns
            if self.state.has_data:
                self.stamp(mtime_ns)
            return before_ns

    def close_data(self) -> None:
        """Close the descriptor; the data stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def let_go_of_data(self) -> list[str]:
        """Have nothing here any more, and return what may be removed once that is noted: the store has all of it."""
        self.close_data()
        names = [*self.outdated, *([self.state.data_name] if self.state.has_data else [])]
        self.outdated = []
        self.state.has_data = False
        self.state.direct, self.state.mapped = NOT_DIRECT, False
        self.state.held, self.state.dirty, self.state.whole = Extents(), Extents(), False
        self.state.base_end = self.state.size
        return names

    def drop_data(self) -> None:
        """Remove the data file of something nobody needs to be told of any more."""
        for name in self.let_go_of_data():
            self._disk.remove(name)

    def look(self) -> None:
        """Learn length and time of a data file that the kernel writes into, for who asks for them. What was written
        counts from then on: whoever notes the state down with this time says so. (What is mapped is not synced here.)
        """
        state = self.state
        if not state.is_direct:
            return
        if not state.mapped:
            self._count()
            return
        state.size, state.mtime_ns = self._disk.measure_open(self.fd())
        state.held, state.dirty = Extents([(0, state.size)]), Extents([(0, state.size)])

    def measure_taken(self) -> tuple[int, int]:
        """Return the length of the data file, and what it takes on the disk, in bytes."""
        return self._disk.measure_taken(self.fd())

    def notice(self) -> bool:
        """Count what the kernel wrote into the data file as a change; True if it did since this was asked last.

        What is mapped is written out first: its pages must then fault to be written to, and that sets the time.
        """
        if not self.state.is_direct:
            return False
        if self.state.mapped:
            self._disk.sync(self.fd())
        return self._count()

    def _count(self) -> bool:
        state, found = self.state, self._disk.measure_open(self.fd())
        if found == self.noticed:
            return False
        before_bytes = self.noticed[0] if self.noticed else 0
        self.noticed = state.size, state.mtime_ns = self._marked(*found)
        self._disk.grown_bytes += max(0, state.size - before_bytes)
        state.held, state.dirty = Extents([(0, state.size)]), Extents([(0, state.size)])
        if self.since is not None:
            self.since.add(0, state.size)
        if state.change == state.stored:
            self.dirty_since = time.time()
        state.change += 1
        return True

    def _marked(self, size_bytes: int, mtime_ns: int) -> tuple[int, int]:
        """Give the data file a time that no clock gives it, and that it never had, and return its length and that time:
        what is written later in the same tick shows, too, to a successor as well. One that somebody set is such a time.

        The kernel gives it under the inode's lock, so no write is half done then. One that follows at once is not
        taken for ours: its time is later. (An earlier one is ours, as a file system keeps it that does not know ns.)
        """
        if abs(time.time_ns() - mtime_ns) > FAR_NS:
            return size_bytes, mtime_ns
        last_ns = self.noticed[1] if self.noticed else mtime_ns
        mark_ns = (last_ns if 0 <= mtime_ns - last_ns < MARKS_NS else mtime_ns) - 1
        self._disk.stamp(self.fd(), mark_ns)
        size_bytes, found_ns = self._disk.measure_open(self.fd())
        return size_bytes, min(found_ns, mark_ns)

    def notice_now(self) -> None:
        """Do what `notice` does; takes the lock."""
        with self.lock:
            self.notice()

    def end_direct(self) -> None:
        """Count what the kernel wrote for the last time; it writes into the data file no more."""
        if not self.state.mapped:
            self.notice()
            self.state.direct = NOT_DIRECT

    def unmap(self) -> None:
        """Learn that nobody has a mapping any more."""
        with self.lock:
            self.notice()
            self.state.mapped = False
            self.end_direct()

    def turn_epoch(self, keep_bytes: int) -> None:
        """Go on in a new data file that has what the old one holds below `keep_bytes`; the old one is left as it is."""
        old = os.dup(self.fd())
        try:
            self.outdated.append(self.state.data_name)
            self.close_data()
            self.state.epoch += 1
            held = [(0, keep_bytes)] if self.state.whole else self.state.held
            for start, end in held:
                _copy(old, self.fd(), start, min(end, keep_bytes), self._disk)
        finally:
            os.close(old)

    def write(self, offset: int, data: bytes | memoryview) -> bool:
        """Write into the data file; True if the ranges that count have changed. Raises OSError."""
        end, state = offset + len(data), self.state
        changed = self._mark(offset, end)  # first: what fails half way has changed something, too
        self._disk.write(self.fd(), data, offset)
        changed = state.held.add(offset, end) or changed
        if offset > state.size:  # a hole: zeros here, whatever the store had there once
            changed = self._fill(state.size, offset) or changed
        state.size = max(state.size, end)
        return changed

    def resize(self, size_bytes: int) -> None:
        """Cut or lengthen, with zeros. Raises OSError."""
        state = self.state
        if size_bytes < state.size:
            state.held.cut(size_bytes)
            state.dirty.cut(size_bytes)
            if self.since is not None:
                self.since.cut(size_bytes)
            state.base_end = min(state.base_end, size_bytes)
        if state.has_data or size_bytes > state.size:
            self._disk.truncate(self.fd(), size_bytes)
        if size_bytes > state.size:
            self._fill(state.size, size_bytes)
        state.size = size_bytes

    def _fill(self, start: int, end: int) -> bool:
        changed = self.state.held.add(start, end)
        return self._mark(start, end) or changed

    def _mark(self, start: int, end: int) -> bool:
        if self.since is not None:
            self.since.add(start, end)
        return self.state.dirty.add(start, end)

    def forget_outdated(self) -> None:
        """Remove data files of earlier epochs, unless what was promised is in one of them."""
        if self.promise is None or self.promise.epoch == self.state.epoch:
            for name in self.outdated:
                self._disk.remove(name)
            self.outdated = []

    def pieces(self, start: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (start, end, is it here) for a range that ends before the end of the file."""
        end, state = start + length, self.state
        if state.whole:
            yield start, end, True
            return
        for first, last in state.held.gaps(start, end):
            if start < first:
                yield start, first, True
            yield first, last, False
            start = last
        if start < end:
            yield start, end, True

    def read_local(self, start: int, end: int) -> bytes:
        """Return bytes that are held; those the data file is too short for are zeros."""
        return read_exactly(self.fd(), start, end)


def _copy(old: int, new: int, start: int, end: int, disk: Disk) -> None:
    for place in range(start, end, PIECE_BYTES):
        disk.write(new, read_exactly(old, place, min(place + PIECE_BYTES, end)), place)
