"""Mounts outlive their daemon: killed, or restarted on purpose, the next one finds them as they were."""

import os
import signal
import subprocess
from typing import Any

import pytest

from daemons import Pair, poll
from readers import make_readable_pair, reading
from sandbox import Sandbox, command_line
from world import World


@pytest.fixture
def pair(world: World) -> Pair:
    return make_readable_pair(world)


def keepers(pair: Pair) -> list[int]:
    return [pid for pid, _ in pair.world.processes() if "keeper.py" in command_line(pid)]


def assert_clean(tally: dict[str, Any]) -> None:
    assert not tally["errors"] and not tally["wrong"] and sum(tally["done"].values()) > 50


def test_a_killed_daemon_is_followed_by_one_that_finds_every_mount_as_it_was(pair: Pair) -> None:
    assert pair.world.cli("up").returncode == 0
    with reading(pair) as readers:
        before = {name: pair.mount(name) for name in ("red", "blue")}
        for _ in range(3):
            pair.kill(pair.daemon())
            assert "`amlmount up` looks after them again" in pair.world.cli("ps").stderr
            assert pair.world.cli("up").returncode == 0
        after = {name: pair.mount(name) for name in ("red", "blue")}
        tally = readers.tally()
    assert_clean(tally)
    for name in before:
        assert (after[name]["pid"], after[name]["state"]) == (before[name]["pid"], "mounted")
        assert after[name]["mount_made_target"] and after[name]["engine_why"] == before[name]["engine_why"]
    assert pair.world.cli("down").returncode == 0
    pair.assert_as_before()


def test_worker_and_daemon_killed_at_once(pair: Pair) -> None:
    pair.world.cli("up")
    with reading(pair) as readers:
        for _ in range(3):
            [worker] = [pid for pid in pair.workers() if command_line(pid).endswith("red")]
            pair.kill(pair.daemon())
            pair.kill(worker)
            assert pair.world.cli("up").returncode == 0
        tally = readers.tally()
    assert_clean(tally)
    pair.world.cli("down")
    pair.assert_as_before()


def test_a_worker_killed_under_an_adopting_daemon(pair: Pair) -> None:
    pair.world.cli("up")
    with reading(pair) as readers:
        pair.kill(pair.daemon())
        pair.world.cli("up")
        pid = pair.mount("red")["pid"]
        pair.kill(pid)
        after = pair.until_replaced("red", pid)
        assert after["restarts"] == 1
        tally = readers.tally()
    assert_clean(tally)
    pair.world.cli("down")
    pair.assert_as_before()


def test_a_frozen_worker_is_cured_by_the_daemon(pair: Pair) -> None:
    pair.world.cli("up")
    with reading(pair) as readers:
        pid = pair.mount("red")["pid"]
        os.kill(pid, signal.SIGSTOP)
        after = pair.until_replaced("red", pid)
        assert after["restarts"] == 1 and after["last_error"] is None
        tally = readers.tally()
    assert_clean(tally)
    pair.world.cli("down")
    pair.assert_as_before()


def test_restarting_the_daemon_keeps_every_mount_serving(pair: Pair) -> None:
    pair.world.cli("up")
    with reading(pair) as readers:
        old, pid = pair.daemon(), pair.mount("red")["pid"]
        for _ in range(2):
            done = pair.world.cli("restart", "--daemon")
            assert done.returncode == 0, done.stderr
        assert pair.daemon() != old and pair.mount("red")["pid"] == pid
        tally = readers.tally()
    assert_clean(tally)
    pair.world.cli("down")
    pair.assert_as_before()


def test_the_keeper_ends_with_the_last_mount(pair: Pair) -> None:
    pair.world.cli("up")
    [keeper] = keepers(pair)
    pair.world.cli("down", "red")
    assert keepers(pair) == [keeper]
    pair.world.cli("down")
    poll(lambda: not keepers(pair), "the keeper stays")
    pair.assert_as_before()


def test_what_goes_while_no_daemon_is_there_is_not_kept(pair: Pair) -> None:
    """Unmounted by hand: the keeper lets go of it, and ends with the last."""
    pair.world.cli("up")
    pair.kill(pair.daemon())
    for name in ("red", "blue"):
        subprocess.run(["umount", pair.target(name)], check=True, timeout=10)
    poll(lambda: not pair.workers(), "a worker stays")
    assert pair.world.cli("down").returncode == 0
    pair.assert_as_before()


def test_a_keeper_that_dies_costs_no_mount(pair: Pair) -> None:
    pair.world.cli("up")
    [keeper] = keepers(pair)
    pair.kill(keeper)
    assert pair.read("red") is not None and pair.world.cli("down").returncode == 0
    pair.assert_as_before()


def test_a_mount_that_left_the_configuration_meanwhile(pair: Pair) -> None:
    pair.world.cli("up")
    pair.kill(pair.daemon())
    root = pair.world.root
    pair.world.write_config(
        f"stores: {{red: {{type: local, path: ./red}}}}\nmounts: {{red: {{target: {root}/mnt/red, source: red}}}}\n"
    )
    assert pair.world.cli("up").returncode == 0
    assert pair.state("blue") == "mounted" and pair.read("blue") == "blue"
    assert pair.world.cli("down").returncode == 0
    pair.assert_as_before()


def test_an_ordinary_users_mounts_survive_their_daemon(user_world: World, sandbox: Sandbox) -> None:
    user_world.write_config(
        f"stores: {{red: {{type: local, path: {sandbox.make_dir('r')}}}}}\n"
        f"mounts: {{red: {{target: {user_world.root}/mnt/red, source: red}}}}\n"
    )
    assert user_world.cli("up").returncode == 0
    [before] = user_world.cli_json("ps")
    [daemon] = [pid for pid, _ in user_world.processes() if " daemon --" in command_line(pid)]
    os.kill(daemon, signal.SIGKILL)
    poll(lambda: not os.path.exists(f"/proc/{daemon}/exe") or "daemon" not in command_line(daemon), "it lives")
    assert user_world.cli("up").returncode == 0
    [after] = user_world.cli_json("ps")
    assert after["pid"] == before["pid"]
    os.kill(before["pid"], signal.SIGKILL)
    poll(lambda: user_world.cli_json("ps")[0]["pid"] not in (None, before["pid"]), "no successor")
    assert user_world.cli("down").returncode == 0
