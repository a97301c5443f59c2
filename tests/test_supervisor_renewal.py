"""The supervisor when what is mounted is to be changed, with an engine of memory."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from amlmount.config.spec import MountSpec
from amlmount.errors import NetworkError, NotFoundError
from amlmount.supervisor.changes import difference, needs_new_mount
from fake_engine import FakeWorld, Play, play_out, spec_named


async def with_both_up(world: FakeWorld) -> None:
    world.engine.beneath_refused = None
    await world.supervisor.up(None, wait=True, timeout_s=5)
    world.engine.log.clear()


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return partial(play_out, tmp_path, begin=with_both_up)


def changed(name: str, **fields: Any) -> MountSpec:
    return spec_named(name).model_copy(update=fields or {"description": "another"})


async def reload(world: FakeWorld, *specs: MountSpec) -> dict[str, str]:
    world.supervisor.update(specs)
    outcome = await world.supervisor.reload(timeout_s=5)
    return {name: failure.message for name, failure in outcome.errors.items()}


def test_a_changed_mount_is_replaced_without_a_gap(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        old = world.engine.alive["a"]
        seen: list[str] = []
        world.supervisor.listen(lambda status: seen.append(f"{status.name} {status.state}"))
        assert await reload(world, changed("a"), spec_named("b")) == {}
        assert world.engine.log == ["start a beneath", "stop a lazily"] and set(seen) == {"a mounted"}
        assert old.exited.done() and world.supervisor.status(["a"])[0].source == "another"
        [record, _] = world.records.load()
        assert record.pid == world.engine.alive["a"].pid and record.next is None
        assert await world.supervisor.changes() == []

    play(scenario)


def test_both_are_on_record_meanwhile(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.stop_gate.clear()
        going = asyncio.create_task(reload(world, changed("a"), spec_named("b")))
        while "stop a lazily" not in world.engine.log:
            await asyncio.sleep(0.001)
        record = world.records.load()[0]
        assert record.next is not None and record.next.pid == world.engine.alive["a"].pid != record.pid
        world.engine.stop_gate.set()
        assert await going == {}

    play(scenario)


def test_a_definition_that_does_not_work_leaves_the_old_one(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        pid = world.engine.alive["a"].pid
        world.engine.start_errors = [NetworkError("cannot reach")]
        assert await reload(world, changed("a"), spec_named("b")) == {"a": "cannot restart 'a': cannot reach"}
        assert world.states()["a"] == "mounted" and world.engine.alive["a"].pid == pid
        assert world.records.load()[0].next is None
        assert [change.action for change in await world.supervisor.changes()] == ["replace"], "it can be tried again"
        assert (await world.supervisor.restart(["a"], timeout_s=5)).errors == {}

    play(scenario)


def test_where_it_cannot_be_slipped_beneath_there_is_a_gap(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.beneath_refused = "Linux is too old"
        world.supervisor.update([changed("a"), spec_named("b")])
        [change] = await world.supervisor.changes()
        assert (change.name, change.gap, change.fields) == ("a", "Linux is too old", ("description",))
        world.engine.busy = True
        outcome = await world.supervisor.reload(timeout_s=5)
        assert "in use by cat" in outcome.errors["a"].message and world.states()["a"] == "mounted"
        world.engine.busy = False
        assert (await world.supervisor.reload(timeout_s=5)).errors == {}
        assert world.engine.log[-2:] == ["stop a", "start a"] and world.supervisor.status(["a"])[0].source == "another"

    play(scenario)


def test_new_gone_and_changed_in_place(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        specs = [changed("a", cache_max_bytes=5, refresh_interval_s=9.0), spec_named("c")]
        world.supervisor.update(specs)
        assert [(c.name, c.action) for c in await world.supervisor.changes()] == [("b", "remove"), ("c", "add")]
        assert await reload(world, *specs) == {}
        assert world.states() == {"a": "mounted", "c": "mounted"}
        assert world.engine.log == ["start c", "stop b lazily"] or world.engine.log == ["stop b lazily", "start c"]
        assert world.supervisor.mounted()[0].refresh_interval_s == 9.0

    play(scenario)


def test_what_was_taken_down_is_not_brought_up_by_a_reload(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        await world.supervisor.down(["a"], lazy=False, timeout_s=5)
        assert await reload(world, changed("a"), spec_named("b")) == {}
        assert world.states() == {"a": "unmounted", "b": "mounted"}

    play(scenario)


def test_the_old_one_dies_while_it_is_replaced(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.takes_over = True
        world.engine.gate.clear()
        going = asyncio.create_task(reload(world, changed("a"), spec_named("b")))
        while "start a beneath" not in world.engine.log:
            await asyncio.sleep(0.001)
        world.engine.kill("a")
        await asyncio.sleep(0.01)
        world.engine.gate.set()
        assert await going == {}
        await asyncio.sleep(0.01)
        assert "take over a" not in world.engine.log and world.states()["a"] == "mounted"
        assert world.supervisor.status(["a"])[0].pid == world.engine.alive["a"].pid

    play(scenario)


def test_down_while_it_is_replaced(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.gate.clear()
        going = asyncio.create_task(reload(world, changed("a"), spec_named("b")))
        while "start a beneath" not in world.engine.log:
            await asyncio.sleep(0.001)
        down = asyncio.create_task(world.supervisor.down(["a"], lazy=False, timeout_s=5))
        await asyncio.sleep(0.01)
        world.engine.gate.set()
        assert (await down).errors == {} and world.states()["a"] == "unmounted"
        await going

    play(scenario)


def test_restart_of_all_leaves_what_is_down(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        await world.supervisor.down(["a"], lazy=False, timeout_s=5)
        outcome = await world.supervisor.restart(None, timeout_s=5)
        assert [status.name for status in outcome.mounts] == ["b"] and world.states()["a"] == "unmounted"
        assert (await world.supervisor.restart(["a"], timeout_s=5)).errors == {} and world.states()["a"] == "mounted"
        with pytest.raises(NotFoundError):
            await world.supervisor.restart(["x"], timeout_s=5)

    play(scenario)


def test_differences_are_named_by_field() -> None:
    one = spec_named("a")
    other = one.model_copy(update={"policy": one.policy.model_copy(update={"pinned": True}), "cache_note": "x"})
    assert difference(one, other) == ["policy.pinned", "cache_note"]
    assert needs_new_mount(["policy.pinned"]) and not needs_new_mount(["cache_note", "cache_max_bytes"])
    assert difference(one, one) == []
