"""What the steps of a mount are as events: pure, from the status before and after, and what came between.

Every change of state is at least one event.
"""

from typing import Any, NamedTuple

from amlmount.events import Kind, kinds
from amlmount.states import (
    ConditionChange,
    Event,
    Exited,
    Failure,
    MountState,
    MountStatus,
    Replaced,
    StartBegun,
    Started,
    StartFailed,
    StopFailed,
    Stopped,
    TakeOverFailed,
    TookOver,
    Unwanted,
    turned,
)

_ENDS = {"crashed": kinds.CRASHED, "hung": kinds.HUNG, "unmounted": kinds.UNMOUNTED_ELSEWHERE}


class Told(NamedTuple):
    """One event that is to be told of a mount."""

    kind: Kind
    message: str
    details: dict[str, Any]


def events_of(before: MountStatus, event: Event, after: MountStatus) -> list[Told]:
    """Return what there is to tell of one step, in order; nothing if it changed nothing that anybody could see."""
    told = _step(before, event, after)
    has_failed = after.state is MountState.FAILED and before.state is not MountState.FAILED
    if has_failed and not isinstance(event, StopFailed):
        told.append(_failed(kinds.GAVE_UP, after, after.last_error))
    return [_condition(change) for change in turned(before.conditions, after.conditions)] + told


def _step(before: MountStatus, event: Event, after: MountStatus) -> list[Told]:
    if isinstance(event, Exited | StartFailed | TakeOverFailed | StopFailed):
        return _trouble(event, after)
    if isinstance(event, Replaced | TookOver):
        return [_served(kinds.REPLACED if isinstance(event, Replaced) else kinds.TAKEN_OVER, after)]
    if before.state is after.state:
        return []
    facts: dict[str, Any] = {"state": after.state.value}
    match event:
        case StartBegun(engine, why):
            return [Told(kinds.MOUNTING, f"by {engine}: {why}", facts | {"engine": engine})]
        case Started():
            return [_served(kinds.ADOPTED if event.is_adopted else kinds.MOUNTED, after)]
        case Unwanted():
            return [Told(kinds.UNMOUNTING, f"from {after.target}", facts)]
        case Stopped():
            gone = Told(kinds.UNMOUNTED, f"from {after.target}", {"state": MountState.UNMOUNTED.value})
            return [gone] if after.state is MountState.UNMOUNTED else [gone, _requested(after)]
    if after.state is MountState.DEGRADED:
        return [_failed(kinds.DEGRADED, after, after.last_error)]
    if after.state is MountState.MOUNTED:
        return [Told(kinds.RECOVERED, "all is well again", facts)]
    return [_requested(after)]


def _trouble(event: Exited | StartFailed | TakeOverFailed | StopFailed, after: MountStatus) -> list[Told]:
    match event:
        case StartFailed(failure) if after.state is MountState.PENDING:
            return [_failed(kinds.START_FAILED, after, failure)]
        case Exited(failure):
            return [_failed(_ENDS[event.cause], after, failure)]
        case TakeOverFailed(failure):
            return [_failed(kinds.TAKEOVER_FAILED, after, failure)]
        case StopFailed(failure):
            return [_failed(kinds.UNMOUNT_FAILED, after, failure)]
    return []


def _condition(change: ConditionChange) -> Told:
    condition = change.after
    kind = kinds.CONDITION_LOST if condition.status == "False" else kinds.CONDITION_BACK
    facts = {"condition": condition.type, "status": condition.status, "reason": condition.reason}
    return Told(kind, f"{condition.type} is {condition.status} ({condition.reason}): {condition.message}", facts)


def _requested(after: MountStatus) -> Told:
    return Told(kinds.REQUESTED, f"at {after.target}, from {after.source}", {"state": after.state.value})


def _served(kind: Kind, after: MountStatus) -> Told:
    facts = {"state": after.state.value, "pid": after.pid, "engine": after.engine}
    return Told(kind, f"at {after.target}, by {after.engine}, process {after.pid}", facts)


def _failed(kind: Kind, after: MountStatus, failure: Failure | None) -> Told:
    again = f"; next try in {after.retry_in_s:.1f} s" if after.retry_in_s else ""
    facts: dict[str, Any] = {"state": after.state.value, "code": failure.code if failure else "failed"}
    if failure is not None and failure.hint:
        facts["hint"] = failure.hint
    return Told(kind, (failure.message if failure else "cannot mount it") + again, facts)
