"""Fifty mounts of which ten hang: the daemon answers as if nothing were, and says which ten.

A whole minute of it, with numbers that depend on the machine: `python -m benchmarks.hanging`.
"""

import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from amlmount.client import DaemonClient
from amlmount.states import MountStatus
from daemons import poll
from world import World

pytestmark = pytest.mark.root
MANY, HANGING = 50, 10
ANSWERS_WITHIN_S = 0.1
BUSY_S = 0.4  # what a busy machine adds to a few of the answers
WATCHED_S = 3.0


def test_ps_answers_at_once_while_ten_of_fifty_mounts_hang(world: World) -> None:
    client = fifty(world)
    victims = [status for status in client.status() if status.pid is not None][:HANGING]
    for status in victims:
        os.kill(status.pid or 0, signal.SIGSTOP)
    took_s, wrong = watch(client, WATCHED_S)
    in_order = sorted(took_s)
    print(f"ps took {in_order[len(in_order) // 2] * 1000:.1f} ms, {in_order[-1] * 1000:.0f} ms at most")
    assert wrong == {status.name for status in victims}, "these and no others were silent"
    assert in_order[len(in_order) // 2] < ANSWERS_WITHIN_S and in_order[-1] < ANSWERS_WITHIN_S + BUSY_S, in_order[-5:]
    poll(lambda: not [status for status in client.status() if status.state != "mounted"], "they do not come back", 20)


def fifty(world: World) -> DaemonClient:
    os.mkdir(f"{world.root}/store")
    Path(world.root, "store", "file").write_text("content")
    stores = {"store": {"type": "local", "path": f"{world.root}/store"}}
    mounts = {f"m{n}": {"source": "store", "target": f"{world.root}/mnt/{n}", "engine": "python"} for n in range(MANY)}
    health = {"interval": "500ms", "timeout": "1s"}
    world.write_config(yaml.safe_dump({"stores": stores, "mounts": mounts, "health": health}))
    done = world.cli("up", timeout_s=120)
    assert done.returncode == 0, done.stderr + Path(world.state_dir, "daemon.log").read_text()
    client = DaemonClient(os.path.join(world.runtime_dir, "amlmount.sock"))
    poll(lambda: all(reasons(status, "True") >= {"Answered"} for status in client.status()), "not all answer", 20)
    return client


def reasons(status: MountStatus, truth: str) -> set[str]:
    return {condition.reason for condition in status.conditions if condition.status == truth}


def watch(client: DaemonClient, duration_s: float) -> tuple[list[float], set[str]]:
    """Ask for the status all the time; return how long each answer took, and which mounts were silent."""
    took_s, silent = [], set()
    end = time.monotonic() + duration_s
    while (begun := time.monotonic()) < end:
        found = client.status()
        took_s.append(time.monotonic() - begun)
        silent |= {status.name for status in found if "Silent" in reasons(status, "False")}
        time.sleep(0.02)
    return took_s, silent
