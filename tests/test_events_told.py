"""What a mount goes through is told as events: every kind there is, brought about with an engine of memory.

Kinds that need a real process are brought about elsewhere, which is checked here.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import test_event_commands
import test_events_upload
from amlmount.api.following import MAX_BEHIND, Follower
from amlmount.errors import AccessDeniedError, BusyError, NetworkError
from amlmount.events import KINDS, Event, EventHub, kinds
from amlmount.mounts import MountEntry
from amlmount.states import Condition, Failure, HealthBack, HealthLost, Observed, RestartPolicy
from amlmount.supervisor import AccountSupervisor, RecordStore, Supervisor, wait_for
from fake_engine import FakeWorld, spec_named

Scenario = Callable[["ToldWorld"], Coroutine[Any, Any, None]]
SCENARIOS: dict[str, Scenario] = {}
ELSEWHERE: dict[str, Callable[..., None]] = {
    "daemon-started": test_event_commands.test_events_of_a_whole_life,
    "daemon-ending": test_event_commands.test_events_of_a_whole_life,
    "daemon-leaving": test_event_commands.test_following_goes_on_with_the_next_daemon,
    "upload-failed": test_events_upload.test_what_does_not_get_into_the_store_is_told_and_so_is_its_end,
    "upload-recovered": test_events_upload.test_what_does_not_get_into_the_store_is_told_and_so_is_its_end,
    "writes-set-aside": test_events_upload.test_what_was_put_under_another_name_is_told,
}


class ToldWorld(FakeWorld):
    """A world of fakes, and what was told in it of the mount `a`."""

    heard: list[Event]

    def listen(self) -> None:
        self.heard = []
        self.supervisor.events.observe(self.heard.append)

    def told(self) -> list[str]:
        return [event.kind for event in self.heard if event.mount == "a"]

    async def up(self) -> None:
        await self.supervisor.up(["a"], wait=True, timeout_s=5)

    async def until_told(self, kind: str) -> Event:
        async with asyncio.timeout(5):
            while kind not in self.told():
                await asyncio.sleep(0.001)
        return next(event for event in self.heard if event.kind == kind)


def brings_about(*names: str) -> Callable[[Scenario], Scenario]:
    def note(scenario: Scenario) -> Scenario:
        SCENARIOS.update(dict.fromkeys(names, scenario))
        return scenario

    return note


def play(scenario: Scenario, folder: Path) -> list[str]:
    """Return the kinds that were told of `a` or of the daemon, in order."""
    found: list[str] = []

    async def whole() -> None:
        async with asyncio.timeout(10):
            world = ToldWorld(RecordStore(str(folder / "mounts")))
            world.listen()
            await scenario(world)
            await world.supervisor.close(timeout_s=2)
            found.extend(event.kind for event in world.heard)

    asyncio.run(whole())
    return found


@brings_about("requested", "mounting", "mounted", "unmounting", "unmounted")
async def comes_and_goes(world: ToldWorld) -> None:
    await world.up()
    await world.supervisor.down(["a"], lazy=False, timeout_s=5)
    assert world.told() == ["requested", "mounting", "mounted", "unmounting", "unmounted"]
    mounted = next(event for event in world.heard if event.kind == "mounted")
    assert mounted.message == "at /fake/a, by python, process 1000"
    assert mounted.details == {"state": "mounted", "pid": 1000, "engine": "python"}


@brings_about("start-failed")
async def fails_for_a_moment(world: ToldWorld) -> None:
    world.engine.start_errors.append(NetworkError("cannot reach the store"))
    await world.up()
    assert world.told() == ["requested", "mounting", "start-failed", "mounting", "mounted"]
    assert "cannot reach the store; next try in 0.0 s" in world.heard[2].message


@brings_about("gave-up")
async def fails_for_good(world: ToldWorld) -> None:
    world.engine.start_errors.append(AccessDeniedError("cannot read", hint="ask its owner"))
    await world.up()
    assert world.told() == ["requested", "mounting", "gave-up"]
    assert world.heard[2].details == {"state": "failed", "code": "access_denied", "hint": "ask its owner"}
    await world.supervisor.down(None, lazy=False, timeout_s=5)


@brings_about("crashed")
async def crashes(world: ToldWorld) -> None:
    await world.up()
    world.engine.kill("a")
    world.engine.alive.pop("a")
    crash = await world.until_told("crashed")
    assert crash.message.startswith("cannot serve 'a': its python engine (pid 1000) was killed by SIGKILL")
    await world.until(a="mounted")
    assert world.told() == ["requested", "mounting", "mounted", "crashed", "mounting", "mounted"]


@brings_about("taken-over", "takeover-failed")
async def is_taken_over_the_second_time(world: ToldWorld) -> None:
    world.engine.takes_over = True
    world.engine.take_over_errors.append(NetworkError("cannot reach the store"))
    await world.up()
    world.engine.kill("a")
    await world.until_told("taken-over")
    assert world.told()[3:] == ["crashed", "takeover-failed", "taken-over"]


@brings_about("hung")
async def hangs(world: ToldWorld) -> None:
    world.supervisor = Supervisor(_patient(world, hung_after_s=0.03), [spec_named("a")])
    world.listen()
    world.engine.takes_over = True
    await world.up()
    world.engine.hung.add("a")
    await world.until_told("taken-over")
    assert world.told()[3:] == ["hung", "taken-over"]


@brings_about("unmounted-elsewhere")
async def is_unmounted_by_somebody(world: ToldWorld) -> None:
    await world.up()
    await asyncio.sleep(0)
    nothing: list[MountEntry] = []
    world.supervisor.look_at(nothing)
    await world.until(a="mounted")
    assert world.told()[3:] == ["unmounted-elsewhere", "mounting", "mounted"]


@brings_about("replaced")
async def is_restarted(world: ToldWorld) -> None:
    world.engine.beneath_refused = None
    await world.up()
    await world.supervisor.restart(["a"], timeout_s=5)
    assert world.told()[3:] == ["replaced"]


@brings_about("unmount-failed")
async def is_in_use(world: ToldWorld) -> None:
    await world.up()
    world.engine.stop_errors.append(BusyError("cannot unmount '/fake/a': in use by cat"))
    await world.supervisor.down(["a"], lazy=False, timeout_s=5)
    assert world.told()[3:] == ["unmounting", "unmount-failed"]


@brings_about("adopted")
async def is_adopted(world: ToldWorld) -> None:
    world.engine.takes_over = True
    await world.up()
    world.host.mounted.add("/fake/a")
    world.engine.alive.pop("a")
    world.supervisor = Supervisor(world.around(), [spec_named("a")])
    world.listen()
    world.supervisor.recover()
    await world.until(a="mounted")
    assert world.told() == ["requested", "mounting", "adopted"]
    world.host.mounted.clear()


@brings_about("degraded", "recovered")
async def is_not_well(world: ToldWorld) -> None:
    await world.up()
    [owner] = world.supervisor._pick(["a"])
    owner.tell(HealthLost(Failure("failed", "cannot rely on it")))
    owner.tell(HealthLost(Failure("failed", "cannot rely on it, still")))
    owner.tell(HealthBack())
    assert world.told()[3:] == ["degraded", "recovered"]


@brings_about("condition-lost", "condition-back")
async def has_conditions(world: ToldWorld) -> None:
    await world.up()
    [owner] = world.supervisor._pick(["a"])
    for truth in ("True", "False", "False", "True"):
        found = Condition("StoreReachable", truth, "StoreSilent" if truth == "False" else "Answers", "it is so")
        owner.tell(Observed((found,)))
    assert world.told()[3:] == ["condition-lost", "degraded", "condition-back", "recovered"]
    lost = next(event for event in world.heard if event.kind == "condition-lost")
    assert lost.details == {"condition": "StoreReachable", "status": "False", "reason": "StoreSilent"}
    assert lost.message == "StoreReachable is False (StoreSilent): it is so"


@brings_about("refreshed", "refresh-failed")
async def is_refreshed(world: ToldWorld) -> None:
    answers: list[Any] = [{"added": 0, "removed": 0, "changed": 0}, {"added": 2, "removed": 0, "changed": 1}]
    answers.append(NetworkError("cannot list"))

    async def ask(running: Any, what: str, how: Any, *, timeout_s: float) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    world.engine.ask = ask  # type: ignore[attr-defined]
    await world.up()
    for _ in range(2):
        await world.supervisor.ask("a", "refresh", {}, timeout_s=1)
    with pytest.raises(NetworkError):
        await world.supervisor.ask("a", "refresh", {}, timeout_s=1)
    assert [(event.kind, event.message) for event in world.heard[3:]] == [
        ("refreshed", "2 added, 1 changed"),
        ("refresh-failed", "cannot list"),
    ]


@brings_about("reloaded", "reload-failed")
async def is_reloaded(world: ToldWorld) -> None:
    await world.up()
    await world.supervisor.reload(timeout_s=5)
    world.supervisor.update([spec_named("a", "/fake/elsewhere"), spec_named("b")])
    world.engine.stop_errors.append(BusyError("cannot unmount '/fake/a': in use by cat"))
    await world.supervisor.reload(timeout_s=5)
    told = [(event.kind, event.mount, event.message) for event in world.heard if "reload" in event.kind]
    assert told == [
        ("reloaded", None, "nothing had changed"),
        ("reloaded", None, "done: nothing"),
        ("reload-failed", "a", "cannot unmount 'a' at '/fake/a': in use by cat"),
    ]


@brings_about("containers-changed", "containers-unknown")
async def is_an_account(world: ToldWorld) -> None:
    containers: list[Any] = [["logs"], ["logs", "data"], NetworkError("cannot list")]
    spec = spec_named("a")
    filters = {"allow": ("*",), "deny": (), "watch_s": 0.01}
    spec = type(spec).model_validate(spec.model_dump() | {"containers": filters, "sources": (SOURCE,)})

    def listed(_: object) -> list[str]:
        answer = containers.pop(0) if containers else NetworkError("cannot list")
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    world.supervisor = AccountSupervisor(world.around(), [spec], list_containers=listed)
    world.listen()
    await world.up()
    unknown = await world.until_told("containers-unknown")
    assert "what is mounted stays" in unknown.message
    changed = next(event for event in world.heard if event.kind == "containers-changed")
    assert (changed.mount, changed.message) == ("a", "new: a/data")


SOURCE = {
    "store_name": "s",
    "store": {"type": "azure_blob", "account_name": "acct", "credentials": {"anonymous": {}}},
    "child": None,
    "path": "",
    "glob": None,
}


@pytest.mark.parametrize("kind", list(SCENARIOS))
def test_it_is_told(kind: str, tmp_path: Path) -> None:
    assert kind in play(SCENARIOS[kind], tmp_path)


def test_every_kind_is_brought_about_by_a_test() -> None:
    assert set(SCENARIOS) | set(ELSEWHERE) == set(KINDS)
    assert not [kind for kind, test in ELSEWHERE.items() if f'"{kind}"' not in inspect.getsource(test)]


def test_waiting_goes_by_what_happens(tmp_path: Path) -> None:
    """Each goal, already reached, reached later, never reached."""

    async def scenario(world: ToldWorld) -> None:
        waits = [
            asyncio.create_task(wait_for(world.supervisor, ["a"], goal, timeout_s=5)) for goal in ("mounted", "healthy")
        ]
        assert (await wait_for(world.supervisor, ["a", "nobody"], "gone", timeout_s=0)).errors == {}
        late = await wait_for(world.supervisor, ["a"], "mounted", timeout_s=0.01)
        assert late.errors["a"].code == "timeout" and "it is unmounted" in late.errors["a"].message
        await world.up()
        assert [(await task).errors for task in waits] == [{}, {}]
        gone = asyncio.create_task(wait_for(world.supervisor, ["a"], "gone", timeout_s=5))
        await world.supervisor.down(None, lazy=False, timeout_s=5)
        assert (await gone).errors == {}
        world.engine.start_errors.append(AccessDeniedError("cannot read"))
        failing = asyncio.create_task(wait_for(world.supervisor, ["a"], "mounted", timeout_s=5))
        await world.up()
        assert (await failing).errors["a"].code == "access_denied"
        await world.supervisor.down(None, lazy=False, timeout_s=5)

    play(scenario, tmp_path)


def test_a_mount_that_is_not_well_is_mounted_and_not_healthy(tmp_path: Path) -> None:
    async def scenario(world: ToldWorld) -> None:
        await world.up()
        [owner] = world.supervisor._pick(["a"])
        owner.tell(Observed((Condition("CacheHasRoom", "False", "DiskFull", "no room"),)))
        assert (await wait_for(world.supervisor, ["a"], "mounted", timeout_s=0)).errors == {}
        healthy = asyncio.create_task(wait_for(world.supervisor, ["a"], "healthy", timeout_s=5))
        await asyncio.sleep(0.01)
        assert not healthy.done()
        owner.tell(Observed((Condition("CacheHasRoom", "True", "Room", "there is room"),)))
        assert (await healthy).errors == {}

    play(scenario, tmp_path)


def test_who_is_too_far_behind_is_let_go() -> None:
    async def scenario() -> None:
        hub = EventHub()
        follower = Follower(hub)
        for _ in range(MAX_BEHIND + 10):
            hub.tell(kinds.REFRESHED, "x")
        heard = await follower.next()
        assert len(heard) == MAX_BEHIND and await follower.next() == [], "it asks for the rest with a new request"
        follower.close_observing()

    asyncio.run(scenario())


def _patient(world: FakeWorld, *, hung_after_s: float) -> Any:
    from dataclasses import replace

    policy = RestartPolicy(first_delay_s=0.01, max_delay_s=0.02)
    return replace(world.around(), hung_after_s=hung_after_s, policy=policy, events=EventHub())
