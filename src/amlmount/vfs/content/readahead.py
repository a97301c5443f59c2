"""Who reads from front to back, and how far to fetch ahead of him. Pure: no clock, no store, no lock.

A reader that jumps is never fetched ahead of: a stream must have read START_BYTES in a row, or begin at byte 0.
"""

from collections import OrderedDict

START_BYTES = 768 << 10  # above three times what programs like to read at random places
FIRST_WINDOW_BYTES = 1 << 20
MAX_STEP_BYTES = 4 << 20
SLACK_BYTES = 1 << 20  # the kernel's own read-ahead asks a little out of order
MAX_STREAMS = 8


class _Stream:
    __slots__ = ("ahead", "is_from_start", "next", "read_bytes")

    def __init__(self, offset: int) -> None:
        self.is_from_start = offset == 0
        self.next = self.ahead = offset
        self.read_bytes = 0


class Streams:
    """The readers of one blob. The window is twice what a stream has read, up to `max_window_bytes`."""

    def __init__(self, size_bytes: int, max_window_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._max_window_bytes = max_window_bytes
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._names = 0

    def note(self, offset: int, size_bytes: int) -> tuple[int, int] | None:
        """Take in one read and return what to fetch now, as (start, end) in bytes; noting a read twice is harmless."""
        if not self._max_window_bytes:
            return None
        stream, end = self._stream_at(offset), offset + size_bytes
        if end > stream.next:
            stream.read_bytes += min(end - stream.next, size_bytes)
            stream.next = end
        if not stream.is_from_start and stream.read_bytes < START_BYTES:
            return None
        return self._advance(stream)

    def _stream_at(self, offset: int) -> _Stream:
        for name, stream in reversed(self._streams.items()):
            if abs(offset - stream.next) <= SLACK_BYTES:
                self._streams.move_to_end(name)
                return stream
        self._names += 1
        stream = self._streams[self._names] = _Stream(offset)
        if len(self._streams) > MAX_STREAMS:
            self._streams.popitem(last=False)
        return stream

    def _advance(self, stream: _Stream) -> tuple[int, int] | None:
        window = min(max(2 * stream.read_bytes, FIRST_WINDOW_BYTES), self._max_window_bytes)
        target = min(stream.next + window, self._size_bytes)
        start = max(stream.ahead, stream.next)
        is_worth_it = target - start >= min(MAX_STEP_BYTES, window // 2) or target == self._size_bytes
        if start >= target or not is_worth_it:
            return None
        stream.ahead = target
        return start, target
