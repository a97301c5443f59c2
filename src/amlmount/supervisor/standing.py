"""The status of one mount: what changes it, who waits for a change, and the work that follows, one piece after another.

Contract: all methods run in the event loop's thread. `tell` never waits; work runs in a chain of tasks in which
each waits for the one before, so a start never overlaps with the stop or clean-up that precedes it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from amlmount.journal import about
from amlmount.states import Action, Event, MountStatus, transition
from amlmount.supervisor.surroundings import Surroundings
from amlmount.supervisor.telling import events_of


class Standing:
    """Where a mount stands. `waiters` counts the `up` calls that wait for it.

    `started_for_waiters`: the start under way exists only for them, and goes when the last of them walks away.
    `failure_told`: somebody has been told of the failure in `status`.
    """

    def __init__(self, status: MountStatus, around: Surroundings) -> None:
        self.status = status
        self.waiters = 0
        self.started_for_waiters = False
        self.failure_told = False
        self._around = around
        self._work: asyncio.Task[None] | None = None
        self._changed: list[asyncio.Future[None]] = []

    def tell(self, event: Event) -> MountStatus:
        """Apply `event`, set the work that follows from it going, and return the new status."""
        before = self.status
        self.status, actions = transition(before, event, self._around.policy, self._around.now())
        if self.status != before:
            self._announce(before, event)
        for action in actions:
            self._carry_out(action)
        return self.status

    async def changed(self) -> None:
        """Wait for the next change of `status`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._changed:
                self._changed.remove(waiter)

    async def settled(self) -> None:
        """Wait for the end of the work that is under way or queued."""
        while self._work is not None and not self._work.done():
            await asyncio.wait({self._work})

    @property
    def is_at_work(self) -> bool:
        """Say whether work is under way or queued."""
        return self._work is not None and not self._work.done()

    def _carry_out(self, action: Action) -> None:
        raise NotImplementedError

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> "asyncio.Task[None]":
        with about(self.status.name):  # a task takes along what it is about
            self._work = asyncio.create_task(_after(self._work, work), name=f"mount {self.status.name}")
        return self._work

    def _announce(self, before: MountStatus, event: Event) -> None:
        if self.status.state is not before.state:
            self.failure_told = False
        for kind, message, details in events_of(before, event, self.status):
            self._around.events.tell(kind, message, mount=self.status.name, details=details)
        waiting, self._changed = self._changed, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._around.on_change(self.status)


async def _after(previous: "asyncio.Task[None] | None", work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    if previous is not None and not previous.done():
        try:
            await asyncio.wait({previous})
        except asyncio.CancelledError:
            await asyncio.wait({previous})  # whoever waits for us must not begin before what we wait for has ended
            raise
    await work()
