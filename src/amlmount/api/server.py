"""Listening on the daemon's unix socket: bounded requests, a bounded number of connections, ended in good order.

Whoever calls this holds the daemon's lock, so a socket that is there already belongs to a dead daemon.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections import Counter
from typing import cast

from aiohttp import web

from amlmount.api.peers import Peer, peer_of
from amlmount.api.routes import Service, make_app
from amlmount.errors import BusyError

BACKLOG = 128
HEADER_BYTES = 8190
HEAD_TIMEOUT_S = 10.0  # a client of ours has sent all of it at once
KEEPALIVE_S = 5.0
MAX_CONNECTIONS = 512
MAX_CONNECTIONS_OF_OTHERS = 64  # of each user who is not the owner, so that there is always room for the owner


class ApiServer:
    """Serves the API on `socket_path` between `open` and `close`, for its owner and, if there is one, for `group`."""

    def __init__(self, service: Service, socket_path: str, *, group: int | None = None) -> None:
        self._path = socket_path
        self._group = group
        self._runner = web.AppRunner(
            make_app(service, group),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=5.0,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
            keepalive_timeout=KEEPALIVE_S,
        )
        self._server: asyncio.Server | None = None
        self._of_user: Counter[int] = Counter()

    async def open(self) -> None:
        """Listen. Raises OSError."""
        await self._runner.setup()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        before = os.umask(0o177)
        try:
            listener.bind(self._path)
            if self._group is not None:
                os.chown(self._path, -1, self._group)
                os.chmod(self._path, 0o660)
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(before)
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Door(self), sock=listener, backlog=BACKLOG)

    async def close(self) -> None:
        """Finish the answers under way, close every connection and remove the socket."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    # --- for the door ----------------------------------------------------------------------------------------------

    def has_room_for(self, peer: Peer) -> bool:
        """Say whether one more connection of this user is within the bounds."""
        if self._of_user.total() >= MAX_CONNECTIONS:
            return False
        return peer.is_owner or self._of_user[peer.uid] < MAX_CONNECTIONS_OF_OTHERS

    def let_in(self, peer: Peer, transport: asyncio.Transport, door: "_Door") -> asyncio.Protocol:
        """Return what talks HTTP on a new connection; it is closed if no request comes soon."""
        assert self._runner.server is not None
        self._of_user[peer.uid] += 1
        asyncio.get_running_loop().call_later(HEAD_TIMEOUT_S, door.look_whether_silent)
        handler = cast(asyncio.Protocol, self._runner.server())
        handler.connection_made(transport)
        return handler

    def has_left(self, peer: Peer) -> None:
        """Take note of the end of a connection that was let in."""
        self._of_user[peer.uid] -= 1
        if not self._of_user[peer.uid]:
            del self._of_user[peer.uid]


class _Door(asyncio.Protocol):
    """One connection: refused if there are too many, else handed through to what talks HTTP."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._handler: asyncio.Protocol | None = None
        self._peer: Peer | None = None
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._has_asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        try:
            peer = peer_of(transport.get_extra_info("socket"))
        except OSError:  # it has gone already
            self._transport.abort()
            return
        if not self._server.has_room_for(peer):
            self._transport.write(_too_many())
            self._transport.close()
            return
        self._peer = peer
        self._handler = self._server.let_in(peer, self._transport, self)

    def data_received(self, data: bytes) -> None:
        if self._handler is None:
            return
        if not self._has_asked:
            self._head = self._head[-3:] + data
            self._has_asked = b"\r\n\r\n" in self._head
        self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        return self._handler.eof_received() if self._handler is not None else None

    def pause_writing(self) -> None:
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        if self._handler is not None:
            self._handler.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        if self._handler is not None:
            self._handler.connection_lost(error)
        if self._peer is not None:
            self._server.has_left(self._peer)
            self._peer = None

    def look_whether_silent(self) -> None:
        """Hang up on somebody who has not come to the end of the first request's head in all this time."""
        if not self._has_asked and self._transport is not None:
            self._transport.abort()


def _too_many() -> bytes:
    error = BusyError("cannot take the request: the daemon has too many connections", hint="try again in a moment")
    body = json.dumps({"error": error.to_json(), "ending": False}).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
