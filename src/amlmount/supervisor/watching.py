"""Tells the supervisor when the mount table changes: by an event, not by looking again and again.

It belongs to the event loop's thread.
"""

import asyncio
import select
from collections.abc import Callable

from amlmount.mounts import MountEntry, MountWatch

SETTLE_S = 0.02  # several changes in a row are looked at once


class TableWatch:
    """Calls `on_change` with the mount table soon after it has changed, until `close`."""

    def __init__(self, on_change: Callable[[list[MountEntry]], None]) -> None:
        self._on_change = on_change
        self._watch = MountWatch()
        # mountinfo is always readable; only an epoll of its own can wait for nothing but POLLPRI.
        self._epoll = select.epoll()
        self._epoll.register(self._watch.fileno(), select.EPOLLPRI)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._changed)
        self._soon: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Watch no more."""
        if self._soon is not None:
            self._soon.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._watch.close()

    def _changed(self) -> None:
        self._epoll.poll(0)
        table = self._watch.read()
        if self._soon is not None:
            self._soon.cancel()
        self._soon = self._loop.call_later(SETTLE_S, self._on_change, table)
