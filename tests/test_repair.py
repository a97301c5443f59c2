"""Dead mounts under our targets, and mounts that others take away, are repaired; the bare directory is not shown."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from amlmount.mounts import abort, find_mount, is_dead, open_and_mount
from daemons import Pair, make_pair, poll
from mounting import make_source
from readers import Readers
from sandbox import command_line
from world import World

pytestmark = pytest.mark.root


@pytest.fixture
def pair(world: World) -> Pair:
    made = make_pair(world)
    make_source(f"{world.root}/red")
    return made


@contextmanager
def watched(target: str) -> Iterator[list[str]]:
    """Look at the target all the time, as a program in it would, and note every time it is a bare directory."""
    bare: list[str] = []
    over = threading.Event()
    home = os.stat(os.path.dirname(target)).st_dev

    def look() -> None:
        while not over.is_set():
            try:
                if os.stat(target).st_dev == home:
                    bare.append("bare")
            except OSError:
                continue

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield bare
    finally:
        over.set()
        watcher.join()


def served_by_another(pair: Pair, pid: int) -> bool:
    return bool(pair.mount("red")["pid"] != pid)


def dead_mount_at(target: str) -> None:
    os.makedirs(target)
    fuse_fd = open_and_mount(
        target, source="x", subtype="amlmount", read_only=True, allow_other=False, default_permissions=True
    )
    os.close(fuse_fd)


def test_a_dead_mount_under_a_target_is_repaired_from_beneath(pair: Pair) -> None:
    dead_mount_at(pair.target("red"))
    with watched(pair.target("red")) as bare:
        assert pair.world.cli("up", "red").returncode == 0
    assert not bare and len([point for point in pair.world.mounts() if point == pair.target("red")]) == 1
    assert os.path.exists(f"{pair.target('red')}/big.bin")
    assert pair.world.cli("down").returncode == 0
    os.rmdir(pair.target("red"))
    os.rmdir(os.path.dirname(pair.target("red")))
    pair.assert_as_before()


def test_an_aborted_connection_is_repaired_from_beneath(pair: Pair) -> None:
    pair.world.cli("up")
    before = pair.mount("red")["pid"]
    entry = find_mount(pair.target("red"))
    assert entry is not None
    with watched(pair.target("red")) as bare:
        abort(entry)
        after = pair.until_replaced("red", before)
    assert not bare and after["restarts"] == 1
    assert len([point for point in pair.world.mounts() if point == pair.target("red")]) == 1
    pair.world.cli("down")
    pair.assert_as_before()


def test_everything_killed_at_once_is_repaired_from_beneath(pair: Pair) -> None:
    """Daemon, workers, keeper: the mounts are dead, and the next `up` makes them whole."""
    pair.world.cli("up")
    for pid, _ in pair.world.processes():
        os.kill(pid, signal.SIGKILL)
    poll(lambda: not pair.world.processes(), "they live")
    entry = find_mount(pair.target("red"))
    assert entry is not None
    poll(lambda: is_dead(entry), "somebody holds it")
    with watched(pair.target("red")) as bare:
        assert pair.world.cli("up").returncode == 0
    assert not bare and os.path.exists(f"{pair.target('red')}/big.bin")
    assert pair.mount("red")["mount_made_target"]
    pair.world.cli("down")
    pair.assert_as_before()


@pytest.mark.parametrize("option", [[], ["-l"]])
def test_what_somebody_unmounts_comes_back(pair: Pair, option: list[str]) -> None:
    pair.world.cli("up")
    before = pair.mount("red")["pid"]
    if option:
        with subprocess.Popen(["sleep", "60"], cwd=pair.target("red")) as holder:
            subprocess.run(["umount", *option, pair.target("red")], check=True)
            pair.until_replaced("red", before)
            holder.kill()
    else:
        subprocess.run(["umount", pair.target("red")], check=True)
        pair.until_replaced("red", before)
    assert os.path.exists(f"{pair.target('red')}/big.bin")
    pair.world.cli("down")
    pair.assert_as_before()


def test_given_up_callers_get_an_error_and_not_a_bare_directory(pair: Pair) -> None:
    pair.world.cli("up")
    for _ in range(6):
        pid: int = poll(lambda: pair.mount("red")["pid"], "no process", timeout_s=40)
        os.kill(pid, signal.SIGKILL)
        poll(partial(served_by_another, pair, pid), "it is not seen")
    poll(lambda: pair.state("red") == "failed", "it does not give up")
    done = subprocess.run(["ls", pair.target("red")], capture_output=True, text=True, timeout=10)
    assert done.returncode != 0 and "not connected" in done.stderr
    error = pair.mount("red")["last_error"]
    assert "killed by SIGKILL" in error["message"]
    assert pair.world.cli("up").returncode == 0 and os.path.exists(f"{pair.target('red')}/big.bin")
    pair.world.cli("down")
    pair.assert_as_before()


def test_without_a_keeper_the_next_daemon_takes_descriptors_back_from_the_workers(pair: Pair) -> None:
    pair.world.cli("up")
    readers = Readers(f"{pair.world.root}/red", pair.target("red"))
    try:
        readers.wait_until_ready()
        [keeper] = [pid for pid, _ in pair.world.processes() if "keeper.py" in command_line(pid)]
        pair.kill(pair.daemon())
        pair.kill(keeper)
        assert pair.world.cli("up").returncode == 0
        tally = readers.tally()
    finally:
        readers.kill()
    assert not tally["errors"] and not tally["wrong"]
    pair.world.cli("down")
    pair.assert_as_before()
