"""Where requests are read into: plain memory, or slots that a successor finds.

Before Linux 6.9 the kernel cannot resend what a dead server had read; the successor then executes what lies in the
slots. A request is there from the moment it is read, so there is no time at which it could be lost.
"""

from collections.abc import Sequence
from typing import Protocol

_EMPTY = bytes(4)


class RequestBuffers(Protocol):
    """Buffers of one size, each holding one request from its reading to its answer."""

    def take(self) -> memoryview:
        """Return a buffer to read the next request into; called by the reading thread only."""
        ...

    def give_back(self, buffer: memoryview) -> None:
        """Take a buffer back: its request has been answered, or nothing was read into it. Any thread."""
        ...

    def left(self) -> Sequence[memoryview]:
        """Return the buffers with requests that a predecessor had read and perhaps not answered; asked once."""
        ...


class HeapBuffers:
    """Plain memory, reused; pages that no request has touched cost nothing."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """Return a buffer nobody uses."""
        try:
            return self._free.pop()
        except IndexError:
            return memoryview(bytearray(self._size_bytes))

    def give_back(self, buffer: memoryview) -> None:
        """Keep the buffer for the next `take`."""
        self._free.append(buffer)

    def left(self) -> Sequence[memoryview]:
        """Nothing outlives plain memory."""
        return ()


class SlotBuffers:
    """Slots of shared memory that outlives the process: a request lies in its slot from its reading to its answer.

    A slot is free while the first four bytes, a request's length, are 0. When all are taken, plain memory serves.
    """

    def __init__(self, region: memoryview, size_bytes: int, used_bytes: int | None = None) -> None:
        """Cut `region` into slots of `size_bytes`, which a predecessor's must have been too.

        `used_bytes`: nothing was ever written behind them. What is looked at takes memory, so nobody looks there.
        """
        count = len(region) // size_bytes
        used_bytes = len(region) if used_bytes is None else used_bytes
        self._slots = [region[index * size_bytes : (index + 1) * size_bytes] for index in range(count)]
        self._old = self._slots[: -(-used_bytes // size_bytes)]
        self._free = [
            *reversed(self._slots[len(self._old) :]),
            *(slot for slot in reversed(self._old) if not _length(slot)),
        ]
        self._heap = HeapBuffers(size_bytes)
        self._ours = {id(slot) for slot in self._slots}

    def take(self) -> memoryview:
        """See RequestBuffers.

        Its page is there already when the kernel copies a request into it: a fault that SIGKILL interrupts would give
        the caller EIO (fs/fuse/dev.c, fuse_dev_do_read).
        """
        if not self._free:
            return self._heap.take()
        slot = self._free.pop()
        slot[:4] = _EMPTY
        return slot

    def give_back(self, buffer: memoryview) -> None:
        """See RequestBuffers."""
        if id(buffer) in self._ours:
            buffer[:4] = _EMPTY
            self._free.append(buffer)
        else:
            self._heap.give_back(buffer)

    def left(self) -> list[memoryview]:
        """See RequestBuffers."""
        return [slot for slot in self._old if _length(slot)]

    def forget_left(self) -> None:
        """Free what a predecessor had read: the kernel is asked to send it again instead. Never do both."""
        for slot in self.left():
            self.give_back(slot)


def _length(slot: memoryview) -> int:
    return int.from_bytes(slot[:4], "little")
