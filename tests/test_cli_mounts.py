"""`up`, `ps` and `down` from outside: real daemon, real workers, real mounts, and what goes wrong with them."""

import json
import os
import signal
import socket
import subprocess
import time

import pytest

import amlmount
from amlmount.mounts import syscalls
from daemons import CONFIG, Pair, make_pair, poll
from world import World


@pytest.fixture
def pair(world: World) -> Pair:
    return make_pair(world)


def test_up_up_ps_down_down_leaves_the_machine_as_it_was(pair: Pair) -> None:
    cli = pair.world.cli
    first = cli("up")
    assert first.returncode == 0 and first.stdout == ""
    assert f"red: mounted at {pair.target('red')} (python: blobfuse2 mounts Azure storage only)" in first.stderr
    second = cli("up")
    assert second.returncode == 0
    mounts = pair.world.cli_json("ps")
    assert [(m["name"], m["state"], m["engine"], m["target"]) for m in mounts] == [
        (name, "mounted", "python", pair.target(name)) for name in ("red", "blue")
    ]
    assert {m["pid"] for m in mounts} == set(pair.workers()) and all(m["mount_made_target"] for m in mounts)
    assert mounts[0]["source"] == f"{pair.world.root}/red" and mounts[0]["since"].endswith("Z")
    assert (pair.read("red"), pair.read("blue")) == ("red", "blue")
    assert cli("down").returncode == 0
    pair.assert_as_before()
    assert cli("down").returncode == 0
    assert pair.world.cli_json("ps") == []
    pair.assert_as_before()


def test_one_by_one(pair: Pair) -> None:
    cli = pair.world.cli
    assert cli("up", "red").returncode == 0
    assert [(m["name"], m["state"]) for m in pair.world.cli_json("ps", "-a")] == [
        ("red", "mounted"),
        ("blue", "unmounted"),
    ]
    assert cli("up", "blue").returncode == 0
    assert cli("down", "red").returncode == 0
    assert [m["name"] for m in pair.world.cli_json("ps")] == ["blue"]
    assert os.path.isdir(f"{pair.world.root}/mnt") and not os.path.lexists(pair.target("red"))
    assert cli("down", "--all").returncode == 0
    pair.assert_as_before()


def test_a_target_that_was_there_stays(pair: Pair) -> None:
    os.makedirs(pair.target("red"))
    pair.world.cli("up", "red")
    pair.world.cli("down")
    assert os.listdir(pair.target("red")) == []


def test_a_killed_worker_is_seen_and_replaced(pair: Pair) -> None:
    pair.world.cli("up")
    before = pair.mount("red")
    pair.kill(before["pid"])
    after = poll(
        lambda: (m := pair.mount("red"))["state"] == "mounted" and m["pid"] != before["pid"] and m, "no return"
    )
    assert after["restarts"] == 1 and after["last_error"] is None
    assert pair.read("red") == "red" and pair.mount("blue")["restarts"] == 0
    assert pair.world.cli("down").returncode == 0
    pair.assert_as_before()


def test_a_busy_mount_stays_and_its_holders_are_named(pair: Pair) -> None:
    pair.world.cli("up")
    with subprocess.Popen(["sleep", "60"], cwd=pair.target("red")) as holder:
        try:
            busy = pair.world.cli("down", "red", "-o", "json")
            assert busy.returncode == 8
            error = json.loads(busy.stderr.splitlines()[-1])["error"]
            assert error["code"] == "busy" and error["message"].startswith("cannot unmount 'red' at '")
            assert error["details"]["holders"] == [
                {"pid": holder.pid, "command": "sleep", "what": f"working directory {pair.target('red')}"}
            ]
            some = pair.world.cli("down")
            assert some.returncode == 7 and f"sleep (pid {holder.pid}, working directory" in some.stderr
            assert [m["name"] for m in pair.world.cli_json("ps")] == ["red"]
            assert pair.read("red") == "red"
            assert pair.world.cli("down", "--lazy").returncode == 0
        finally:
            holder.kill()
    pair.assert_as_before()


def test_ctrl_c_takes_back_what_is_on_its_way_and_leaves_what_is_done(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pair.world.write_config(slow_beside_red(pair, silent))
        pair.world.cli("up", "red")
        with pair.start("up") as call:
            poll(lambda: pair.state("slow") == "mounting", "not mounting")
            call.send_signal(signal.SIGINT)
            _, talk = call.communicate(timeout=30)
    assert call.returncode == 130 and "interrupted" in talk and "Traceback" not in talk
    assert [(m["name"], m["state"]) for m in pair.world.cli_json("ps", "-a")] == [
        ("red", "mounted"),
        ("slow", "unmounted"),
    ]
    assert pair.world.cli("down").returncode == 0
    pair.assert_as_before()


def test_ctrl_c_of_the_first_up_ends_the_daemon_too(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pair.world.write_config(SLOW.format(port=silent.getsockname()[1], root=pair.world.root))
        call = pair.start("up", "slow")
        poll(lambda: pair.world.cli_json("ps") and pair.state("slow") == "mounting", "not mounting")
        call.send_signal(signal.SIGINT)
        call.communicate(timeout=30)
    assert call.returncode == 130
    pair.assert_as_before()


def test_many_ups_at_once_all_succeed_with_one_daemon(pair: Pair) -> None:
    calls = [pair.start("up") for _ in range(4)]
    for call in calls:
        _, talk = call.communicate(timeout=60)
        assert call.returncode == 0, talk
    assert len(pair.daemons()) == 1 and len(pair.workers()) == 2
    downs = [pair.start("down") for _ in range(3)]
    for call in downs:
        _, talk = call.communicate(timeout=60)
        assert call.returncode == 0, talk
    pair.assert_as_before()


def test_up_and_down_in_turns_never_miss_each_other(pair: Pair) -> None:
    """Each `up` meets the daemon of the one before at its end."""
    for _ in range(3):
        last = pair.start("down")
        assert pair.world.cli("up").returncode == 0
        last.communicate(timeout=60)
        assert last.returncode == 0
    pair.world.cli("down")
    pair.assert_as_before()


def test_a_worker_that_dies_while_mounting(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pair.world.write_config(slow_beside_red(pair, silent))
        with pair.start("up", "slow") as call:
            [worker] = poll(pair.workers, "no worker")
            pair.kill(worker)
            _, talk = call.communicate(timeout=30)
    assert call.returncode == 1 and "error: cannot mount 'slow'" in talk and "SIGKILL" in talk
    pair.assert_as_before()


def test_a_dead_daemons_socket_and_lock_are_no_obstacle(pair: Pair) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{pair.world.runtime_dir}/amlmount.sock")
    with open(f"{pair.world.runtime_dir}/daemon.lock", "w") as file:
        file.write("1\n")
    assert pair.world.cli("ps").returncode == 0
    assert pair.world.cli("up", "red").returncode == 0
    assert pair.read("red") == "red"
    pair.world.cli("down")
    pair.assert_as_before()


@pytest.mark.parametrize("kill_workers", [False, True])
def test_up_after_the_daemon_was_killed(pair: Pair, kill_workers: bool) -> None:
    pair.world.cli("up")
    old = pair.workers()
    pair.kill(pair.daemon())
    for worker in old if kill_workers else []:
        if worker in pair.workers():
            pair.kill(worker)
    assert pair.world.cli("up", "red").returncode == 0
    poll(lambda: pair.state("blue") == "mounted", "what was up before is up again")
    assert len(pair.workers()) == 2 and (set(pair.workers()) == set(old)) is not kill_workers
    assert sorted(pair.world.mounts()) == [pair.target("blue"), pair.target("red")], "no mount lies under another"
    assert (pair.read("red"), pair.read("blue")) == ("red", "blue")
    assert pair.world.cli("down").returncode == 0
    pair.assert_as_before()


def test_down_after_the_daemon_was_killed(pair: Pair) -> None:
    pair.world.cli("up")
    pair.kill(pair.daemon())
    assert pair.world.cli("down").returncode == 0
    pair.assert_as_before()


def test_a_daemon_killed_while_mounting_leaves_nothing_that_hinders(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pair.world.write_config(slow_beside_red(pair, silent))
        with pair.start("up", "slow") as call:
            poll(lambda: pair.world.cli_json("ps") and pair.state("slow") == "mounting", "not mounting")
            pair.kill(pair.daemon())
            _, talk = call.communicate(timeout=30)
        assert call.returncode == 4 and "error: cannot finish the request: the daemon" in talk
        assert pair.world.cli("up", "red").returncode == 0
        assert pair.read("red") == "red"
    pair.world.cli("down")
    pair.assert_as_before()


def test_no_wait(pair: Pair) -> None:
    begin = time.monotonic()
    assert pair.world.cli("up", "--no-wait").returncode == 0
    assert time.monotonic() - begin < 10
    poll(lambda: {m["state"] for m in pair.world.cli_json("ps")} == {"mounted"}, "not mounted")
    pair.world.cli("down")


SLOW = """\
stores:
  slow:
    type: azure_blob
    account_name: silent
    container_name: data
    endpoint: "http://127.0.0.1:{port}/silent"
    credentials: {{anonymous: {{}}}}
mounts:
  slow: {{target: {root}/mnt/slow, source: slow, engine: python}}
"""


def slow_beside_red(pair: Pair, silent: socket.socket) -> str:
    """Configure `red`, and `slow`, whose store takes the connection and never answers."""
    slow = SLOW.format(port=silent.getsockname()[1], root=pair.world.root)
    red = f"  red: {{target: {pair.target('red')}, source: red}}\n"
    return slow.replace("stores:\n", "stores:\n  red: {type: local, path: ./red}\n").replace(
        "mounts:\n", f"mounts:\n{red}"
    )


def test_timeout(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        pair.world.write_config(SLOW.format(port=silent.getsockname()[1], root=pair.world.root))
        done = pair.world.cli("up", "slow", "--timeout", "1s")
        assert done.returncode == 124 and "error: cannot mount 'slow' within 1 s" in done.stderr
        assert pair.state("slow") == "mounting", "it goes on in the background"
        assert pair.world.cli("down").returncode == 0
    pair.assert_as_before()


def test_some_fail(pair: Pair) -> None:
    os.makedirs(pair.target("red"))
    with open(f"{pair.target('red')}/precious", "w"):
        pass
    some = pair.world.cli("up")
    assert some.returncode == 7
    assert f"error: cannot mount 'red' at '{pair.target('red')}': it is not empty (has precious)" in some.stderr
    assert [m["name"] for m in pair.world.cli_json("ps")] == ["red", "blue"], "the failure can still be looked at"
    one = pair.world.cli("up", "red", "-o", "json")
    assert one.returncode == 1 and json.loads(one.stderr.splitlines()[-1])["error"]["code"] == "mount_failed"
    assert json.loads(one.stdout)[0]["state"] == "failed"
    pair.world.cli("down")
    assert os.listdir(pair.target("red")) == ["precious"]


def refused(pair: Pair, target: str) -> str:
    """Bring up one mount at `target`, which must fail and leave nothing; return what was said."""
    root = pair.world.root
    store, mount = f"{{type: local, path: {root}/red}}", f"{{target: {target}, source: s}}"
    pair.world.write_config(f"stores: {{s: {store}}}\nmounts: {{m: {mount}}}\n")
    done = pair.world.cli("up")
    assert done.returncode == 1 and done.stdout == ""
    pair.assert_as_before()
    return done.stderr.split("\n", 1)[1]  # after `m: mounting`


def test_a_target_that_is_a_file(pair: Pair) -> None:
    path = f"{pair.world.root}/blue/colour"
    assert refused(pair, path) == (
        f"error: cannot mount 'm' at '{path}': it is not a directory\n"
        "hint: choose a directory, or a path that does not exist\n"
    )


def test_a_target_that_is_or_lies_in_a_mount_of_another_amlmount(pair: Pair, mountpoint: str) -> None:
    with amlmount.mount(f"{pair.world.root}/blue", mountpoint):
        assert refused(pair, mountpoint) == (
            f"error: cannot mount 'm' at '{mountpoint}': another amlmount has mounted there\n"
            f"hint: take it down where it was brought up, or run: umount {mountpoint}\n"
        )
        assert refused(pair, f"{mountpoint}/inside") == (
            f"error: cannot mount 'm' at '{mountpoint}/inside': "
            f"it lies inside another mount, {mountpoint} (fuse.amlmount)\n"
            "hint: choose a target on a local disk\n"
        )
        assert os.listdir(mountpoint) == ["colour"]


@pytest.mark.root
def test_a_target_that_is_somebody_elses_mount(pair: Pair, mountpoint: str) -> None:
    syscalls.mount("theirs", mountpoint, "tmpfs")
    assert refused(pair, mountpoint) == (
        f"error: cannot mount 'm' at '{mountpoint}': theirs (tmpfs) is mounted there already\n"
        f"hint: unmount it (sudo umount {mountpoint}) or choose another target\n"
    )


def listing(path: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["ls", path], capture_output=True, text=True, timeout=20, check=False)


def test_a_store_that_goes_and_comes_back_while_it_is_mounted(pair: Pair) -> None:
    root, target = pair.world.root, pair.target("red")
    pair.world.write_config(CONFIG.format(root=root) + "defaults: {profile: fresh}\n")
    assert pair.world.cli("up").returncode == 0
    pid = pair.mount("red")["pid"]
    os.rename(f"{root}/red", f"{root}/away")
    # The listing that was made when it was mounted may be believed for a moment.
    poll(lambda: "Input/output error" in listing(target).stderr, "nobody says that the store has gone")
    os.rename(f"{root}/away", f"{root}/red")
    poll(lambda: pair.read("red") == "red", "it does not come back")
    assert pair.mount("red")["pid"] == pid, "the worker went on"
    assert pair.world.cli("down").returncode == 0


def test_a_store_that_is_not_there(pair: Pair) -> None:
    os.rename(f"{pair.world.root}/red", f"{pair.world.root}/gone")
    done = pair.world.cli("up", "red")
    assert done.returncode == 3 and "error: cannot mount 'red': " in done.stderr and "hint: " in done.stderr
    pair.assert_as_before()


def test_another_configuration_is_not_taken_for_ours(pair: Pair) -> None:
    pair.world.cli("up", "red")
    other = f"{pair.world.root}/other.yaml"
    with open(other, "w") as file:
        file.write("mounts: {}\n")
    done = pair.world.cli("--config", other, "ps")
    assert done.returncode == 2 and f"error: cannot use '{other}': the daemon (pid" in done.stderr
    pair.world.cli("down")


def test_a_mount_added_to_the_file_is_known_to_the_next_up(pair: Pair) -> None:
    pair.world.cli("up", "red")
    with open(pair.world.config, "a") as file:
        file.write(f"  green: {{target: {pair.target('green')}, source: red}}\n")
    assert pair.world.cli("up", "green").returncode == 0
    assert pair.read("green") == "red"
    with open(pair.world.config, "a") as file:
        file.write("  [")
    broken = pair.world.cli("up")
    assert broken.returncode == 2 and "amlmount.yaml" in broken.stderr
    assert {m["name"] for m in pair.world.cli_json("ps")} == {"red", "green"}, "a broken file takes nothing down"
    assert pair.world.cli("down").returncode == 0
    pair.assert_as_before()


@pytest.mark.root
def test_as_an_ordinary_user(user_world: World) -> None:
    pair = make_pair(user_world)
    up = user_world.cli("up")
    assert up.returncode == 0, up.stderr
    assert {m["state"] for m in user_world.cli_json("ps")} == {"mounted"}
    [red] = [m["pid"] for m in user_world.cli_json("ps") if m["name"] == "red"]
    pair.kill(red)
    pair.until_replaced("red", red)
    assert user_world.cli("down").returncode == 0
    pair.assert_as_before()
