"""The stream of events over the socket: what is kept first, then what happens, for as long as somebody reads.

Nobody who reads slowly holds anything up: who is too far behind is let go, and asks for the rest with a new request.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amlmount.errors import UsageError
from amlmount.events import Event, EventHub

MAX_BEHIND = 2000
BATCH = 200
WAITING: "web.AppKey[set[asyncio.Task[Any]]]" = web.AppKey("waiting")
FOLLOWERS: "web.AppKey[set[Follower]]" = web.AppKey("followers")


class EventsQuery(BaseModel):
    """What is asked of `events`: since a moment (seconds since 1970), after a number, and whether to go on."""

    model_config = ConfigDict(extra="forbid")
    name: list[str] | None = Field(default=None, max_length=1000)
    since: float = Field(default=0.0, allow_inf_nan=False)
    after: int = 0
    follow: bool = False

    @classmethod
    def of(cls, request: web.Request) -> "EventsQuery":
        """Read the query of a request. Raises UsageError."""
        asked: dict[str, object] = {key: value for key, value in request.query.items() if key != "name"}
        if "name" in request.query:
            asked["name"] = request.query.getall("name")
        try:
            return cls.model_validate(asked)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise UsageError(f"cannot read the request: {first['loc'][0]}: {first['msg']}") from None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are wanted."""

    names: frozenset[str] | None
    since_s: float
    after: int

    def passes(self, event: Event) -> bool:
        """Say whether it is one of them."""
        return event.number > self.after and event.concerns(self.names, self.since_s)


class Follower:
    """Hears events from now on, until it is closed or too far behind."""

    def __init__(self, hub: EventHub) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._is_over = False
        self.close_observing = hub.observe(self._hear)

    def end(self) -> None:
        """Have the stream end once what was heard is sent."""
        self._is_over = True
        self._wake.set()

    async def next(self) -> list[Event]:
        """Return what was heard since the last time, waiting for something; nothing when it is over."""
        while not self._heard and not self._is_over:
            self._wake.clear()
            if not self._heard and not self._is_over:
                await self._wake.wait()
        return [self._heard.popleft() for _ in range(len(self._heard))]

    def _hear(self, event: Event) -> None:
        if len(self._heard) >= MAX_BEHIND:
            self._is_over = True
        else:
            self._heard.append(event)
        self._loop.call_soon_threadsafe(self._wake.set)


def kept_events(hub: EventHub, wanted: Filter) -> list[Event]:
    """Return what is kept and wanted. Blocks on the disk."""
    return [event for event in hub.file.read() if wanted.passes(event)] if hub.file is not None else []


async def serve_events(request: web.Request, hub: EventHub) -> web.StreamResponse:
    """Answer `GET /v1/events` with one JSON object a line."""
    query = EventsQuery.of(request)
    names = frozenset(query.name) if query.name is not None else None
    wanted = Filter(names, query.since, query.after)
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    follower = Follower(hub) if query.follow else None
    try:
        if follower is not None:
            request.app[FOLLOWERS].add(follower)
        await response.prepare(request)
        kept = await asyncio.to_thread(kept_events, hub, wanted)
        for start in range(0, len(kept), BATCH):
            await response.write(_lines(kept[start : start + BATCH]))
        if follower is not None:
            last = max(wanted.after, kept[-1].number if kept else 0)
            await _follow(response, follower, Filter(names, query.since, last))
    finally:
        if follower is not None:
            follower.close_observing()
            request.app[FOLLOWERS].discard(follower)
    await response.write_eof()
    return response


async def _follow(response: web.StreamResponse, follower: Follower, wanted: Filter) -> None:
    while heard := await follower.next():
        if lines := _lines(event for event in heard if wanted.passes(event)):
            await response.write(lines)


@contextlib.contextmanager
def ended_with(app: web.Application) -> Iterator[None]:
    """Cancel what the block waits for when the daemon ends."""
    task = asyncio.current_task()
    assert task is not None
    app[WAITING].add(task)
    try:
        yield
    finally:
        app[WAITING].discard(task)


async def end_all(app: web.Application) -> None:
    """Let every stream end, and everything that waits: the daemon ends."""
    followers: set[Follower] = app[FOLLOWERS]
    waiting: set[asyncio.Task[Any]] = app[WAITING]
    for follower in list(followers):
        follower.end()
    for task in list(waiting):
        task.cancel()


def _lines(events: Iterable[Event]) -> bytes:
    return b"".join(json.dumps(event.to_json(), separators=(",", ":")).encode() + b"\n" for event in events)
