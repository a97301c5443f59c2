"""Keeps all caches of a daemon within the room they have together: measures, shares out, tells each its allowance.

Python workers say themselves what they use, and evict; from caches whose mount is not up, entries are removed here.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from amlmount.cache import Demand, allot, budget_bytes, disk_bytes, is_named_root
from amlmount.config.models import CacheConfig
from amlmount.config.spec import MountSpec
from amlmount.engines.attaching import requests_read
from amlmount.errors import AmlmountError
from amlmount.states import MountStatus
from amlmount.supervisor.supervise import Supervisor
from amlmount.supervisor.trimming import trim

EVERY_S = 10.0
SOON_S = 0.05
ANSWER_S = 5.0
IDLE_MEASURED_EVERY_S = 60.0
FEW_REQUESTS = 4  # reading a file takes as many; our own looks at a mount take one each
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Room:
    """The caches below one root. Bytes by cache directory; `silent` ones cannot be told an allowance.

    `at_rest`: mounts that nobody uses, so they were not asked.
    """

    root: str
    names: dict[str, str] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    silent: dict[str, int] = field(default_factory=dict)
    idle: dict[str, int] = field(default_factory=dict)
    at_rest: set[str] = field(default_factory=set)

    @property
    def used_bytes(self) -> int:
        return sum(self.used.values()) + sum(self.silent.values()) + sum(self.idle.values())


@dataclass(frozen=True, slots=True)
class _Asked:
    """When a mount was asked last, what it used, what it had read then, and whether that was as the time before."""

    at: float
    used_bytes: int
    read: int | None
    is_settled: bool

    def is_at_rest(self, read: int | None) -> bool:
        """Say whether its cache can hardly be another now."""
        if read is None or self.read is None or time.monotonic() - self.at > IDLE_MEASURED_EVERY_S:
            return False
        return self.is_settled and 0 <= read - self.read < FEW_REQUESTS


class CacheKeeper:
    """Call `on_change` at every change of a mount (`Supervisor.listen`). One timer, while a cache is in use.

    `clear_moved` removes what these mounts have left at other places; it may block.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        config: Callable[[], CacheConfig],
        *,
        every_s: float = EVERY_S,
        clear_moved: Callable[[list[MountSpec]], object] = lambda specs: None,
    ) -> None:
        self._supervisor = supervisor
        self._config = config
        self._clear_moved = clear_moved
        self._every_s = every_s
        self._timer: asyncio.TimerHandle | None = None
        self._round: asyncio.Task[None] | None = None
        self._told: dict[str, int] = {}
        self._asked: dict[str, _Asked] = {}
        self._measured: dict[str, tuple[float, int]] = {}
        self.used_bytes: dict[str, int] = {}  # by mount, as found in the last round

    def on_change(self, status: MountStatus) -> None:
        """Take in that a mount came or went: a new one is to have its allowance at once."""
        self._told.pop(status.name, None)
        self._asked.pop(status.name, None)
        self.share_out_soon()

    def share_out_soon(self) -> None:
        """Take in that there may be more or less room than before."""
        self._arm(SOON_S)

    def close(self) -> None:
        """Keep nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._round is not None:
            self._round.cancel()

    def _arm(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if any(spec.cache_dir for spec in self._supervisor.mounted()):
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._begin)

    def _begin(self) -> None:
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(self._share_out(), name="share out the cache")
        self._arm(self._every_s)

    async def _share_out(self) -> None:
        try:
            for room in await self._rooms():
                await self._share_room(room)
            await asyncio.to_thread(self._clear_moved, self._supervisor.mounted())
        except (AmlmountError, OSError):
            log.exception("cannot share out the room for caches")

    async def _rooms(self) -> list[_Room]:
        rooms: dict[str, _Room] = {}
        specs = [spec for spec in self._supervisor.mounted() if spec.cache_dir]
        read = {one.spec.name: requests_read(one) for one in self._supervisor.running()}
        rested = [self._at_rest(spec.name, read.get(spec.name)) for spec in specs]
        coming = (self._usage(spec, read.get(spec.name)) for spec, rest in zip(specs, rested, strict=True) if not rest)
        answers = iter(await asyncio.gather(*coming))
        for spec, rest in zip(specs, rested, strict=True):
            used_bytes = rest.used_bytes if rest else next(answers)
            directory = str(spec.cache_dir)
            room = rooms.setdefault(os.path.dirname(directory), _Room(os.path.dirname(directory)))
            room.names[directory] = spec.name
            room.at_rest |= {directory} if rest else set()
            if used_bytes is None:
                room.silent[directory] = self.used_bytes[spec.name] = await asyncio.to_thread(disk_bytes, directory)
            else:
                room.used[directory] = self.used_bytes[spec.name] = used_bytes
        for room in rooms.values():
            await asyncio.to_thread(self._measure_idle, room)
        return list(rooms.values())

    def _at_rest(self, name: str, read: int | None) -> _Asked | None:
        before = self._asked.get(name)
        return before if before is not None and before.is_at_rest(read) else None

    async def _usage(self, spec: MountSpec, read: int | None) -> int | None:
        before = self._asked.pop(spec.name, None)
        try:
            used = int((await self._supervisor.ask(spec.name, "cache", {}, timeout_s=ANSWER_S))["used_bytes"])
        except AmlmountError:
            return None
        is_settled = before is not None and before.used_bytes == used
        self._asked[spec.name] = _Asked(time.monotonic(), used, read, is_settled)
        return used

    def _measure_idle(self, room: _Room) -> None:
        """Measure caches whose mount is not up, seldom: they do not grow."""
        now = time.monotonic()
        for entry in os.scandir(room.root):
            if entry.path in room.names or not entry.is_dir(follow_symlinks=False):
                continue
            measured_at, size_bytes = self._measured.get(entry.path, (0.0, 0))
            if not measured_at or now - measured_at > IDLE_MEASURED_EVERY_S:
                size_bytes = disk_bytes(entry.path)
                self._measured[entry.path] = now, size_bytes
            room.idle[entry.path] = size_bytes

    async def _share_room(self, room: _Room) -> None:
        config = self._config()
        budget = await asyncio.to_thread(
            budget_bytes, config, room.root, used_bytes=room.used_bytes, is_named=is_named_root(config)
        )
        demands = [Demand(path, size) for path, size in room.used.items()]
        demands += [Demand(path, size, is_active=False) for path, size in room.idle.items()]
        shares = allot(budget - sum(room.silent.values()), demands)
        for path, size_bytes in room.used.items():
            # One that nobody uses is told when it is used again, or has to shrink.
            if path not in room.at_rest or size_bytes > shares[path] or room.names[path] not in self._told:
                await self._tell(room.names[path], shares[path])
        for path, size_bytes in room.idle.items():
            if size_bytes > shares[path]:
                freed = await asyncio.to_thread(trim, path, size_bytes - shares[path])
                self._measured.pop(path, None)
                log.info("%s: gave %d bytes of room to the caches of other mounts", path, freed)

    async def _tell(self, name: str, allowance_bytes: int) -> None:
        if self._told.get(name) == allowance_bytes:
            return
        try:
            how = {"limit_bytes": allowance_bytes}
            await self._supervisor.ask(name, "cache", how, timeout_s=ANSWER_S)
            self._told[name] = allowance_bytes
        except AmlmountError as error:
            log.debug("%s: %s", name, error.message)
