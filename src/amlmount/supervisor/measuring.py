"""Figures of mounts: what their engines count, what their processes use, asked only when somebody wants to know.

An engine that does not answer holds nobody up: it has one question open at a time, and its last figures are shown
with their age.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from amlmount.engines.base import Running
from amlmount.errors import AmlmountError
from amlmount.procstat import stat_fields
from amlmount.states.stats import MountStats
from amlmount.supervisor.supervise import Supervisor

ASKED_S = 30.0  # how long one question stays open
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class _Known:
    """The last answer of one process, when it came (monotonic), and the question that is open."""

    pid: int
    raw: dict[str, Any] | None = None
    at: float = 0.0
    question: "asyncio.Task[None] | None" = None


class Measurer:
    """Belongs to the event loop's thread. `cache_bytes(name)` is what was last found of a cache, None if unknown."""

    def __init__(self, supervisor: Supervisor, cache_bytes: Callable[[str], int | None] = lambda name: None) -> None:
        self._supervisor = supervisor
        self._cache_bytes = cache_bytes
        self._known: dict[str, _Known] = {}

    async def measure(self, names: Sequence[str] | None = None, *, within_s: float) -> list[MountStats]:
        """Return the figures of the named mounts that are served (None: of all), after `within_s` seconds at most.

        Raises NotFoundError.
        """
        wanted = None if names is None else {status.name for status in self._supervisor.status(names)}
        running = [one for one in self._supervisor.running() if wanted is None or one.spec.name in wanted]
        self._forget_others()
        begun = time.monotonic()
        questions = [question for one in running if (question := self._question(one)) is not None]
        if questions:
            await asyncio.wait(questions, timeout=within_s)
        return [self._figures(one, begun) for one in running]

    def close(self) -> None:
        """Wait for no answer any more."""
        for known in self._known.values():
            if known.question is not None:
                known.question.cancel()

    def _question(self, running: Running) -> "asyncio.Task[None] | None":
        known = self._known.get(running.spec.name)
        if known is None or known.pid != running.pid:
            if known is not None and known.question is not None:
                known.question.cancel()
            known = self._known[running.spec.name] = _Known(running.pid)
        if known.question is None or known.question.done():
            known.question = asyncio.create_task(self._ask(running.spec.name, known), name=f"stats {running.spec.name}")
        return known.question

    async def _ask(self, name: str, known: _Known) -> None:
        try:
            known.raw = await self._supervisor.ask(name, "stats", {}, timeout_s=ASKED_S)
            known.at = time.monotonic()
        except AmlmountError:
            return

    def _figures(self, running: Running, begun: float) -> MountStats:
        known, name = self._known[running.spec.name], running.spec.name
        cpu_s, memory_bytes = process_use(running.pid)
        stats = MountStats(
            name,
            running.engine,
            running.pid,
            is_stale=known.at < begun,
            cpu_s=cpu_s,
            memory_bytes=memory_bytes,
            cache_bytes=self._cache_bytes(name),
        )
        if known.raw is None:
            return stats
        cache = known.raw.get("cache")
        used_bytes = cache["used_bytes"] if cache else stats.cache_bytes
        return replace(stats, engine_raw=known.raw, age_s=time.monotonic() - known.at, cache_bytes=used_bytes)

    def _forget_others(self) -> None:
        alive = {one.spec.name for one in self._supervisor.running()}
        for name in [name for name in self._known if name not in alive]:
            question = self._known.pop(name).question
            if question is not None:
                question.cancel()


def process_use(pid: int) -> tuple[float | None, int | None]:
    """Return the CPU seconds and the resident bytes of a process, None if it is gone (/proc/PID/stat, proc(5))."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return None, None
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S, int(fields[21]) * PAGE_BYTES
