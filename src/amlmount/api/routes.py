"""The route table: decode, ask the supervisor, encode. Decides nothing.

`up` and `down` answer with JSON lines as things happen: `{"progress": STATUS}` ..., then `{"outcome": ...}` or
`{"error": ...}`. Whoever closes the connection of an `up` before its end takes back what it began.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amlmount.api.figures import Figures
from amlmount.api.following import FOLLOWERS, WAITING, end_all, ended_with, serve_events
from amlmount.api.peers import GROUP, admit, refuse_borrowed_identity
from amlmount.errors import AmlmountError, UsageError
from amlmount.states import MountStatus, Outcome
from amlmount.supervisor import Goal, HealthKeeper, Supervisor, wait_for

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 10.0
SLOW_READER_S = 10.0
MAX_TIMEOUT_S = 24 * 3600.0
HTTP_STATUS = {2: 400, 3: 404, 4: 503, 5: 403, 6: 502, 8: 409, 124: 504}


class Service(Protocol):
    """What the routes need of the daemon."""

    @property
    def supervisor(self) -> Supervisor:
        """The mounts."""
        ...

    @property
    def health(self) -> HealthKeeper:
        """Who looks whether all is well with them."""
        ...

    @property
    def figures(self) -> Figures:
        """What mounts have counted."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return version, pid, configuration files: the answer to a ping."""
        ...

    def accept(self) -> None:
        """Raise DaemonUnreachableError if the daemon is about to end and takes no more work."""
        ...

    def refresh(self, sudo_uid: int | None) -> None:
        """Re-read the configuration; `sudo_uid` is who ran sudo. Raises ConfigError and leaves all as it was."""
        ...

    def busy(self) -> contextlib.AbstractContextManager[None]:
        """Keep the daemon from ending by itself within the block."""
        ...

    def end_if_idle(self) -> bool:
        """Begin to end if nothing is left to do after the request that asks; say whether that is so."""
        ...

    def shut_down(self) -> None:
        """Begin to take everything down and end."""
        ...

    def hand_over(self) -> None:
        """Begin to end and leave everything mounted, for the daemon that comes next."""
        ...


SERVICE: "web.AppKey[Service]" = web.AppKey("service")


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")
    names: list[str] | None = Field(default=None, max_length=10_000)
    timeout_s: float = Field(default=60.0, ge=0, le=MAX_TIMEOUT_S)


Body = TypeVar("Body", bound=_Request)


class UpRequest(_Request):
    """Body of `up`; `names` null means all."""

    wait: bool = True
    dry_run: bool = False
    sudo_uid: int | None = Field(default=None, ge=0)


class ReloadRequest(_Request):
    """Body of `reload` and `restart`; `names` null means all that are up."""

    dry_run: bool = False
    sudo_uid: int | None = Field(default=None, ge=0)


class RestartRequest(ReloadRequest):
    """Body of `restart`; `upgrade`: only those that another program would serve, which `dry_run` tells."""

    upgrade: bool = False


class DownRequest(_Request):
    """Body of `down`; `names` null means all."""

    lazy: bool = False


class WaitRequest(_Request):
    """Body of `wait`: until when."""

    names: list[str] = Field(min_length=1, max_length=10_000)
    goal: Goal = "mounted"


class RefreshRequest(_Request):
    """Body of `refresh`: one mount, all of it or what is at and below `path`."""

    name: str
    path: str | None = None


class CacheRequest(_Request):
    """Body of `cache`: a question of `worker.caching` or `worker.known_files` to one mount."""

    name: str
    what: Literal["cache", "cache_clear", "cache_pin", "cache_missing"]
    how: dict[str, Any] = Field(default_factory=dict)


class CheckRequest(_Request):
    """Body of `check`; `names` null means all that are wanted. `rw`: write a file through each that can be written."""

    rw: bool = False


class WritingRequest(_Request):
    """Body of `writing`: a question of `worker.writing` to one mount."""

    name: str
    what: Literal["writing", "flush"]
    how: dict[str, Any] = Field(default_factory=dict)


def make_app(service: Service, group: int | None = None) -> web.Application:
    """Return the application that serves `service` to its owner and to `group`."""
    app = web.Application(middlewares=[_errors_as_json, admit], client_max_size=MAX_BODY_BYTES)
    app[SERVICE], app[GROUP] = service, group
    app[FOLLOWERS], app[WAITING] = set(), set()
    app.on_shutdown.append(end_all)
    app.add_routes(
        [
            web.get("/v1/ping", _ping),
            web.get("/v1/status", _status),
            web.get("/v1/events", _events),
            web.get("/v1/stats", service.figures.serve_stats),
            web.get("/metrics", service.figures.serve_metrics),
            web.post("/v1/wait", _wait),
            web.post("/v1/up", _up),
            web.post("/v1/down", _down),
            web.post("/v1/refresh", _refresh),
            web.post("/v1/cache", _cache),
            web.post("/v1/writing", _writing),
            web.post("/v1/check", _check),
            web.post("/v1/reload", _reload),
            web.post("/v1/restart", _restart),
            web.post("/v1/handover", _handover),
            web.post("/v1/shutdown", _shutdown),
        ]
    )
    return app


async def _ping(request: web.Request) -> web.Response:
    return web.json_response(request.app[SERVICE].describe())


async def _status(request: web.Request) -> web.Response:
    mounts = request.app[SERVICE].supervisor.status(request.query.getall("name", None))
    return web.json_response({"mounts": [status.to_json() for status in mounts]})


async def _events(request: web.Request) -> web.StreamResponse:
    return await serve_events(request, request.app[SERVICE].supervisor.events)


async def _wait(request: web.Request) -> web.StreamResponse:
    service, body = request.app[SERVICE], await _read_body(request, WaitRequest)
    if body.goal != "gone":
        service.supervisor.status(body.names)
    with service.busy(), ended_with(request.app):
        return await _stream(
            request,
            lambda progress: wait_for(
                service.supervisor, body.names, body.goal, timeout_s=body.timeout_s, progress=progress
            ),
        )


async def _up(request: web.Request) -> web.StreamResponse:
    service, body = request.app[SERVICE], await _read_body(request, UpRequest)
    with service.busy():
        try:
            service.accept()
            service.refresh(body.sudo_uid)
            service.supervisor.status(body.names)
        except AmlmountError as error:
            return _refusal(error, ending=service.end_if_idle())
        if body.dry_run:
            plans = await service.supervisor.plan(body.names)
            return web.json_response({"plans": [plan.to_json() for plan in plans]})
        return await _stream(
            request,
            lambda progress: service.supervisor.up(
                body.names, wait=body.wait, timeout_s=body.timeout_s, progress=progress
            ),
        )


async def _down(request: web.Request) -> web.StreamResponse:
    service, body = request.app[SERVICE], await _read_body(request, DownRequest)
    with service.busy():
        service.supervisor.status(body.names)
        return await _stream(
            request,
            lambda progress: service.supervisor.down(
                body.names, lazy=body.lazy, timeout_s=body.timeout_s, progress=progress
            ),
        )


async def _reload(request: web.Request) -> web.StreamResponse:
    service, body = request.app[SERVICE], await _read_body(request, ReloadRequest)
    with service.busy():
        service.accept()
        service.refresh(body.sudo_uid)
        if body.dry_run:
            changes = await service.supervisor.changes()
            return web.json_response({"changes": [change.to_json() for change in changes]})
        return await _stream(
            request, lambda progress: service.supervisor.reload(timeout_s=body.timeout_s, progress=progress)
        )


async def _restart(request: web.Request) -> web.StreamResponse:
    service, body = request.app[SERVICE], await _read_body(request, RestartRequest)
    with service.busy():
        service.accept()
        service.refresh(body.sudo_uid)
        service.supervisor.status(body.names)
        if body.dry_run:
            changes = await service.supervisor.restarts(body.names, only_newer=body.upgrade)
            return web.json_response({"changes": [change.to_json() for change in changes]})
        return await _stream(
            request,
            lambda progress: service.supervisor.restart(body.names, timeout_s=body.timeout_s, progress=progress),
        )


async def _handover(request: web.Request) -> web.Response:
    request.app[SERVICE].hand_over()
    return web.json_response({"ending": True})


async def _refresh(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await _read_body(request, RefreshRequest)
    with service.busy():
        how = {"path": body.path}
        answer = await service.supervisor.ask(body.name, "refresh", how, timeout_s=body.timeout_s)
        return web.json_response(answer)


async def _cache(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await _read_body(request, CacheRequest)
    with service.busy():
        return web.json_response(await service.supervisor.ask(body.name, body.what, body.how, timeout_s=body.timeout_s))


async def _writing(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await _read_body(request, WritingRequest)
    with service.busy():
        return web.json_response(await service.supervisor.ask(body.name, body.what, body.how, timeout_s=body.timeout_s))


async def _check(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await _read_body(request, CheckRequest)
    with service.busy():
        found = await service.health.check(body.names, rw=body.rw, timeout_s=body.timeout_s)
        return web.json_response({"mounts": [status.to_json() for status in found]})


async def _shutdown(request: web.Request) -> web.Response:
    request.app[SERVICE].shut_down()
    return web.json_response({"ending": True})


async def _read_body(request: web.Request, kind: type[Body]) -> Body:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            data = await request.read()
        body = kind.model_validate_json(data or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise UsageError(f"cannot read the request: {where}: {first['msg']}") from None
    except TimeoutError:
        raise UsageError(f"cannot read the request: its body does not come within {BODY_TIMEOUT_S:g} s") from None
    refuse_borrowed_identity(request, getattr(body, "sudo_uid", None))
    return body


Work = Callable[[Callable[[MountStatus], None]], Awaitable[Outcome]]


async def _stream(request: web.Request, work: Work) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    news = _News()
    writer = asyncio.create_task(news.write_to(response))
    try:
        last: dict[str, Any] = {"outcome": (await work(news.put)).to_json()}
    except AmlmountError as error:
        last = {"error": error.to_json()}
    finally:
        news.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(writer, SLOW_READER_S)
    last["ending"] = request.app[SERVICE].end_if_idle()
    await response.write(_line(last))
    await response.write_eof()
    return response


class _News:
    """Changes on their way to a client; one that reads slowly gets the latest of each mount, so this stays small."""

    def __init__(self) -> None:
        self._latest: dict[str, MountStatus] = {}
        self._something = asyncio.Event()
        self._closed = False

    def put(self, status: MountStatus) -> None:
        self._latest[status.name] = status
        self._something.set()

    def close(self) -> None:
        self._closed = True
        self._something.set()

    async def write_to(self, response: web.StreamResponse) -> None:
        while not self._closed or self._latest:
            await self._something.wait()
            self._something.clear()
            latest, self._latest = self._latest, {}
            for status in latest.values():
                await response.write(_line({"progress": status.to_json()}))


def _refusal(error: AmlmountError, *, ending: bool = False) -> web.Response:
    status = HTTP_STATUS.get(error.exit_code, 500)
    return web.json_response({"error": error.to_json(), "ending": ending}, status=status)


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except AmlmountError as error:
        return _refusal(error)
    except web.HTTPException as error:
        reason = AmlmountError(f"cannot serve {request.method} {request.path}: {error.reason.lower()}")
        return web.json_response({"error": reason.to_json()}, status=error.status)
    except ConnectionError:
        raise
    except Exception:
        log.exception("cannot serve %s %s", request.method, request.path)
        reason = AmlmountError("cannot serve the request: the daemon met a bug", hint="see the daemon's log")
        return web.json_response({"error": reason.to_json()}, status=500)
