"""Refreshes mounts whose configuration says how often, by one timer for all of them.

It belongs to the event loop's thread. A refresh that fails is told as an event and tried again when it is due next.
"""

import asyncio
import logging
from functools import partial

from amlmount.errors import AmlmountError
from amlmount.states import MountStatus
from amlmount.supervisor.supervise import Supervisor

TIMEOUT_S = 600.0
log = logging.getLogger(__name__)


class RefreshTimer:
    """Call `on_change` at every change of a mount (`Supervisor.listen`)."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._due: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._running: dict[str, asyncio.Task[None]] = {}

    def on_change(self, status: MountStatus) -> None:
        """Take in that a mount came, went or changed."""
        wanted = {spec.name: spec.refresh_interval_s for spec in self._supervisor.mounted() if spec.refresh_interval_s}
        now = asyncio.get_running_loop().time()
        self._due = {name: self._due.get(name, now + interval_s) for name, interval_s in wanted.items()}
        self._arm()

    def close(self) -> None:
        """Refresh nothing any more."""
        self._due.clear()
        self._arm()
        for task in self._running.values():
            task.cancel()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due:
            self._timer = asyncio.get_running_loop().call_at(min(self._due.values()), self._ring)

    def _ring(self) -> None:
        now = asyncio.get_running_loop().time()
        intervals = {spec.name: spec.refresh_interval_s for spec in self._supervisor.mounted()}
        for name in [name for name, due in self._due.items() if due <= now]:
            self._due[name] = now + (intervals.get(name) or TIMEOUT_S)
            if name not in self._running:
                self._running[name] = asyncio.create_task(self._refresh(name), name=f"refresh {name}")
                self._running[name].add_done_callback(partial(self._forget, name))
        self._arm()

    def _forget(self, name: str, task: "asyncio.Task[None]") -> None:
        self._running.pop(name, None)

    async def _refresh(self, name: str) -> None:
        try:
            await self._supervisor.ask(name, "refresh", {}, timeout_s=TIMEOUT_S)
        except AmlmountError as error:
            log.debug("%s: %s", name, error.message)  # an event says it, if it was mounted
