"""Listening on the daemon's unix socket: one socket, mode 0600, bounded requests, ended in good order.

Whoever calls this holds the daemon's lock, so a socket that is there already belongs to a dead daemon.
"""

import contextlib
import os
import socket

from aiohttp import web

from amlmount.api.routes import Service, make_app

BACKLOG = 64
HEADER_BYTES = 8190


class ApiServer:
    """Serves the API on `socket_path` between `open` and `close`."""

    def __init__(self, service: Service, socket_path: str) -> None:
        self._path = socket_path
        self._runner = web.AppRunner(
            make_app(service),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=5.0,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
        )

    async def open(self) -> None:
        """Listen. Raises OSError."""
        await self._runner.setup()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        before = os.umask(0o177)
        try:
            listener.bind(self._path)
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(before)
        listener.setblocking(False)
        await web.SockSite(self._runner, listener, backlog=BACKLOG).start()

    async def close(self) -> None:
        """Finish the answers under way, close every connection and remove the socket."""
        await self._runner.cleanup()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
