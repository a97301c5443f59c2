"""A fixed workload that dies at every single step: each call of the store, each write and sync of the state directory.

Then, each time: the next process finds what a kill leaves, what a power cut leaves, or takes the mount over and is
asked again what was not answered. Nothing that was acknowledged may be missing, and nothing half done may show.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from amlmount.stores.base import Content, ObjectInfo
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.writing import filesystem as writing_filesystem
from amlmount.vfs.writing import reading as writing_reading
from writing.machine import OLD, WORKLOAD, Machine, run
from writing.powercut import Died, Life

pytestmark = pytest.mark.timeout(600)


def acknowledged(until: int) -> dict[str, bytes | None]:
    """Return what programs may rely on once they got the answers to so many steps."""
    known: dict[str, bytes | None] = dict(OLD)
    for step in WORKLOAD[:until]:
        known |= step.after
    return known


def unsynced(until: int) -> dict[str, bytes]:
    """Return what may be there of names that were overwritten since they were acknowledged."""
    known: dict[str, bytes] = {}
    for step in WORKLOAD[:until]:
        known = {name: data for name, data in known.items() if name not in step.after} | step.maybe
    return known


def contents(store: MemoryStore) -> dict[str, bytes]:
    found = {info.name: info for page in store.list() for info in page.objects}
    return {name: store.get(name) for name, info in found.items() if "hdi_isfolder" not in info.metadata}


def all_steps(tmp_path: Path, durability: str) -> int:
    machine = Machine(tmp_path / "count", durability)
    life = Life()
    world = machine.start(life)
    begun = len(life.steps)
    assert run(world, life) is None
    assert world.tree.files.drain(10)
    expected = {name: data for name, data in acknowledged(len(WORKLOAD)).items() if data is not None}
    assert contents(machine.store) == expected
    world.tree.files.close()
    assert len(life.steps) > begun + len(WORKLOAD)
    return len(life.steps)


@pytest.fixture(autouse=True)
def small_wholes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `old` edited in part, not fetched whole first."""
    monkeypatch.setattr(writing_reading, "WHOLE_BYTES", 1000)


@pytest.fixture(params=["store", "journal", "journal, sent at once"])
def durability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What close waits for, and whether a new file is sent before it is renamed."""
    name, _, at_once = request.param.partition(", ")
    if at_once:
        monkeypatch.setattr(writing_filesystem, "RENAMED_WITHIN_S", 0.0)
    return str(name)


def ends(tmp_path: Path, durability: str) -> Iterable[int]:
    count = all_steps(tmp_path, durability)
    every = int(os.environ.get("AMLMOUNT_TEST_EVERY", "1"))
    return range(1, count + 1, every)


@pytest.mark.parametrize("how", ["killed", "power cut"])
def test_what_was_acknowledged_is_there_after_every_crash(tmp_path: Path, durability: str, how: str) -> None:
    for end in ends(tmp_path, durability):
        root = tmp_path / "run"
        machine, life = Machine(root, durability), Life(end)
        try:
            world = machine.start(life)
        except Died:
            died_in: int | None = 0
        else:
            died_in = run(world, life)
        if died_in is None:
            shutil.rmtree(root)
            continue
        if how == "power cut":
            machine.cut_power()
        check_after(machine, died_in, f"{how} at {end}: {life.steps[end - 1]}, in step {died_in}")
        shutil.rmtree(root)


def check_after(machine: Machine, died_in: int, where: str) -> None:
    after = machine.start(Life())
    try:
        assert after.tree.files.drain(10), where
        stats = after.tree.files.writing_stats()
        assert stats.dirty_files == 0, where
        safe, unsure = acknowledged(died_in), acknowledged(died_in + 1)
        maybe = unsynced(died_in) | unsynced(died_in + 1)
        found = contents(machine.store)
        for name in safe.keys() | unsure.keys() | found.keys():
            allowed: list[bytes | None] = [safe.get(name), unsure.get(name), maybe.get(name)]
            assert found.get(name) in allowed, f"{where}: {name} is {found.get(name)!r:.60}"
        lost_both = [
            name
            for name, data in safe.items()
            if data is not None
            and name not in found
            and not any(found.get(other) == data for other in unsure)
            and unsure.get(name) is not None
        ]
        assert not lost_both, where
        for kept in stats.kept:
            assert "neither fsync nor close" in kept.why, f"{where}: {kept}"
    finally:
        after.tree.files.close()


def test_crash_done_once(tmp_path: Path, durability: str) -> None:
    """A successor goes on as if nothing had been."""
    expected = {name: data for name, data in acknowledged(len(WORKLOAD)).items() if data is not None}
    for end in ends(tmp_path, durability):
        root = tmp_path / "run"
        machine, life = Machine(root, durability), Life(end)
        try:
            world = machine.start(life)
        except Died:
            shutil.rmtree(root)
            continue  # nothing was mounted yet
        died_in = run(world, life)
        if died_in is None:
            shutil.rmtree(root)
            continue
        where = f"taken over at {end}: {life.steps[end - 1]}, in step {died_in}"
        successor = machine.start(Life(), takes_over=True)
        successor.nodes = world.nodes
        try:
            assert run(successor, machine.life, died_in, is_again=True) is None
            assert successor.tree.files.drain(10), where
            assert contents(machine.store) == expected, where
            assert successor.tree.files.writing_stats().kept == [], where
        except (OSError, AssertionError) as error:
            error.add_note(where)
            raise
        finally:
            successor.tree.files.close()
            shutil.rmtree(root)


def test_nothing_is_left_out(tmp_path: Path) -> None:
    steps: Any = {durability: all_steps(tmp_path / durability, durability) for durability in ("store", "journal")}
    assert steps["store"] > 150 and steps["journal"] > 150


def test_an_upload_that_lands_after_its_process_died_is_older_than_what_follows(tmp_path: Path) -> None:
    """The store is at it still when the next process looks: what that one sends counts, not what lands then."""
    machine = Machine(tmp_path, "store")
    handle = machine.start(Life()).tree.create("a")
    for number in range(9):
        handle.write(0, b"old %d" % number)
    late: list[tuple[bytes, Any]] = []

    def die(name: str, content: Content, **more: Any) -> ObjectInfo:
        late.append((bytes(content.read(0, content.size_bytes)), more["metadata"]))
        machine.life.is_over = True
        raise Died(name)

    upload, machine.store.upload = machine.store.upload, die  # type: ignore[method-assign]
    with pytest.raises(Died):
        handle.fsync()
    files = machine.start(Life(), takes_over=True).tree.files
    machine.store.upload = upload  # type: ignore[method-assign]
    files.write(handle.node.node_id, 0, b"newer")
    [(data, metadata)] = late
    machine.store.put("a", data, if_none_match=True, metadata=metadata)
    files.flush(handle.node.node_id)
    assert machine.store.get("a") == b"newer"
    files.close()
