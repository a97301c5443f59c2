"""JSON lines and file descriptors over a stream socket: how a worker and the process that started it talk.

What the messages mean stands in `orders`; this knows only how they travel. A worker uses the blocking half only and
does without asyncio and its 9 MB, so that is imported where it is used.
"""

import array
import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_DESCRIPTORS = 8
COUNT = "descriptors"  # how many a message brings: one recvmsg may return several messages, and all their descriptors
READ_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Message:
    """One JSON object and the descriptors that came with it; whoever receives it owns them (close-on-exec is set)."""

    body: dict[str, Any]
    descriptors: list[int] = field(default_factory=list)


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends: ours (never blocks) and the one to be inherited by a worker (blocks)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    return ours, theirs


def encode(body: dict[str, Any]) -> bytes:
    """Return the line that carries `body`."""
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


class Channel:
    """One end of the socket. `send` and `receive` block; the `_soon` pair are coroutines for a non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pending = bytearray()
        self._descriptors: list[int] = []
        self._reader: Callable[[], None] | None = None

    def fileno(self) -> int:
        """Return the socket's descriptor, for poll."""
        return self._sock.fileno()

    def send(self, body: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one message. Raises OSError when the other end is gone, BlockingIOError if it does not read."""
        line = encode(body | {COUNT: len(descriptors)} if descriptors else body)
        sent = socket.send_fds(self._sock, [line], list(descriptors)) if descriptors else self._sock.send(line)
        if sent < len(line):
            self._sock.sendall(line[sent:])

    def offer(self, body: dict[str, Any]) -> bool:
        """Send one message if it can be had away at once, else say that it was not sent. Raises OSError."""
        line = encode(body)
        try:
            sent = self._sock.send(line, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if sent < len(line):  # a message is whole or nothing
            self._sock.sendall(line[sent:])
        return True

    async def send_soon(self, body: dict[str, Any]) -> None:
        """Send one message of any size without blocking the loop. Raises OSError when the other end is gone."""
        import asyncio

        await asyncio.get_running_loop().sock_sendall(self._sock, encode(body))

    def receive(self) -> Message | None:
        """Return the next message, or None when the other end is closed."""
        while b"\n" not in self._pending:
            if not self._fill():
                return None
        return self._take()

    async def receive_soon(self) -> Message | None:
        """Return the next message, or None when the other end is closed, without blocking the loop."""
        while b"\n" not in self._pending:
            await self._readable()
            if not self._fill():
                return None
        return self._take()

    def close(self) -> None:
        """Close the socket and whatever descriptors arrived and were never taken; whoever waits for it gets OSError."""
        if self._reader is not None:
            self._reader()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._sock.close()

    async def _readable(self) -> None:
        import asyncio

        loop, descriptor = asyncio.get_running_loop(), self._sock.fileno()
        ready: asyncio.Future[None] = loop.create_future()

        def stop_waiting() -> None:
            # By number and before the socket is closed: afterwards the number may be somebody else's.
            self._reader = None
            loop.remove_reader(descriptor)
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(descriptor, stop_waiting)
        self._reader = stop_waiting
        try:
            await ready
        finally:
            if self._reader is stop_waiting:
                stop_waiting()

    def _fill(self) -> bool:
        space = socket.CMSG_LEN(MAX_DESCRIPTORS * array.array("i").itemsize)
        try:
            data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return False
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(payload) - len(payload) % array.array("i").itemsize
                self._descriptors += array.array("i", payload[:whole])
        self._pending += data
        return bool(data)

    def _take(self) -> Message:
        line, _, rest = bytes(self._pending).partition(b"\n")
        self._pending = bytearray(rest)
        body = json.loads(line)
        count = body.pop(COUNT, 0)
        descriptors, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return Message(body, descriptors)
