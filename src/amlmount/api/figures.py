"""Figures of mounts over the socket, and the one page that may be had by TCP: `/metrics`.

The TCP server knows nothing else; whoever reaches it learns names and numbers, and can change nothing.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web

import amlmount
from amlmount.config.fields import split_address
from amlmount.metrics.text import CONTENT_TYPE
from amlmount.supervisor import Exposition, Measurer, Supervisor

log = logging.getLogger(__name__)
STATS_WITHIN_S = 1.0
HEADER_BYTES = 8190
Text = Callable[[], Awaitable[str]]


class Figures:
    """Figures of the mounts of a supervisor, for the routes of the socket and for `listen`."""

    def __init__(self, supervisor: Supervisor, cache_bytes: Callable[[str], int | None] = lambda name: None) -> None:
        self._measurer = Measurer(supervisor, cache_bytes)
        self._exposition = Exposition(supervisor, self._measurer, amlmount.__version__)
        self._listener = MetricsListener(self._exposition.text)
        self._following: asyncio.Task[None] | None = None

    def listen(self, address: str | None) -> None:
        """Serve metrics at this `host:port` too, from soon on; None: nowhere. Calls take effect one after another."""
        self._following = asyncio.create_task(self._follow(address, self._following), name="metrics")

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._following is not None:
            await asyncio.wait({self._following})
        await self._listener.close()
        self._measurer.close()

    async def serve_stats(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/stats?name=...&within=0.1`: figures, after that many seconds at most."""
        try:
            within_s = min(10.0, max(0.0, float(request.query.get("within", STATS_WITHIN_S))))
        except ValueError:
            within_s = STATS_WITHIN_S
        found = await self._measurer.measure(request.query.getall("name", None), within_s=within_s)
        return web.json_response({"stats": [one.to_json() for one in found]})

    async def serve_metrics(self, request: web.Request) -> web.Response:
        """Answer `GET /metrics`."""
        return await serve_text(self._exposition.text)

    async def _follow(self, address: str | None, before: "asyncio.Task[None] | None") -> None:
        if before is not None:
            await asyncio.wait({before})
        await self._listener.follow(split_address(address) if address else None)


async def serve_text(text: Text) -> web.Response:
    """Answer with what Prometheus reads."""
    return web.Response(body=(await text()).encode(), headers={"Content-Type": CONTENT_TYPE})


class MetricsListener:
    """Serves `/metrics` by TCP at the address that `follow` was told last, None: nowhere."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._address: tuple[str, int] | None = None
        self._runner: web.AppRunner | None = None

    async def follow(self, address: tuple[str, int] | None) -> None:
        """Listen there from now on. Where that cannot be, it is said in the log, and mounts go on."""
        if address == self._address:
            return
        await self.close()
        self._address = address
        if address is None:
            return
        try:
            await self._open(*address)
        except OSError as error:
            await self.close()
            log.error("cannot serve metrics at %s:%d: %s", *address, error.strerror or error)

    async def close(self) -> None:
        """Listen no more."""
        runner, self._runner, self._address = self._runner, None, None
        if runner is not None:
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        return await serve_text(self._text)

    async def _open(self, host: str, port: int) -> None:
        app = web.Application()
        app.add_routes([web.get("/metrics", self._serve)])
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, max_line_size=HEADER_BYTES, max_field_size=HEADER_BYTES
        )
        await self._runner.setup()
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        with contextlib.ExitStack() as undo:
            undo.callback(listener.close)
            await web.SockSite(self._runner, listener).start()
            undo.pop_all()
        log.info("metrics at http://%s:%d/metrics", host, listener.getsockname()[1] if listener.fileno() >= 0 else port)
