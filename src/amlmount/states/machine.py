"""The one pure function that moves a mount between its states: `transition(status, event, policy, now)`.

No clock, no randomness and no system call lives here: the supervisor brings events and carries out the actions.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from amlmount.states.conditions import Condition, Observed, merge, worst
from amlmount.states.status import COMING, SERVING, Failure, MountState, MountStatus


@dataclass(frozen=True, slots=True)
class Now:
    """The moment of an event. `luck` is a number in [0, 1) drawn by the caller: it becomes the jitter."""

    wall_s: float
    monotonic_s: float
    luck: float = 0.5


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to try again: doubling delays with jitter, forgotten after `stable_s` of service, ended by `crash_limit`.

    More than `crash_limit` crashes within `crash_window_s` end in `failed`. Failures with a code in
    `retryable` (the network, the store asking for patience) are tried again for ever.
    """

    first_delay_s: float = 0.5
    max_delay_s: float = 60.0
    jitter: float = 0.2
    stable_s: float = 60.0
    crash_limit: int = 5
    crash_window_s: float = 300.0
    retryable: frozenset[str] = frozenset({"network", "throttled", "timeout"})

    def delay_s(self, attempt: int, luck: float) -> float:
        """Return the pause before try number `attempt` (from 1)."""
        plain = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(attempt - 1, 30))
        return plain * (1 + self.jitter * (2 * luck - 1))


# --- events: what happened ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """Somebody asked for the mount."""


@dataclass(frozen=True, slots=True)
class Unwanted:
    """Somebody asked for it to go; `lazy` lets go of a busy one."""

    lazy: bool = False


@dataclass(frozen=True, slots=True)
class StartBegun:
    """Its turn has come: the engine is being started."""

    engine: str
    why: str


@dataclass(frozen=True, slots=True)
class Started:
    """The mount answers. `is_adopted`: an earlier daemon had started it."""

    pid: int
    made_target: bool = False
    is_adopted: bool = False


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The start failed and was undone."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Exited:
    """The engine's process ended without being asked to, or hangs.

    `can_take_over`: the mount is there still, its callers wait, and another process can go on with it.
    `cause`: `unmounted` means that somebody else took the mount away.
    """

    failure: Failure
    can_take_over: bool = False
    cause: Literal["crashed", "hung", "unmounted"] = "crashed"


@dataclass(frozen=True, slots=True)
class TookOver:
    """Another process serves the same mount; callers go on."""

    pid: int


@dataclass(frozen=True, slots=True)
class Replaced:
    """A new mount has taken the place of the old one, without a moment in which there was none."""

    pid: int
    engine: str
    why: str


@dataclass(frozen=True, slots=True)
class TakeOverFailed:
    """No process could be found that goes on; `can_take_over`: it may be tried again."""

    failure: Failure
    can_take_over: bool


@dataclass(frozen=True, slots=True)
class Stopped:
    """It is unmounted and nothing is left of it."""


@dataclass(frozen=True, slots=True)
class StopFailed:
    """It could not be unmounted and is as it was."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The pause before the next try is over."""


@dataclass(frozen=True, slots=True)
class HealthLost:
    """It is mounted, but something it needs is not well."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class HealthBack:
    """All is well again."""


Event = (Wanted | Unwanted | StartBegun | Started | StartFailed | Exited | Stopped | StopFailed | RetryDue) | (
    HealthLost | HealthBack | TookOver | TakeOverFailed | Replaced | Observed
)

# --- actions: what the supervisor has to do, in this order ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Start the engine, once what went before is done."""


@dataclass(frozen=True, slots=True)
class CancelStart:
    """Give up a start or a takeover that is under way; it undoes itself."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Unmount, remove what was made, report Stopped or StopFailed."""

    lazy: bool = False


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Remove what a dead engine left: abort, lazy unmount. Reports nothing."""


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Have another process go on with the mount, report TookOver or TakeOverFailed."""


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Report RetryDue after this pause."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class CancelRetry:
    """Forget the pause."""


Action = Start | CancelStart | Stop | CleanUp | TakeOver | RetryAfter | CancelRetry
Step = tuple[MountStatus, tuple[Action, ...]]

# --- the function ------------------------------------------------------------------------------------------------


def transition(status: MountStatus, event: Event, policy: RestartPolicy, now: Now) -> Step:
    """Return the status after `event` and what has to be done. An event that comes too late changes nothing."""
    match event:
        case Wanted():
            return _wanted(status, now)
        case Unwanted(lazy):
            return _unwanted(status, lazy, now)
        case StartFailed(failure):
            return _start_failed(status, failure, policy, now)
        case Exited(failure, can_take_over):
            return _exited(status, failure, can_take_over, policy, now)
        case Replaced():
            return _replaced(status, event, now)
        case TookOver() | TakeOverFailed():
            return _take_over_ended(status, event, policy, now)
        case StartBegun() | Started() | RetryDue():
            return _start_goes_on(status, event, now)
        case Stopped() | StopFailed():
            return _stop_ended(status, event, now)
        case HealthLost() | HealthBack() | Observed():
            return _health(status, event, now)


def _enter(status: MountStatus, state: MountState, now: Now, **changes: Any) -> MountStatus:
    if state is not status.state:
        changes["since"] = now.wall_s
    return replace(status, state=state, **changes)


def _afresh(status: MountStatus, now: Now) -> Step:
    fresh = _enter(
        status,
        MountState.PENDING,
        now,
        wanted=True,
        attempts=0,
        restarts=0,
        crash_times_s=(),
        last_error=None,
        retry_in_s=None,
    )
    return fresh, (Start(),)


def _wanted(status: MountStatus, now: Now) -> Step:
    if status.state in (MountState.UNMOUNTED, MountState.FAILED):
        return _afresh(status, now)
    if status.state is MountState.PENDING and status.retry_in_s is not None:
        return replace(status, wanted=True, retry_in_s=None), (CancelRetry(), Start())
    return replace(status, wanted=True), ()


def _unwanted(status: MountStatus, lazy: bool, now: Now) -> Step:
    if status.state in (MountState.UNMOUNTED, MountState.UNMOUNTING):
        return replace(status, wanted=False), ()
    leaving = _enter(status, MountState.UNMOUNTING, now, wanted=False, retry_in_s=None)
    if status.state in SERVING and not status.is_orphaned:
        return leaving, (Stop(lazy),)
    return leaving, (CancelRetry(), CancelStart(), Stop(lazy))


def _start_goes_on(status: MountStatus, event: StartBegun | Started | RetryDue, now: Now) -> Step:
    match event:
        case StartBegun(engine, why) if status.state is MountState.PENDING:
            return _enter(status, MountState.MOUNTING, now, engine=engine, engine_why=why), ()
        case Started(pid, made) if status.state is MountState.MOUNTING:
            made = made or status.mount_made_target
            return _enter(
                status,
                MountState.MOUNTED,
                now,
                pid=pid,
                last_error=None,
                mount_made_target=made,
                mounted_at_s=now.monotonic_s,
            ), ()
        case RetryDue() if status.state is MountState.PENDING and status.retry_in_s is not None:
            return replace(status, retry_in_s=None), (Start(),)
        case RetryDue() if status.is_orphaned and status.retry_in_s is not None:
            return replace(status, retry_in_s=None), (TakeOver(),)
    return status, ()


def _start_failed(status: MountStatus, failure: Failure, policy: RestartPolicy, now: Now) -> Step:
    if status.state not in COMING:
        return status, ()
    failed = replace(status, pid=None, last_error=failure, attempts=status.attempts + 1)
    if failure.code in policy.retryable:
        return _try_later(failed, policy.delay_s(failed.attempts, now.luck), now, ())
    if status.restarts == 0:
        return _enter(failed, MountState.FAILED, now), ()
    return _count_crash(failed, policy, now, ())


def _exited(status: MountStatus, failure: Failure, can_take_over: bool, policy: RestartPolicy, now: Now) -> Step:
    if status.state not in SERVING or status.is_orphaned:
        return status, ()
    served_s = now.monotonic_s - (status.mounted_at_s or now.monotonic_s)
    if served_s >= policy.stable_s:
        status = replace(status, attempts=0, crash_times_s=())
    dead = replace(status, pid=None, last_error=failure, mounted_at_s=None, restarts=status.restarts + 1)
    if can_take_over:
        return _count_orphaned(dead, policy, now)
    return _count_crash(dead, policy, now, (CleanUp(),))


def _take_over_ended(status: MountStatus, event: TookOver | TakeOverFailed, policy: RestartPolicy, now: Now) -> Step:
    if not status.is_orphaned:
        return status, ()
    if isinstance(event, TookOver):
        back = _enter(status, MountState.MOUNTED, now, pid=event.pid, last_error=None, mounted_at_s=now.monotonic_s)
        return back, ()
    failed = replace(status, last_error=event.failure)
    if event.can_take_over:
        return _count_orphaned(failed, policy, now)
    return _count_crash(failed, policy, now, (CleanUp(),))


def _replaced(status: MountStatus, event: Replaced, now: Now) -> Step:
    if status.state not in SERVING:
        return status, ()
    fresh = {"pid": event.pid, "engine": event.engine, "engine_why": event.why, "mounted_at_s": now.monotonic_s}
    return _enter(status, MountState.MOUNTED, now, last_error=None, retry_in_s=None, **fresh), ()


def _count_orphaned(status: MountStatus, policy: RestartPolicy, now: Now) -> Step:
    """A crash while callers wait: the mount stays, and is given up (with an error for them) only at the limit.

    Where the store could not be reached it is mounted anew as soon as that works.
    """
    status, delay_s = _counted(status, policy, now)
    if delay_s is None and status.last_error is not None and status.last_error.code in policy.retryable:
        return _try_later(status, policy.delay_s(policy.crash_limit, now.luck), now, (CleanUp(),))
    if delay_s is None:
        return _enter(status, MountState.FAILED, now), (CleanUp(),)
    orphaned = _enter(status, MountState.DEGRADED, now, retry_in_s=delay_s or None)
    return orphaned, (RetryAfter(delay_s),) if delay_s else (TakeOver(),)


def _count_crash(status: MountStatus, policy: RestartPolicy, now: Now, actions: tuple[Action, ...]) -> Step:
    status, delay_s = _counted(status, policy, now)
    if delay_s is None:
        return _enter(status, MountState.FAILED, now), actions
    return _try_later(status, delay_s, now, actions)


def _counted(status: MountStatus, policy: RestartPolicy, now: Now) -> tuple[MountStatus, float | None]:
    """Count one crash; return the pause before the next try, None if there have been too many."""
    recent = tuple(t for t in status.crash_times_s if now.monotonic_s - t < policy.crash_window_s)
    status = replace(status, crash_times_s=(*recent, now.monotonic_s))
    crashes = len(status.crash_times_s)
    if crashes > policy.crash_limit:
        return status, None
    return status, 0.0 if crashes == 1 else policy.delay_s(crashes - 1, now.luck)


def _try_later(status: MountStatus, delay_s: float, now: Now, actions: tuple[Action, ...]) -> Step:
    waiting = _enter(status, MountState.PENDING, now, retry_in_s=delay_s)
    return waiting, (*actions, RetryAfter(delay_s))


def _stop_ended(status: MountStatus, event: Stopped | StopFailed, now: Now) -> Step:
    if status.state is not MountState.UNMOUNTING:
        return status, ()
    if isinstance(event, StopFailed):
        state = MountState.FAILED if status.pid is None else MountState.MOUNTED
        return _enter(status, state, now, wanted=True, last_error=event.failure), ()
    nothing = {"pid": None, "mount_made_target": False, "mounted_at_s": None, "conditions": ()}
    gone = _enter(status, MountState.UNMOUNTED, now, **nothing)
    return _afresh(gone, now) if gone.wanted else (replace(gone, last_error=None), ())


def _health(status: MountStatus, event: HealthLost | HealthBack | Observed, now: Now) -> Step:
    if isinstance(event, Observed):
        return _observed(status, event.found, now)
    if status.is_orphaned:
        return status, ()
    if isinstance(event, HealthLost) and status.state in SERVING:
        return _enter(status, MountState.DEGRADED, now, last_error=event.failure), ()
    if isinstance(event, HealthBack) and status.state is MountState.DEGRADED:
        return _enter(status, MountState.MOUNTED, now, last_error=None), ()
    return status, ()


def _observed(status: MountStatus, found: tuple[Condition, ...], now: Now) -> Step:
    if status.state in (MountState.UNMOUNTED, MountState.UNMOUNTING):
        return status, ()
    seen = replace(status, conditions=merge(status.conditions, found, now.wall_s))
    bad = worst(seen.conditions)
    if bad is None or not bad.degrades:
        return _health(seen, HealthBack(), now)
    hint = f"docs/operations.md says what to do about {bad.reason}; look again: amlmount check {status.name}"
    code = {"StoreReachable": "network", "StoreAuthorized": "access_denied"}.get(bad.type, "failed")
    failure = Failure(code, f"cannot rely on '{status.name}': {bad.message}", hint, {"reason": bad.reason})
    return _health(seen, HealthLost(failure), now)
