"""What a worker leaves to its successor: a memfd with the requests it is at, its journal of inodes, and its pulse.

The starter makes it and holds it besides the `/dev/fuse` descriptor. Parts, from the start of the file: the header;
the handles; the slots of requests (`fuse.buffers`); the journal (`vfs.succession`), which grows at the end. The file
is sparse: what was never written to takes no memory.
"""

import fcntl
import logging
import mmap
import os
import struct
import time
from collections.abc import Iterable, Iterator

from amlmount.errors import MountFailedError
from amlmount.fuse.buffers import SlotBuffers
from amlmount.fuse.negotiate import Feature, Negotiated, Offer
from amlmount.fuse.notify import Notifier
from amlmount.vfs.filesystem import BlobFileSystem

log = logging.getLogger(__name__)

FORMAT = 1
NAME = "amlmount-estate"
_MAGIC = b"amlmount"
_HEADER = struct.Struct("<8sQ")  # magic, format
_PULSE = struct.Struct("=Q")
_PULSE_AT = 16
_JOURNAL = struct.Struct("<QQ")  # start, length in bytes
_JOURNAL_AT = 32
_OWNER = struct.Struct("<Q")
_OWNER_AT = 48
PATIENCE_S = 5.0
_RECORD = struct.Struct("<I")
PAGE_BYTES = 4096
HANDLES_AT, SLOTS_AT, JOURNAL_AT = 1 << 20, 16 << 20, 256 << 20
SLACK_BYTES = 1 << 20  # how much outdated journal is not worth rewriting it


def make_estate() -> int:
    """Return the descriptor of a new, empty estate (close-on-exec)."""
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
    os.ftruncate(fd, JOURNAL_AT)
    os.pwrite(fd, _HEADER.pack(_MAGIC, FORMAT), 0)
    os.pwrite(fd, _JOURNAL.pack(JOURNAL_AT, 0), _JOURNAL_AT)
    return fd


def owner_of(fd: int) -> int:
    """Return the process that serves with the estate behind `fd`, or did last; 0: none has yet."""
    return int(_OWNER.unpack(os.pread(fd, _OWNER.size, _OWNER_AT))[0])


def beats_of(fd: int) -> int:
    """Return how many requests have been read with the estate behind `fd`: its worker need not be asked."""
    return int(_PULSE.unpack(os.pread(fd, _PULSE.size, _PULSE_AT))[0])


class Estate:
    """An estate as the worker sees it that owns it now. Not `is_readable`: another version made it, or it was void."""

    def __init__(self, fd: int) -> None:
        """Take over `fd`. Raises MountFailedError if another process serves with it still."""
        self._lock = _lock(fd)
        self._map = mmap.mmap(fd, JOURNAL_AT)
        _OWNER.pack_into(self._map, _OWNER_AT, os.getpid())
        magic, made_by = _HEADER.unpack_from(self._map, 0)
        self.is_readable = (magic, made_by) == (_MAGIC, FORMAT)
        if not self.is_readable:
            _HEADER.pack_into(self._map, 0, _MAGIC, FORMAT)
            _JOURNAL.pack_into(self._map, _JOURNAL_AT, JOURNAL_AT, 0)
        view = memoryview(self._map)
        self.pulse = view[_PULSE_AT : _PULSE_AT + 8].cast("Q")
        self.handles = view[HANDLES_AT:SLOTS_AT]
        self.slots = view[SLOTS_AT:JOURNAL_AT]
        self.used_slot_bytes = _end_of_data(fd) - SLOTS_AT
        self.journal = FileJournal(fd, self._map)


def _end_of_data(fd: int) -> int:
    """Return where the slots that were ever written to end: of the rest there is no page (lseek(2), SEEK_DATA)."""
    end = SLOTS_AT
    while end < JOURNAL_AT:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but holes from here on
            break
        if begin >= JOURNAL_AT:
            break
        end = os.lseek(fd, begin, os.SEEK_HOLE)
    return min(end, JOURNAL_AT)


def _lock(fd: int) -> int:
    """Return a descriptor of our own that holds the lock until this process ends, however it ends."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return own
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise MountFailedError("cannot serve the mount: another worker still does") from None
            time.sleep(0.01)


def take_possession(
    estate: Estate, files: BlobFileSystem, offer: Offer, negotiated: Negotiated | None, notifier: Notifier
) -> SlotBuffers:
    """Go on where a predecessor left off (`negotiated`), leave everything to a successor, return the buffers.

    What the kernel can send again is not executed from the slots: its `unique` is another then.
    """
    buffers = SlotBuffers(estate.slots, (negotiated or offer).buffer_bytes, estate.used_slot_bytes)
    if negotiated is not None:
        if estate.is_readable:
            files.inherit(estate.journal.records())
        else:
            log.warning("what the worker before knew cannot be read: files that were open give ESTALE")
    files.leave_to(estate.journal)
    if negotiated is not None and Feature.HAS_RESEND in negotiated.features:
        buffers.forget_left()
        notifier.resend()
    return buffers


class FileJournal:
    """Records behind each other at the end of the estate; the header says where, and a record counts once it does.

    A record that cannot be written (no memory) makes the whole journal void: half of it would be a lie.
    """

    def __init__(self, fd: int, header: mmap.mmap) -> None:
        self._fd = fd
        self._header = header
        self._start, self._length = _JOURNAL.unpack_from(header, _JOURNAL_AT)
        self._length_when_rewritten = self._length
        self._is_void = False

    def records(self) -> Iterator[bytes]:
        """Yield what was written, in order."""
        place, end = self._start, self._start + self._length
        while place < end:
            (length,) = _RECORD.unpack(os.pread(self._fd, _RECORD.size, place))
            yield os.pread(self._fd, length, place + _RECORD.size)
            place += _RECORD.size + length

    def append(self, record: bytes) -> None:
        """See `vfs.succession.Journal`."""
        if not self._is_void:
            self._commit(self._start, self._write(self._start + self._length, [record]))

    @property
    def wants_rewrite(self) -> bool:
        """See `vfs.succession.Journal`."""
        return not self._is_void and self._length > 2 * self._length_when_rewritten + SLACK_BYTES

    def rewrite(self, records: Iterable[bytes]) -> None:
        """See `vfs.succession.Journal`. The old records count until the new ones are all there."""
        old_start, old_end = self._start, self._start + self._length
        start = -(-old_end // PAGE_BYTES) * PAGE_BYTES
        self._commit(start, self._write(start, records))
        self._length_when_rewritten = self._length
        self._free(old_start, start)

    def _write(self, place: int, records: Iterable[bytes]) -> int:
        """Return the end of what was written, 0 if that failed."""
        try:
            for record in records:
                place += os.pwritev(self._fd, (_RECORD.pack(len(record)), record), place)
        except OSError as error:
            log.error("cannot write down what a successor must know: %s", error)
            return 0
        return place

    def _commit(self, start: int, end: int) -> None:
        self._is_void = end == 0
        self._start, self._length = (start, end - start) if end else (start, 0)
        _JOURNAL.pack_into(self._header, _JOURNAL_AT, self._start, self._length)
        if self._is_void:
            _HEADER.pack_into(self._header, 0, b"", 0)

    def _free(self, start: int, end: int) -> None:
        """Give the memory back; the numbers of these bytes are not used again."""
        if end > start:
            with mmap.mmap(self._fd, end - start, offset=start) as old:
                old.madvise(mmap.MADV_REMOVE)
