"""Finds mounts whose process reads nothing any more: one look at all of them in a beat, by one poll(2).

It belongs to the event loop's thread. Only of a mount that has something unread the engine is asked about.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from amlmount.engines.attaching import with_unread
from amlmount.engines.base import Running, TakesOver

HUNG_LOOKS = 3


@dataclass(slots=True)
class Watched:
    """One mount, watched while `is_current` says so; `on_hung` is called once, after `HUNG_LOOKS` looks in a row."""

    running: Running
    engine: TakesOver
    is_current: Callable[[], bool]
    on_hung: Callable[[], None]
    times: int = 0


class HangWatch:
    """Looks while there is something to look at, at the same moments for all mounts."""

    def __init__(self) -> None:
        self._watched: list[Watched] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watched: Watched, *, hung_after_s: float) -> None:
        """Watch one more."""
        self._watched.append(watched)
        if self._timer is None:
            self._arm(hung_after_s / HUNG_LOOKS)

    def _arm(self, pause_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._look, pause_s)

    def _look(self, pause_s: float) -> None:
        self._timer = None
        self._watched = [one for one in self._watched if one.is_current()]
        unread = with_unread(one.running.fuse_fd for one in self._watched)
        for one in self._watched:
            is_asked = one.running.fuse_fd < 0 or one.running.fuse_fd in unread
            one.times = one.times + 1 if is_asked and one.engine.is_hung(one.running) else 0
        hung = [one for one in self._watched if one.times >= HUNG_LOOKS]
        self._watched = [one for one in self._watched if one.times < HUNG_LOOKS]
        if self._watched:
            self._arm(pause_s)
        for one in hung:
            asyncio.get_running_loop().call_soon(one.on_hung)
