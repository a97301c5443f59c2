"""Where requests are read into: a seam, so that one day they can lie where a successor finds them.

Before Linux 6.9 the kernel cannot resend what a dead server had read; slots of a shared memfd will then stand here.
"""

from typing import Protocol


class RequestBuffers(Protocol):
    """Buffers of one size, each holding one request from its reading to its answer."""

    def take(self) -> memoryview:
        """Return a buffer to read the next request into; called by the reading thread only."""
        ...

    def give_back(self, buffer: memoryview) -> None:
        """Take a buffer back: its request has been answered, or nothing was read into it. Any thread."""
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
