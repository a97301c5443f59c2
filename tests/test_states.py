"""The transition function, exhaustively: every state meets every event, and TABLE says what must come of it."""

import itertools
import json
from dataclasses import replace

import pytest

from amlmount import states
from amlmount.states import (
    CancelRetry,
    CancelStart,
    CleanUp,
    Condition,
    Event,
    Exited,
    Failure,
    HealthBack,
    HealthLost,
    MountState,
    MountStatus,
    Now,
    Observed,
    Replaced,
    RestartPolicy,
    RetryAfter,
    RetryDue,
    Start,
    StartBegun,
    Started,
    StartFailed,
    Stop,
    StopFailed,
    Stopped,
    TakeOver,
    TakeOverFailed,
    TookOver,
    Unwanted,
    Wanted,
    transition,
)

NOW = Now(wall_s=1000.0, monotonic_s=50.0)
POLICY = RestartPolicy()
BOOM = Failure("failed", "cannot serve: killed by SIGKILL")
U, P, M, UP, D, DOWN, F = MountState
EVENTS: dict[str, Event] = {
    "wanted": Wanted(),
    "unwanted": Unwanted(),
    "lazy": Unwanted(lazy=True),
    "begun": StartBegun("python", "blobfuse2 not installed"),
    "started": Started(77, made_target=True),
    "start_failed": StartFailed(BOOM),
    "start_failed_network": StartFailed(Failure("network", "cannot reach the store")),
    "exited": Exited(BOOM),
    "orphaned": Exited(BOOM, can_take_over=True),
    "took_over": TookOver(78),
    "take_over_failed": TakeOverFailed(BOOM, can_take_over=True),
    "take_over_failed_for_good": TakeOverFailed(BOOM, can_take_over=False),
    "stopped": Stopped(),
    "stop_failed": StopFailed(Failure("busy", "cannot unmount")),
    "retry_due": RetryDue(),
    "health_lost": HealthLost(BOOM),
    "health_back": HealthBack(),
    "replaced": Replaced(79, "python", "a new definition"),
    "observed_well": Observed(()),
    "observed_bad": Observed((Condition("StoreReachable", "False", "StoreSilent", "no answer"),)),
}
GIVE_UP = (CancelRetry, CancelStart, Stop)
# What changes; every pair of state and event that is not here must leave the status as it is and ask for nothing.
TABLE = {
    (U, "wanted"): (P, (Start,)),
    (F, "wanted"): (P, (Start,)),
    (P, "unwanted"): (DOWN, GIVE_UP),
    (P, "lazy"): (DOWN, GIVE_UP),
    (M, "unwanted"): (DOWN, GIVE_UP),
    (M, "lazy"): (DOWN, GIVE_UP),
    (F, "unwanted"): (DOWN, GIVE_UP),
    (F, "lazy"): (DOWN, GIVE_UP),
    (UP, "unwanted"): (DOWN, (Stop,)),
    (UP, "lazy"): (DOWN, (Stop,)),
    (D, "unwanted"): (DOWN, (Stop,)),
    (D, "lazy"): (DOWN, (Stop,)),
    (P, "begun"): (M, ()),
    (M, "started"): (UP, ()),
    (P, "start_failed"): (F, ()),
    (M, "start_failed"): (F, ()),
    (P, "start_failed_network"): (P, (RetryAfter,)),
    (M, "start_failed_network"): (P, (RetryAfter,)),
    (UP, "exited"): (P, (CleanUp, RetryAfter)),
    (D, "exited"): (P, (CleanUp, RetryAfter)),
    (UP, "orphaned"): (D, (TakeOver,)),
    (D, "orphaned"): (D, (TakeOver,)),
    (DOWN, "stopped"): (U, ()),
    (DOWN, "stop_failed"): (UP, ()),
    (UP, "health_lost"): (D, ()),
    (D, "health_lost"): (D, ()),
    (D, "health_back"): (UP, ()),
    (UP, "replaced"): (UP, ()),
    (D, "replaced"): (UP, ()),
    (D, "observed_well"): (UP, ()),
    (UP, "observed_bad"): (D, ()),
    (D, "observed_bad"): (D, ()),
}


# The same for one that is orphaned: degraded, without a process.
ORPHAN = {
    "unwanted": (DOWN, GIVE_UP),
    "lazy": (DOWN, GIVE_UP),
    "took_over": (UP, ()),
    "replaced": (UP, ()),
    "take_over_failed": (D, (TakeOver,)),
    "take_over_failed_for_good": (P, (CleanUp, RetryAfter)),
}


def status_in(state: MountState) -> MountStatus:
    base = MountStatus("mnist", "/mnt/mnist", "labels", True, "standard", state=state, since=1.0)
    match state:
        case MountState.UNMOUNTED:
            return base
        case MountState.MOUNTED | MountState.DEGRADED:
            return replace(base, pid=42, wanted=True, mounted_at_s=49.0)
        case MountState.UNMOUNTING:
            return replace(base, pid=42)
    return replace(base, wanted=True)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(MountState, EVENTS)))
def test_every_state_meets_every_event(state: MountState, event: str) -> None:
    before = status_in(state)
    after, actions = transition(before, EVENTS[event], POLICY, NOW)
    expected_state, expected_actions = TABLE.get((state, event), (state, ()))
    assert (after.state, tuple(type(a) for a in actions)) == (expected_state, expected_actions)
    assert after.since == (NOW.wall_s if after.state is not before.state else before.since)
    if (state, event) not in TABLE and event not in ("wanted", "unwanted", "lazy"):
        assert replace(after, conditions=()) == before


@pytest.mark.parametrize("event", EVENTS)
def test_an_orphan_meets_every_event(event: str) -> None:
    before = replace(status_in(D), pid=None, mounted_at_s=None)
    after, actions = transition(before, EVENTS[event], POLICY, NOW)
    expected_state, expected_actions = ORPHAN.get(event, (D, ()))
    assert (after.state, tuple(type(a) for a in actions)) == (expected_state, expected_actions)
    if event not in ORPHAN and event != "wanted":
        assert replace(after, conditions=()) == before


def test_takeovers_are_paused_between_and_given_up_at_the_limit() -> None:
    """Callers wait until then; CleanUp ends the connection, which gives them an error."""
    status, actions = transition(status_in(UP), EVENTS["orphaned"], POLICY, NOW)
    pauses = []
    while status.state is D:
        if status.retry_in_s is not None:
            pauses.append(status.retry_in_s)
            assert actions == (RetryAfter(status.retry_in_s),)
            status, actions = transition(status, RetryDue(), POLICY, NOW)
        assert actions == (TakeOver(),)
        status, actions = transition(status, EVENTS["take_over_failed"], POLICY, NOW)
    assert pauses == [POLICY.delay_s(n, NOW.luck) for n in range(1, POLICY.crash_limit)]
    assert (status.state, actions, status.last_error) == (F, (CleanUp(),), BOOM)


def test_a_minute_of_service_forgets_the_past() -> None:
    status = status_in(UP)
    for turn in range(20):
        later = replace(NOW, monotonic_s=100.0 * (turn + 1))
        status, actions = transition(status, EVENTS["orphaned"], POLICY, later)
        assert actions == (TakeOver(),)
        status, _ = transition(status, TookOver(100 + turn), POLICY, later)
    assert (status.state, status.restarts) == (UP, 20)


@pytest.mark.parametrize("state", list(MountState))
def test_wanted_says_what_was_asked_last(state: MountState) -> None:
    assert transition(status_in(state), Wanted(), POLICY, NOW)[0].wanted
    assert not transition(status_in(state), Unwanted(), POLICY, NOW)[0].wanted


def test_every_event_and_action_is_covered() -> None:
    assert {type(e) for e in EVENTS.values()} == set(states.Event.__args__)
    seen = {kind for _, kinds in TABLE.values() for kind in kinds}
    assert seen == set(states.Action.__args__)


def test_wanted_while_unmounting_starts_again_afterwards() -> None:
    leaving, _ = transition(status_in(UP), Unwanted(), POLICY, NOW)
    leaving, actions = transition(leaving, Wanted(), POLICY, NOW)
    assert actions == ()
    again, actions = transition(leaving, Stopped(), POLICY, NOW)
    assert (again.state, actions, again.wanted) == (P, (Start(),), True)


def test_up_does_not_wait_for_the_pause() -> None:
    waiting, _ = transition(status_in(M), StartFailed(Failure("network", "cannot")), POLICY, NOW)
    assert waiting.retry_in_s == pytest.approx(0.5)
    now, actions = transition(waiting, Wanted(), POLICY, NOW)
    assert actions == (CancelRetry(), Start())
    assert transition(now, RetryDue(), POLICY, NOW) == (now, ()), "a timer that comes too late starts nothing"


def test_a_busy_down_leaves_it_wanted_and_says_why() -> None:
    leaving, _ = transition(status_in(UP), Unwanted(), POLICY, NOW)
    after, _ = transition(leaving, StopFailed(Failure("busy", "cannot")), POLICY, NOW)
    assert after.wanted and after.pid == 42 and after.last_error == Failure("busy", "cannot")


def crash(status: MountStatus, at_s: float, luck: float = 0.5) -> tuple[MountStatus, tuple[states.Action, ...]]:
    return transition(status, Exited(BOOM), POLICY, Now(at_s, at_s, luck))


def mounted_again(status: MountStatus, at_s: float) -> MountStatus:
    now = Now(at_s, at_s)
    for event in (RetryDue(), StartBegun("python", "asked for"), Started(99)):
        status, _ = transition(status, event, POLICY, now)
    assert status.state is UP
    return status


def delays_of_crashes(gap_s: float, count: int) -> tuple[list[float], MountStatus]:
    status, at_s, delays = status_in(UP), 100.0, []
    for _ in range(count):
        status, actions = crash(status, at_s)
        delays += [a.delay_s for a in actions if isinstance(a, RetryAfter)]
        if status.state is F:
            break
        at_s += gap_s
        status = mounted_again(replace(status), at_s - gap_s)
    return delays, status


def test_first_crash_is_mended_at_once_and_the_budget_ends_in_failed() -> None:
    delays, status = delays_of_crashes(gap_s=1.0, count=10)
    assert delays == pytest.approx([0.0, 0.5, 1.0, 2.0, 4.0])
    assert status.state is F and status.restarts == 6 and status.last_error == BOOM


def test_service_for_long_enough_forgets_the_crashes() -> None:
    delays, status = delays_of_crashes(gap_s=POLICY.stable_s, count=10)
    assert delays == [0.0] * 10
    assert status.state is UP and status.restarts == 10


def test_a_store_that_is_gone_after_a_crash_uses_up_the_budget_not_the_first_try() -> None:
    status, _ = crash(status_in(UP), 100.0)
    tries = 0
    while status.state is not F:
        tries += 1
        status, _ = transition(status, RetryDue(), POLICY, Now(101, 101))
        status, _ = transition(status, StartFailed(Failure("not_found", "cannot find")), POLICY, Now(101, 101))
    assert tries == POLICY.crash_limit


def test_jitter_stays_in_its_bounds_and_delays_in_theirs() -> None:
    assert POLICY.delay_s(1, 0.0) == pytest.approx(0.4)
    assert POLICY.delay_s(1, 0.999) == pytest.approx(0.6, abs=0.01)
    assert POLICY.delay_s(10_000, 0.5) == POLICY.max_delay_s


def test_status_survives_the_wire() -> None:
    status = replace(status_in(UP), last_error=BOOM, engine="python", engine_why="asked for", since=1000.25)
    data = json.loads(json.dumps(status.to_json()))
    assert data["since"] == "1970-01-01T00:16:40.250Z"
    assert data["state"] == "mounted" and data["schema_version"] == states.SCHEMA_VERSION
    assert MountStatus.from_json(data | {"from_the_future": 1}) == replace(status, mounted_at_s=None)
