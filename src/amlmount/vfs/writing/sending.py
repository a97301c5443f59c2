"""One attempt to bring a live file into the store: what is sent, under which condition, and what a refusal means.

Nobody else's change is overwritten: whoever finds another version under the name keeps its own data beside it.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from amlmount.errors import AmlmountError, BlobNotFoundError, PreconditionFailedError
from amlmount.stores.base import ObjectInfo, ObjectStore, Ranges, WritableStore, writable
from amlmount.stores.metadata import MTIME, format_mtime
from amlmount.vfs.writing.ahead import is_worth_asking_again, take
from amlmount.vfs.writing.disk import read_exactly
from amlmount.vfs.writing.extents import Extents
from amlmount.vfs.writing.keeping import keep
from amlmount.vfs.writing.ledger import Ledger
from amlmount.vfs.writing.livefile import LiveFile, State

WRITE_ID = "amlmount_write"  # metadata that tells our own attempt from another's write
_COMPARE_BYTES = 4 << 20
_ATTEMPTS = 4
log = logging.getLogger(__name__)


class ConflictError(PreconditionFailedError):
    """Somebody else has changed the blob; `kept` says where our data is now."""

    def __init__(self, name: str, kept: str) -> None:
        super().__init__(
            f"cannot write '{name}': somebody else has changed it since it was opened; our data is kept as {kept}",
            hint="compare the two and keep what is wanted",
            details={"name": name, "kept": kept},
        )


class Snapshot:
    """The content of a live file at one change, as the store reads it. Close it."""

    def __init__(self, file: LiveFile, state_id: str) -> None:
        """Needs the file's lock. `state_id` names the state directory among all there are."""
        state = file.state
        self.store = file.source.store
        self.name, self.change, self.size_bytes = state.name, state.change, state.size
        self.etag, self.whole, self.mtime_ns = state.etag, state.whole, state.mtime_ns
        self.dirty, self._held = state.dirty.copy(), state.held.copy()
        self._fd = os.dup(file.fd()) if state.has_data or state.whole else -1
        self.metadata = dict(state.metadata) | {MTIME: format_mtime(state.mtime_ns)}
        self.ahead = take(file)
        self._state_id, self._order = state_id, (state.id, state.change)
        self.write_id = f"{state_id}-{state.id:x}-{state.change:x}"

    def close(self) -> None:
        """Let go of the data file."""
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def unchanged(self) -> Ranges:
        """What the version that was opened has at the same place."""
        return list(self.dirty.gaps(0, self.size_bytes)) if self.etag else []

    @property
    def is_local(self) -> bool:
        """See stores.base.IsLocal."""
        return self.whole

    def read(self, start: int, length: int) -> bytes:
        """See stores.base.Content."""
        if self.whole:
            return read_exactly(self._fd, start, start + length)
        parts, end = [], start + length
        for first, last in self._held.gaps(start, end):
            parts += [self._local(start, first), self._remote(first, last)]
            start = last
        return b"".join([*parts, self._local(start, end)])

    def _local(self, start: int, end: int) -> bytes:
        return read_exactly(self._fd, start, end) if start < end else b""

    def _remote(self, start: int, end: int) -> bytes:
        data = self.store.get(self.name, start, end - start, if_match=self.etag)
        if len(data) != end - start:
            raise AmlmountError(f"cannot read blob {self.name!r}: {len(data)} of {end - start} bytes came")
        return data

    def order_of(self, info: ObjectInfo) -> int:
        """Say whether a blob was written by this state directory before this content (-1) or after it (1); else 0."""
        state_id, _, order = info.metadata.get(WRITE_ID, "").partition("-")
        if state_id != self._state_id:
            return 0
        number, _, change = order.partition("-")
        return 1 if (int(number, 16), int(change, 16)) > self._order else -1

    def is_by_the_same(self, info: ObjectInfo) -> bool:
        """Say whether a blob was written by this very file, and is no copy of another one of ours."""
        return info.metadata.get(WRITE_ID, "").startswith(f"{self._state_id}-{self._order[0]:x}-")

    def is_in(self, info: ObjectInfo) -> bool:
        """Tell whether a blob is this content, by what it says or by looking."""
        if WRITE_ID in info.metadata:
            return info.metadata[WRITE_ID] == self.write_id
        return self.is_same(info)

    def is_same(self, info: ObjectInfo) -> bool:
        """Compare the bytes of a blob with this content."""
        if info.size_bytes != self.size_bytes:
            return False
        for start in range(0, self.size_bytes, _COMPARE_BYTES):
            length = min(_COMPARE_BYTES, self.size_bytes - start)
            if self.store.get(self.name, start, length, if_match=info.etag) != self.read(start, length):
                return False
        return True


class Sender:
    """Sends live files.

    `on_committed(file)` is called when the store has one and it still counts as dirty, `on_stored(file)` when it does
    not any more, or has lost its name; both with no lock held but `sending`.
    """

    def __init__(
        self,
        ledger: Ledger,
        on_committed: Callable[[LiveFile], None],
        on_stored: Callable[[LiveFile], None],
        has_name: Callable[[LiveFile], bool] = lambda file: False,
    ) -> None:
        self._ledger, self._has_name = ledger, has_name
        self._on_committed = on_committed
        self._on_stored = on_stored

    def send(self, file: LiveFile) -> None:
        """Bring what the store lacks of a file into it; at once if that is nothing.

        Raises what the store raises, ConflictError once our data is beside the other's, OSError if the disk fails.
        """
        with file.sending:
            for _ in range(_ATTEMPTS):
                with file.lock:
                    file.notice()
                    if not file.is_dirty:
                        return
                    snapshot = Snapshot(file, self._ledger.state_id)
                    file.since = Extents()
                try:
                    if self._attempt(file, snapshot):
                        return
                finally:
                    snapshot.close()
                    with file.lock:
                        file.since = None
        raise PreconditionFailedError(f"cannot write '{file.blob_name}': it changes all the time", hint="try again")

    def _attempt(self, file: LiveFile, snapshot: Snapshot) -> bool:
        """Send once; False if the condition has to be another one, and it should be tried again."""
        file.was_sent = True
        self._ledger.begun(file, snapshot.change)
        try:
            info = self._upload(snapshot)
        except PreconditionFailedError:
            return self._refused(file, snapshot)
        self._stored(file, snapshot, info)
        return True

    def _upload(self, snapshot: Snapshot) -> ObjectInfo:
        store = writable(snapshot.store)
        conditions: Any = {"if_match": snapshot.etag or None, "if_none_match": not snapshot.etag}
        conditions["metadata"] = _metadata(store, snapshot)
        ahead, snapshot.ahead = snapshot.ahead, None
        if ahead is not None and snapshot.whole and (sent := ahead.sent(snapshot)):
            try:
                return ahead.begun.commit(snapshot, sent, **conditions)
            except AmlmountError as error:
                if not is_worth_asking_again(error):
                    raise
                log.info("'%s' is sent anew: %s", snapshot.name, error.message)
        return store.upload(snapshot.name, snapshot, unchanged=snapshot.unchanged, **conditions)

    def _refused(self, file: LiveFile, snapshot: Snapshot) -> bool:
        """Find out why the condition did not hold: our own attempt came through, the blob is gone, or a conflict."""
        present = _head(snapshot.store, snapshot.name)
        if present is None:
            if not snapshot.whole:
                self._keep_beside(file, snapshot)
            with file.lock:
                file.state.etag = ""
                file.state.dirty.add(0, file.state.size)
                self._ledger.restate(file)
            return False
        if present.etag == snapshot.etag:
            return False  # nobody has changed it: whatever was meant, it is worth asking again
        if snapshot.is_in(present):
            self._stored(file, snapshot, present)
            return True
        order = snapshot.order_of(present)
        if order > 0 and (snapshot.is_by_the_same(present) or not self._has_name(file)):
            self._stored(file, snapshot, present)  # we have written it again since: this is old
            return True
        if order:  # an earlier attempt of ours, or a later file's, whose renaming to this name failed half way
            with file.lock:
                file.state.etag = present.etag
                file.state.dirty.add(0, file.state.size)
                self._ledger.restate(file)
            return False
        self._keep_beside(file, snapshot)
        return True

    def _stored(self, file: LiveFile, snapshot: Snapshot, info: ObjectInfo) -> None:
        self._on_committed(file)
        with file.lock:
            state = file.state
            state.stored, state.etag = max(state.stored, snapshot.change), info.etag
            state.base_size = info.size_bytes
            state.dirty = file.since if file.since is not None else Extents()
            file.trouble = None
            file.etag = info.etag
            if state.change > snapshot.change:
                self._ledger.changed(file)  # first: what says that all is stored must not be the last word
            place = self._ledger.sent(file, snapshot.change, info.etag, info.size_bytes, snapshot.mtime_ns)
            file.forget_outdated()
        if place is not None:
            self._ledger.journal.sync(place)
        self._on_stored(file)

    def _keep_beside(self, file: LiveFile, snapshot: Snapshot) -> None:
        kept = keep_beside(self._ledger, snapshot, file)
        with file.lock:
            file.is_displaced = True
            error = ConflictError(snapshot.name, kept)
            file.trouble = error
            self._ledger.journal.sync(self._ledger.gone(file))
            file.drop_data()
        log.error("%s", error.message)
        self._on_stored(file)
        raise error


def keep_beside(ledger: Ledger, snapshot: Snapshot, file: LiveFile) -> str:
    """Put the data of a file that lost its name beside the winner, or, if that cannot be, into the state directory.

    Returns where it is. Raises what the store raises when it cannot be reached: then nothing has changed.
    """
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    name = f"{snapshot.name}.conflict-{moment}-{file.state.id:x}"
    store = writable(snapshot.store)
    try:
        store.upload(name, snapshot, if_none_match=True, metadata=_metadata(store, snapshot))
    except (PreconditionFailedError, BlobNotFoundError):
        # Either this very attempt came through before, or what we lack of the old version is gone from the store.
        present = _head(store, name)
        if present is None or not snapshot.is_in(present):
            with file.lock:
                file.close_data()
                return keep(ledger.disk, file.state, "another has the name, and only the ranges in `held` are here")
    return f"'{name}' in the store"


def own_mark(store: WritableStore, ledger: Ledger, state: State) -> dict[str, str]:
    """Return the metadata by which we know that we have written a blob, if the store keeps any."""
    return {WRITE_ID: f"{ledger.state_id}-{state.id:x}-{state.change:x}"} if store.keeps_metadata else {}


def _metadata(store: WritableStore, snapshot: Snapshot) -> Mapping[str, str]:
    own = {WRITE_ID: snapshot.write_id} if store.keeps_metadata else {}
    return {key: value for key, value in snapshot.metadata.items() if store.keeps_metadata or key == MTIME} | own


def _head(store: ObjectStore, name: str) -> ObjectInfo | None:
    try:
        return store.head(name)
    except BlobNotFoundError:
        return None
