"""Many mounts of one daemon: how many processes there are, and what a mount that nobody uses has of the memory.

With numbers that depend on the machine: `python -m benchmarks.many`.
"""

import os
import re
import time

import pytest

from amlmount.health import FEW_REQUESTS
from daemons import poll
from sandbox import command_line
from world import World

COUNT = 10
LOOKS_S = 1.0  # ten looks
BESIDES = (" daemon --", "worker.forkserver", "keeper.py", "prober_child.py")  # at most one of each


@pytest.fixture
def many(world: World) -> list[int]:
    """Ten mounts are up; the pids of their workers."""
    names = [f"m{number}" for number in range(COUNT)]
    stores = "".join(f"  {name}: {{type: local, path: {world.root}/home}}\n" for name in names)
    mounts = "".join(f"  {name}: {{target: {world.root}/mnt/{name}, source: {name}}}\n" for name in names)
    health = "health: {interval: 100ms, timeout: 5s, store_interval: 100ms}\n"
    world.write_config(f"stores:\n{stores}mounts:\n{mounts}{health}")
    done = world.cli("up")
    assert done.returncode == 0, done.stderr
    return [mount["pid"] for mount in world.cli_json("ps")]


def rss_kib(pid: int, mapping: str) -> int:
    """Return the memory of the mappings whose name contains `mapping`."""
    total, inside = 0, False
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            if re.match(r"[0-9a-f]+-", line):
                inside = mapping in line
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1])
    return total


def test_ten_mounts_are_ten_processes_and_few_besides(world: World, many: list[int]) -> None:
    assert len(set(many)) == COUNT
    others = [command_line(pid) for pid, _ in world.processes() if pid not in many]
    kinds = [kind for line in others for kind in BESIDES if kind in line]
    assert len(others) == len(kinds) == len(set(kinds)), others
    # A look at each slot for requests would give each a page of memory: 7 MB a mount.
    assert all(rss_kib(pid, "amlmount-estate") < 256 for pid in many)


def test_a_worker_that_nobody_uses_is_not_asked_what_it_has_counted(world: World, many: list[int]) -> None:
    [first, *_] = world.cli_json("ps")
    pid, target = first["pid"], first["target"]
    poll(lambda: not turns_within(many, LOOKS_S), "idle workers are asked all the time", 20)
    for number in range(FEW_REQUESTS + 1):
        assert not os.path.exists(f"{target}/absent-{number}")
    poll(lambda: turns_within([pid], LOOKS_S), "one that is used is not asked", 20)


def turns_within(pids: list[int], seconds: float) -> int:
    """Return how often threads ran besides those that answer the kernel; one takes questions of the daemon."""
    before = turns(pids)
    time.sleep(seconds)
    return turns(pids) - before


def turns(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        for task in set(os.listdir(f"/proc/{pid}/task")) - {str(pid)}:
            with open(f"/proc/{pid}/task/{task}/status") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
    return total
