"""A mount whose engine says that only a new one can go on: it is taken down and up again, unless it is in use."""

import asyncio
from pathlib import Path

from amlmount.states import MountState
from amlmount.supervisor import RecordStore
from fake_engine import FakeWorld


def test_it_is_drained_and_made_anew_and_the_old_one_counts_no_more(tmp_path: Path) -> None:
    async def story() -> None:
        world = FakeWorld(RecordStore(str(tmp_path)))
        await world.supervisor.up(["a"], wait=True, timeout_s=5)
        old = world.engine.alive["a"]
        old.on_stale("its key has changed")
        async with asyncio.timeout(5):
            while world.engine.log != ["start a", "stop a", "start a"]:
                await asyncio.sleep(0)
            while world.supervisor.status(["a"])[0].state is not MountState.MOUNTED:
                await asyncio.sleep(0)
        old.on_stale("it says so again")
        assert world.supervisor.status(["a"])[0].state is MountState.MOUNTED
        await world.supervisor.close(timeout_s=2)

    asyncio.run(story())


def test_one_in_use_stays_as_it_is(tmp_path: Path) -> None:
    async def story() -> None:
        world = FakeWorld(RecordStore(str(tmp_path)))
        await world.supervisor.up(["a"], wait=True, timeout_s=5)
        world.engine.busy = True
        running = world.engine.alive["a"]
        running.on_stale("its key has changed")
        async with asyncio.timeout(5):
            while "stop a" not in world.engine.log:
                await asyncio.sleep(0)
            while world.supervisor.status(["a"])[0].state is MountState.UNMOUNTING:
                await asyncio.sleep(0)
        [status] = world.supervisor.status(["a"])
        assert status.state is MountState.MOUNTED and status.wanted and world.engine.alive["a"] is running
        world.engine.busy = False
        await world.supervisor.close(timeout_s=2)

    asyncio.run(story())
