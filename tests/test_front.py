"""The overlay in front of a pinned mount: one with it in everything, and as fast for Python's open() as a disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amlmount.mounts import find_mount, is_dead, waiting
from daemons import CONFIG, Pair, make_pair, poll
from mounting import differences, make_source
from readers import Readers
from world import World

pytestmark = pytest.mark.root


@pytest.fixture
def pair(world: World) -> Pair:
    """`red` is an `epochs` mount with a front, `blue` a plain one."""
    made = make_pair(world)
    make_source(f"{world.root}/red")
    configure(made)
    return made


def configure(pair: Pair, more: str = "") -> None:
    text = CONFIG.format(root=pair.world.root)
    pair.world.write_config(text.replace("source: red}", f"source: red, profile: epochs{more}}}"))


def fstype(pair: Pair, name: str = "red") -> str:
    entry = find_mount(pair.target(name))
    return entry.fstype if entry else "nothing"


def test_it_is_there_for_epochs_and_goes_with_its_mount(pair: Pair) -> None:
    assert pair.world.cli("up").returncode == 0
    assert (fstype(pair), fstype(pair, "blue")) == ("overlay", "fuse.amlmount")
    entry = find_mount(pair.target("red"))
    assert entry is not None and entry.source == f"{pair.world.root}/red" and entry.read_only
    assert is_dead(entry) is False and waiting(entry) == 0
    assert len(pair.world.mounts()) == 2, "what is below it is nowhere to be seen"
    assert differences(f"{pair.world.root}/red", pair.target("red")) == []
    pair.world.cli("down")
    pair.assert_as_before()


@pytest.mark.parametrize("more", [", front: none", ", policy: {pinned: false, no_open: false}"])
def test_where_it_is_not_wanted_or_would_do_harm(pair: Pair, more: str) -> None:
    configure(pair, more)
    pair.world.cli("up", "red")
    assert fstype(pair) == "fuse.amlmount"
    pair.world.cli("down")


def test_python_opens_files_without_asking_us(pair: Pair) -> None:
    """The second epoch is no request at all: the pulse of the worker stands still."""
    pair.world.cli("up", "red")
    script = (
        "import os,sys\n"
        "for top, _, names in os.walk(sys.argv[1]):\n"
        "    for name in names:\n"
        "        path = os.path.join(top, name).replace(sys.argv[1], sys.argv[2])\n"
        "        with open(path, 'rb') as file:\n"
        "            file.read()\n"
    )
    argv = [sys.executable, "-c", script, f"{pair.world.root}/red", pair.target("red")]
    subprocess.run(argv, check=True, timeout=30)
    subprocess.run(argv, check=True, timeout=30)
    os.kill(pair.mount("red")["pid"], signal.SIGSTOP)
    subprocess.run(argv, check=True, timeout=2)
    os.kill(pair.mount("red")["pid"], signal.SIGCONT)
    pair.world.cli("down")


def test_another_daemons_front_is_no_concern_of_it(pair: Pair, tmp_path: Path) -> None:
    """As after the quickstart: its mount is still there, and this one leaves nothing behind all the same."""
    for name in ("amlmount-front/x.99", "amlmount-front/empty", "target"):
        (tmp_path / name).mkdir(parents=True)
    lower = f"lowerdir={tmp_path}/amlmount-front/x.99:{tmp_path}/amlmount-front/empty"
    subprocess.run(["mount", "-t", "overlay", "-o", f"ro,{lower}", "other", tmp_path / "target"], check=True)
    try:
        pair.world.cli("up")
        assert fstype(pair) == "overlay"
        pair.world.cli("down")
        pair.assert_as_before()
        assert (tmp_path / "amlmount-front/empty").is_dir()
    finally:
        subprocess.run(["umount", "-l", tmp_path / "target"], check=True)


def test_busy_is_judged_on_it_and_lazy_lets_go_of_both(pair: Pair) -> None:
    pair.world.cli("up")
    with subprocess.Popen(["sleep", "60"], cwd=f"{pair.target('red')}/MNIST_FLAT") as holder:
        try:
            busy = pair.world.cli("down", "red", "-o", "json")
            assert busy.returncode == 8
            [found] = json.loads(busy.stderr.splitlines()[-1])["error"]["details"]["holders"]
            assert found["pid"] == holder.pid
            assert pair.world.cli("down", "--lazy").returncode == 0
            assert len(pair.workers()) == 1 and not pair.world.mounts()
        finally:
            holder.kill()
    pair.assert_as_before()


def test_swaps_crashes_and_daemons_that_come_and_go_under_readers(pair: Pair) -> None:
    pair.world.cli("up")
    readers = Readers(f"{pair.world.root}/red", pair.target("red"))
    try:
        readers.wait_until_ready()
        for _ in range(2):
            assert pair.world.cli("restart", "red").returncode == 0
            pid = pair.mount("red")["pid"]
            pair.kill(pid)
            pair.until_replaced("red", pid)
            pair.kill(pair.daemon())
            assert pair.world.cli("up").returncode == 0
        tally = readers.tally()
    finally:
        readers.kill()
    assert not tally["errors"] and not tally["wrong"]
    assert fstype(pair) == "overlay"
    poll(lambda: len(pair.workers()) == 2, "old workers stay")
    pair.world.cli("down")
    pair.assert_as_before()


def test_refresh_shows_what_has_changed(pair: Pair) -> None:
    pair.world.cli("up", "red")
    root, target = pair.world.root, pair.target("red")
    assert sorted(os.listdir(target)) == sorted(os.listdir(f"{root}/red"))
    with open(f"{target}/big.bin", "rb") as old:
        content = old.read()
        with open(f"{root}/red/big.bin", "wb") as file:
            file.write(b"new")
        os.rename(f"{root}/red/empty", f"{root}/red/renamed")
        [found] = pair.world.cli_json("refresh", "red")
        assert (found["added"], found["removed"], found["changed"]) == (1, 1, 1)
        assert os.pread(old.fileno(), len(content), 0) == content, "who has it open goes on with the old version"
    assert differences(f"{root}/red", target) == []
    pid = pair.mount("red")["pid"]
    assert pair.world.cli_json("refresh", "red")[0]["changed"] == 0
    assert pair.mount("red")["pid"] == pid, "nothing has changed: nothing is replaced"
    pair.world.cli("down")
    pair.assert_as_before()
