"""Waiting for mounts to be as somebody wants them: by the events that pass, without asking again and again.

It changes nothing; whoever gives up leaves everything as it is.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from amlmount.errors import NotFoundError
from amlmount.events import Event
from amlmount.states import SERVING, Failure, MountState, MountStatus, Outcome
from amlmount.supervisor.supervise import Supervisor

Goal = Literal["mounted", "healthy", "gone"]


async def wait_for(
    supervisor: Supervisor,
    names: Sequence[str],
    goal: Goal,
    *,
    timeout_s: float,
    progress: Callable[[MountStatus], None] = lambda _: None,
) -> Outcome:
    """Return once each of these mounts is as `goal` says or never will be by itself; the others are late.

    A mount that is not configured is gone. Raises NotFoundError for other goals.
    """
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hear(event: Event) -> None:
        loop.call_soon_threadsafe(changed.set)

    end = supervisor.events.observe(hear)
    seen: dict[str, MountStatus] = {}
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                changed.clear()
                found = {name: _status(supervisor, name, goal) for name in names}
                for name, status in found.items():
                    if status is not None and seen.get(name) != status:
                        seen[name] = status
                        progress(status)
                if all(is_settled(status, goal) for status in found.values()):
                    break
                await changed.wait()
    except TimeoutError:
        pass
    finally:
        end()
    mounts = [status for name in names if (status := _status(supervisor, name, goal)) is not None]
    errors = {status.name: _shortcoming(status, goal, timeout_s) for status in mounts if not _is_there(status, goal)}
    return Outcome(mounts, errors)


def is_settled(status: MountStatus | None, goal: Goal) -> bool:
    """Say whether there is nothing to wait for any more: it is as it should be, or has given up."""
    if status is None or _is_there(status, goal):
        return True
    return goal != "gone" and status.state is MountState.FAILED


def _is_there(status: MountStatus, goal: Goal) -> bool:
    match goal:
        case "mounted":
            return status.state in SERVING and not status.is_orphaned
        case "healthy":
            well = all(condition.status != "False" for condition in status.conditions)
            return status.state is MountState.MOUNTED and well
        case "gone":
            return status.state is MountState.UNMOUNTED


def _status(supervisor: Supervisor, name: str, goal: Goal) -> MountStatus | None:
    try:
        return next(status for status in supervisor.status([name]) if status.name == name)
    except NotFoundError:
        if goal == "gone":
            return None
        raise


def _shortcoming(status: MountStatus, goal: Goal, timeout_s: float) -> Failure:
    if is_settled(status, goal):
        return status.last_error or Failure("failed", f"cannot mount '{status.name}'")
    why = f": {status.last_error.message}" if status.last_error else ""
    message = f"cannot see '{status.name}' {goal} within {timeout_s:.3g} s: it is {status.state.value}{why}"
    return Failure("timeout", message, f"amlmount events {status.name} says what happened to it")
