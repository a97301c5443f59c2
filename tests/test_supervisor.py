"""The supervisor with an engine, a host and a kernel of memory: every way a mount can come, go, die and be left."""

import asyncio
import stat
from functools import partial
from pathlib import Path

import pytest

from amlmount.errors import AccessDeniedError, AmlmountError, BusyError, MountFailedError, NetworkError, NotFoundError
from amlmount.states import Condition, MountState, RestartPolicy
from amlmount.supervisor import MadeTarget, MountRecord, RecordStore, Supervisor
from amlmount.supervisor.records import current_boot_id
from fake_engine import FakeWorld, Play, play_out, spec_named


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return partial(play_out, tmp_path)


async def up(world: FakeWorld, *names: str, timeout_s: float = 5) -> dict[str, str]:
    outcome = await world.supervisor.up(list(names) or None, wait=True, timeout_s=timeout_s)
    return {name: failure.code for name, failure in outcome.errors.items()}


async def down(world: FakeWorld, *names: str, lazy: bool = False) -> dict[str, str]:
    outcome = await world.supervisor.down(list(names) or None, lazy=lazy, timeout_s=5)
    return {name: failure.code for name, failure in outcome.errors.items()}


def test_up_and_down_twice(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        assert await up(world) == {} and await up(world) == {}
        [a, _] = world.supervisor.status()
        assert (a.state, a.engine, a.engine_why) == (MountState.MOUNTED, "python", "blobfuse2 not installed")
        assert a.pid == world.engine.alive["a"].pid and a.mount_made_target and world.supervisor.needed
        assert await down(world) == {} and await down(world) == {}
        assert world.engine.log == ["start a", "start b", "stop a", "stop b"]
        assert not world.supervisor.needed

    play(scenario)


def test_only_what_was_named(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        await up(world, "b")
        assert world.states() == {"a": "unmounted", "b": "mounted"}
        with pytest.raises(NotFoundError, match="cannot find a mount named 'bb'") as caught:
            await up(world, "a", "bb")
        assert caught.value.hint == "did you mean 'b'?"
        assert world.states()["a"] == "unmounted", "an unknown name stops the whole call before it begins"

    play(scenario)


def test_two_ups_at_once_start_each_mount_once(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        assert not any(await asyncio.gather(up(world), up(world), up(world, "a")))
        assert sorted(world.engine.log) == ["start a", "start b"]

    play(scenario)


def test_progress_tells_every_step(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        seen: list[str] = []
        await world.supervisor.up(["a"], wait=True, timeout_s=5, progress=lambda s: seen.append(f"{s.name} {s.state}"))
        assert seen == ["a pending", "a mounting", "a mounted"]

    play(scenario)


@pytest.mark.parametrize("error", [NotFoundError("cannot find it"), AccessDeniedError("cannot"), RuntimeError("bug")])
def test_a_failed_start_is_told_and_undone(play: Play, error: Exception) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.start_errors = [error]
        code = error.code if isinstance(error, AmlmountError) else "failed"
        assert await up(world, "a") == {"a": code}
        assert world.states()["a"] == "failed" and not world.host.present
        assert not world.supervisor.needed, "the caller knows: no daemon has to stay for it"
        assert await up(world, "a") == {}, "up tries again"

    play(scenario)


def test_a_refused_target_fails_before_the_engine_is_asked(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.host.refused["/fake/a"] = MountFailedError("cannot mount at '/fake/a': it is not empty")
        assert await up(world) == {"a": "mount_failed"}
        assert world.engine.log == ["start b"] and world.states()["b"] == "mounted"

    play(scenario)


def test_a_network_failure_is_tried_again_until_it_works(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.start_errors = [NetworkError("cannot reach")] * 3
        assert await up(world, "a") == {}
        assert world.engine.log.count("start a") == 4

    play(scenario)


def test_waiting_ends_at_the_timeout_and_the_mount_goes_on(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.gate.clear()
        assert await up(world, "a", timeout_s=0.05) == {"a": "timeout"}
        assert world.states()["a"] == "mounting" and world.supervisor.needed
        world.engine.gate.set()
        await world.until(a="mounted")

    play(scenario)


def test_no_wait_returns_at_once(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        outcome = await world.supervisor.up(["a"], wait=False, timeout_s=0)
        assert outcome.mounts[0].state is MountState.PENDING
        await world.until(a="mounted")

    play(scenario)


def test_a_walked_away_up_is_undone_but_what_is_done_stays(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        await up(world, "a")
        world.engine.gate.clear()
        call = asyncio.create_task(up(world))
        while "start b" not in world.engine.log:
            await asyncio.sleep(0.001)
        call.cancel()
        await world.until(a="mounted", b="unmounted")
        assert "undo b" in world.engine.log and world.host.present == {"/fake/a"}

    play(scenario)


def test_a_mount_that_somebody_else_waits_for_is_not_undone(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.gate.clear()
        first, second = asyncio.create_task(up(world, "a")), asyncio.create_task(up(world, "a"))
        await world.until(a="mounting")
        first.cancel()
        await asyncio.sleep(0.01)
        assert world.states()["a"] == "mounting"
        world.engine.gate.set()
        assert await second == {}

    play(scenario)


def test_cancelled_before_its_turn(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        call = asyncio.create_task(up(world, "a"))
        await asyncio.sleep(0)
        call.cancel()
        await world.until(a="unmounted")

    play(scenario)


def test_down_while_mounting_undoes_it_and_up_while_unmounting_brings_it_back(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.gate.clear()
        call = asyncio.create_task(up(world, "a"))
        await world.until(a="mounting")
        assert await down(world, "a") == {}
        assert await call == {"a": "failed"}
        world.engine.gate.set()
        await up(world, "a")
        world.engine.stop_gate.clear()
        going = asyncio.create_task(down(world, "a"))
        await world.until(a="unmounting")
        call = asyncio.create_task(up(world, "a"))
        await asyncio.sleep(0)
        world.engine.stop_gate.set()
        assert await call == {} and await going == {}, "it did go down, and then came up again"

    play(scenario)


def test_a_killed_engine_is_cleared_away_and_started_again(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        await up(world, "a")
        before = world.supervisor.status(["a"])[0]
        world.engine.kill("a")
        await asyncio.sleep(0)
        await world.until(a="mounted")
        after = world.supervisor.status(["a"])[0]
        assert after.pid != before.pid and after.restarts == 1 and after.last_error is None
        assert after.mount_made_target and world.engine.log == ["start a", "stop a lazily", "start a"]

    play(scenario)


def test_too_many_crashes_end_in_failed_with_the_evidence(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        await up(world, "a")
        for _ in range(RestartPolicy().crash_limit + 1):
            await world.until(a="mounted")
            world.engine.kill("a")
            await asyncio.sleep(0)
        await world.until(a="failed")
        status = world.supervisor.status(["a"])[0]
        assert status.last_error is not None and "killed by SIGKILL" in status.last_error.message
        assert world.supervisor.needed, "nobody has been told: ps must still be able to show it"
        assert await up(world, "a") == {}

    play(scenario)


def test_busy_down_keeps_the_mount_and_names_the_holders(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        await up(world)
        world.engine.busy = True
        outcome = await world.supervisor.down(["a"], lazy=False, timeout_s=5)
        assert outcome.errors["a"].details["holders"] == [{"pid": 7, "command": "cat", "what": "open file /x"}]
        assert world.states()["a"] == "mounted" and "/fake/a" in world.host.present
        assert await down(world, "a", lazy=True) == {}

    play(scenario)


def test_an_engine_that_dies_during_a_failed_stop_is_noticed(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        await up(world, "a")
        world.engine.stop_errors = [MountFailedError("cannot unmount")]
        world.engine.stop_gate.clear()
        going = asyncio.create_task(down(world, "a"))
        await world.until(a="unmounting")
        world.engine.kill("a")
        world.engine.stop_gate.set()
        await going
        await world.until(a="mounted")
        assert world.supervisor.status(["a"])[0].restarts == 1

    play(scenario)


def test_starts_at_once_are_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = FakeWorld(RecordStore(str(tmp_path / "m")), names=tuple(f"m{i:03}" for i in range(50)))
        assert await up(world) == {}
        assert 2 <= world.engine.most_starting <= 8
        await world.supervisor.close(timeout_s=5)

    asyncio.run(scenario())


def test_close_lets_go_of_busy_mounts(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        await up(world)
        world.engine.busy = True

    play(scenario)


def test_records_are_private_and_complete(play: Play, tmp_path: Path) -> None:
    async def scenario(world: FakeWorld) -> None:
        await up(world, "a")
        [record] = world.records.load()
        running = world.engine.alive["a"]
        assert (record.pid, record.mount_id, record.made) == (running.pid, 1, MadeTarget(("/fake/a",), 1))
        [file] = (tmp_path / "mounts").iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    play(scenario)


def left(name: str) -> MountRecord:
    made = MadeTarget((f"/fake/{name}",), 1)
    return MountRecord(name, f"/fake/{name}", "python", made, current_boot_id(), 4, 5, 6)


def test_leftovers_of_a_killed_daemon_are_ended_and_mounted_again(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        for record in (left("a"), left("gone")):
            world.records.save(record)
            world.host.present.add(record.target)
        world.supervisor.recover()
        assert world.supervisor.needed and world.states()["a"] == "pending"
        await world.until(a="mounted")
        while len(world.host.ended) < 2:
            await asyncio.sleep(0.001)
        assert {record.name for record in world.host.ended} == {"a", "gone"}
        await asyncio.sleep(0.02)
        assert world.states()["b"] == "unmounted"
        assert world.supervisor.status(["a"])[0].mount_made_target, "what the dead daemon made, we take away"
        assert world.host.present == {"/fake/a"}

    play(scenario)


def test_down_while_a_leftover_is_being_cleared_away_takes_its_directory_too(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.records.save(left("a"))
        world.host.present.add("/fake/a")
        world.host.mounted.add("/fake/a")
        world.host.may_end.clear()
        world.supervisor.recover()
        while not world.host.ended:
            await asyncio.sleep(0.001)
        going = asyncio.create_task(down(world))
        await asyncio.sleep(0.02)
        world.host.may_end.set()
        assert await going == {}
        assert world.host.present == set()

    play(scenario)


def test_a_leftover_of_a_mount_that_has_moved(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.records.save(left("a"))
        world.host.present.add("/fake/a")
        world.supervisor.update([spec_named("a", "/fake/new")])
        world.supervisor.recover()
        assert await up(world, "a") == {}
        assert world.host.present == {"/fake/new"}

    play(scenario)


def test_a_plan_does_nothing(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        await up(world, "a")
        world.host.refused["/fake/b"] = MountFailedError("cannot mount at '/fake/b': it is not empty")
        [a, b] = await world.supervisor.plan(None)
        assert (a.action, a.engine, b.action) == ("keep", "python", "fail")
        assert b.error is not None and b.error.code == "mount_failed"
        del world.host.refused["/fake/b"]
        [b] = await world.supervisor.plan(["b"])
        assert (b.action, b.engine_why, b.makes) == ("mount", "blobfuse2 not installed", ("/fake/b",))
        assert world.states()["b"] == "unmounted" and world.host.present == {"/fake/a"}

    play(scenario)


def test_garbage_among_the_records_is_removed(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    for name, text in (("x.json", "{"), ("y.json", "[]"), ("z.json", '{"name": "z"}')):
        (tmp_path / name).write_text(text)
    assert store.load() == [] and list(tmp_path.iterdir()) == []


def test_a_changed_configuration_waits_for_the_next_up(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        await up(world, "a")
        world.supervisor.update([spec_named("a", "/fake/elsewhere"), spec_named("c")])
        assert [s.name for s in world.supervisor.status()] == ["a", "c"], "b was idle and is forgotten"
        assert world.supervisor.status(["a"])[0].target == "/fake/a"
        await down(world, "a")
        assert world.supervisor.status(["a"])[0].target == "/fake/elsewhere"
        await up(world)
        world.supervisor.update([])
        assert world.states() == {"a": "mounted", "c": "mounted"}, "what is mounted is not forgotten"
        await down(world)
        assert world.supervisor.status() == []

    play(scenario)


def test_an_empty_supervisor_has_nothing_to_do(tmp_path: Path) -> None:
    async def scenario() -> None:
        supervisor = Supervisor(FakeWorld(RecordStore(str(tmp_path / "m")), names=()).around())
        outcome = await supervisor.up(None, wait=True, timeout_s=1)
        assert outcome.mounts == [] and outcome.errors == {} and not supervisor.needed

    asyncio.run(scenario())


def test_a_silent_mount_that_nobody_holds_is_let_go_of(play: Play) -> None:
    """A mount that hangs is kept busy by the very question whether it answers."""
    busy = BusyError("cannot unmount '/fake/a': in use, by no process", details={"holders": []})

    async def scenario(world: FakeWorld) -> None:
        await up(world, "a")
        world.engine.stop_errors = [busy]
        assert await down(world, "a") == {"a": "busy"}, "it answers: somebody else is there"
        world.supervisor.observe("a", [Condition("Answering", "False", "Silent", "no answer")])
        world.engine.stop_errors = [busy]
        assert await down(world, "a") == {} and world.engine.log[-2:] == ["stop a", "stop a lazily"]

    play(scenario)
