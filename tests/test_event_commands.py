"""`amlmount events` and `wait`, with a real daemon: what is told, followed over restarts, waited for."""

import json
import os
import signal
import subprocess
import time

import pytest

from daemons import Pair, make_pair, poll
from world import World


@pytest.fixture
def pair(world: World) -> Pair:
    return make_pair(world)


def kinds(pair: Pair, *args: str) -> list[str]:
    found = [event["type"] for event in pair.world.cli_json("events", *args)]
    return [kind for kind in found if not kind.startswith("condition-")]  # health is looked at in its own time


def test_events_of_a_whole_life(pair: Pair) -> None:
    assert pair.world.cli("events").stdout == ""
    pair.world.cli("up")
    pair.kill(int(pair.mount("red")["pid"]))
    poll(lambda: "taken-over" in kinds(pair, "red"), "not told")
    assert kinds(pair, "red") == ["requested", "mounting", "mounted", "crashed", "taken-over"]
    assert kinds(pair, "blue") == ["requested", "mounting", "mounted"]
    pair.world.cli("down")
    whole = kinds(pair)  # there is no daemon any more
    assert whole[0] == "daemon-started" and whole[-1] == "daemon-ending" and whole.count("unmounted") == 2
    lines = pair.world.cli("events", "red").stdout.splitlines()
    [line] = [line for line in lines if " crashed " in line]
    assert line.split()[2:5] == ["warning", "red", "crashed"] and "was killed by SIGKILL" in line
    assert "\x1b" not in line
    assert pair.world.cli("events", "--since", "1s", "nobody").stdout == ""
    assert pair.world.cli("events", "-f", "-o", "json").returncode == 2
    folder = f"{pair.world.state_dir}/events"
    assert os.stat(folder).st_mode & 0o777 == 0o700 and os.stat(f"{folder}/events.jsonl").st_mode & 0o777 == 0o600
    pair.assert_as_before()


def test_following_goes_on_with_the_next_daemon(pair: Pair) -> None:
    pair.world.cli("up", "red")
    with pair.start("events", "red", "-f", "-o", "jsonl") as follower:
        try:
            assert follower.stdout is not None

            def next_kind() -> str:
                assert follower.stdout is not None
                return str(json.loads(follower.stdout.readline())["type"])

            assert [next_kind() for _ in range(3)] == ["requested", "mounting", "mounted"]
            assert_idle(follower.pid)
            assert pair.world.cli("restart", "--daemon").returncode == 0
            assert [next_kind() for _ in range(3)] == ["requested", "mounting", "adopted"]
            pair.world.cli("down")
            assert [next_kind() for _ in range(2)] == ["unmounting", "unmounted"]
            begun = time.monotonic()
            follower.send_signal(signal.SIGINT)
            _, errors = follower.communicate(timeout=10)
            assert follower.returncode == 130 and "Traceback" not in errors and time.monotonic() - begun < 3
        finally:
            follower.kill()
    assert "daemon-leaving" in kinds(pair)
    pair.assert_as_before()


def assert_idle(pid: int) -> None:
    """Nothing happens, and a process that follows does nothing."""
    time.sleep(0.3)  # until it has come from what is kept to what is to come
    before = switches(pid)
    time.sleep(0.7)
    assert switches(pid) == before, "it asks again and again"


def switches(pid: int) -> int:
    """Return how often a process has waited for something."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))


def test_waiting(pair: Pair) -> None:
    with pair.start("wait", "red", "--for", "mounted", "--timeout", "20s") as before_the_daemon:
        pair.world.cli("up", "red")
        assert before_the_daemon.wait(20) == 0
    assert pair.world.cli("wait", "red", "--for", "healthy", "--timeout", "20s").returncode == 0
    late = pair.world.cli("wait", "red", "blue", "--timeout", "200ms")
    assert late.returncode == 7 and "cannot see 'blue' mounted within 0.2 s: it is unmounted" in late.stderr
    assert pair.world.cli("wait", "blue", "--timeout", "200ms").returncode == 124
    assert pair.world.cli("wait", "nobody").returncode == 3
    subprocess.run(["rm", "-r", f"{pair.world.root}/blue"], check=True)
    pair.world.cli("up", "--no-wait", "blue")
    failed = pair.world.cli("wait", "blue", "--timeout", "20s")
    assert failed.returncode == 3 and "cannot mount 'blue'" in failed.stderr
    with pair.start("wait", "red", "--for", "gone") as gone:
        time.sleep(0.3)
        assert gone.poll() is None
        pair.world.cli("down")
        assert gone.wait(20) == 0
    assert pair.world.cli("wait", "red", "--for", "gone").returncode == 0
    none = pair.world.cli("wait", "red", "--timeout", "100ms")
    assert none.returncode == 124 and "no daemon runs" in none.stderr
    pair.assert_as_before()
