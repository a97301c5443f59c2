"""The supervisor when an engine dies or hangs and its mount can be taken over, with an engine of memory."""

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from amlmount.errors import MountFailedError, NetworkError
from amlmount.states import MountState, RestartPolicy
from amlmount.supervisor import Supervisor
from fake_engine import FakeWorld, Play, play_out, spec_named


async def with_a_successor(world: FakeWorld) -> None:
    world.engine.takes_over = True
    world.supervisor = Supervisor(replace(world.around(), hung_after_s=0.03), [spec_named("a")])
    await world.supervisor.up(None, wait=True, timeout_s=5)


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return partial(play_out, tmp_path, begin=with_a_successor, names=("a",))


async def kill(world: FakeWorld) -> None:
    world.engine.kill("a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_a_killed_engine_is_replaced_under_its_mount(play: Play, tmp_path: Path) -> None:
    async def scenario(world: FakeWorld) -> None:
        [before] = world.supervisor.status()
        seen: list[MountState] = []
        world.supervisor.listen(lambda status: seen.append(status.state))
        await kill(world)
        await world.until(a="mounted")
        [after] = world.supervisor.status()
        assert seen == [MountState.DEGRADED, MountState.MOUNTED], "its callers wait"
        assert after.pid != before.pid and after.restarts == 1 and after.last_error is None
        assert world.engine.log == ["start a", "take over a"]
        assert world.records.load()[0].pid == after.pid

    play(scenario)


def test_a_hung_engine_is_replaced_and_a_busy_one_is_not(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        seen: list[str] = []
        world.supervisor.listen(lambda status: seen.append(status.last_error.message if status.last_error else ""))
        await asyncio.sleep(0.1)
        assert not seen
        world.engine.hung.add("a")
        await asyncio.sleep(0.01)
        world.engine.hung.discard("a")
        await asyncio.sleep(0.1)
        assert not seen, "once is not always"
        world.engine.hung.add("a")
        async with asyncio.timeout(5):
            while "take over a" not in world.engine.log:
                await asyncio.sleep(0.01)
        await world.until(a="mounted")
        assert seen[0] == "cannot serve 'a': its python engine (pid 1000) hangs"

    play(scenario)


def test_a_takeover_that_fails_is_tried_again(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.take_over_errors = [NetworkError("cannot reach"), RuntimeError("bug")]
        await kill(world)
        await world.until(a="mounted")
        assert world.engine.log == ["start a", *["take over a"] * 3]

    play(scenario)


def test_at_the_limit_callers_get_an_error_and_ps_the_evidence(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.take_over_errors = [MountFailedError(f"cannot reach {turn}") for turn in range(20)]
        await kill(world)
        await world.until(a="failed")
        limit = RestartPolicy().crash_limit
        while "stop a lazily" not in world.engine.log:
            await asyncio.sleep(0.001)
        assert world.engine.log == ["start a", *["take over a"] * limit, "stop a lazily"]
        [status] = world.supervisor.status()
        assert status.last_error is not None and f"cannot reach {limit - 1}" in status.last_error.message

    play(scenario)


def test_without_a_store_callers_get_an_error_at_the_limit_and_it_is_mounted_again(
    play: Play,
) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.take_over_errors = [NetworkError(f"cannot reach {turn}") for turn in range(5)]
        await kill(world)
        async with asyncio.timeout(5):
            while world.engine.log[-1] != "start a" or len(world.engine.log) == 1:
                await asyncio.sleep(0.001)
        await world.until(a="mounted")
        limit = RestartPolicy().crash_limit
        assert world.engine.log == ["start a", *["take over a"] * limit, "stop a lazily", "start a"]

    play(scenario)


def test_what_cannot_be_taken_over_is_mounted_anew(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.takes_over = False
        await kill(world)
        await world.until(a="mounted")
        assert world.engine.log == ["start a", "stop a lazily", "start a"]

    play(scenario)


def test_down_while_it_is_taken_over(play: Play) -> None:
    async def scenario(world: FakeWorld) -> None:
        world.engine.gate.clear()
        await kill(world)
        outcome = await world.supervisor.down(None, lazy=False, timeout_s=5)
        assert not outcome.errors and world.states() == {"a": "unmounted"}
        world.engine.gate.set()

    play(scenario)
