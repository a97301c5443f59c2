"""Many mounts of one daemon: how many processes there are, and what a mount that nobody uses has of the memory.

With numbers that depend on the machine: `python -m benchmarks.many`.
"""

import re

import pytest

from sandbox import command_line
from world import World

COUNT = 10
BESIDES = (" daemon --", "worker.forkserver", "keeper.py", "prober_child.py")  # at most one of each


@pytest.fixture
def many(world: World) -> list[int]:
    """Ten mounts are up; the pids of their workers."""
    names = [f"m{number}" for number in range(COUNT)]
    stores = "".join(f"  {name}: {{type: local, path: {world.root}/home}}\n" for name in names)
    mounts = "".join(f"  {name}: {{target: {world.root}/mnt/{name}, source: {name}}}\n" for name in names)
    world.write_config(f"stores:\n{stores}mounts:\n{mounts}")
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
