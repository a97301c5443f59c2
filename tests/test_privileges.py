"""What our processes may do, as the kernel says: capabilities, no new privileges, no cores, private files."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator

import pytest

from amlmount.privileges import Capability
from daemons import Pair, make_pair
from sandbox import Sandbox
from userbox import UserBox
from world import World

ROOT_ONLY = pytest.mark.root
LOCAL = {Capability.SYS_ADMIN, Capability.DAC_OVERRIDE, Capability.CHOWN, Capability.FOWNER, Capability.FSETID}
GIVE_UP = """
import json, subprocess
from amlmount.worker.process import give_up_privileges
give_up_privileges(["azure_blob"])
print(json.dumps([open("/proc/self/status").read(), subprocess.run(["cat", "/proc/self/status"], capture_output=True,
      text=True).stdout]))
"""


def fields(status: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)


def of_process(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:
        return fields(file.read())


def capabilities(found: dict[str, str], kind: str) -> set[int]:
    mask = int(found[kind], 16)
    return {number for number in range(64) if mask >> number & 1}


@pytest.fixture
def pair(world: World) -> Pair:
    return make_pair(world)


@ROOT_ONLY
def test_a_worker_keeps_what_serving_needs(pair: Pair) -> None:
    assert pair.world.cli("up").returncode == 0
    for pid in pair.workers():
        found = of_process(pid)
        assert capabilities(found, "CapEff") == capabilities(found, "CapBnd") == LOCAL
        assert found["NoNewPrivs"] == "1"
    for pid in [pair.daemon(), *pair.workers()]:
        with open(f"/proc/{pid}/limits") as file:
            [core] = [line for line in file if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["1", "1"]


@ROOT_ONLY
def test_what_it_gave_up_does_not_come_back_in_what_it_starts() -> None:
    done = subprocess.run([sys.executable, "-c", GIVE_UP], capture_output=True, text=True, check=True)
    for text in json.loads(done.stdout):
        found = fields(text)
        assert capabilities(found, "CapEff") == {Capability.SYS_ADMIN, Capability.DAC_OVERRIDE}
        assert capabilities(found, "CapBnd") == {Capability.SYS_ADMIN, Capability.DAC_OVERRIDE}
        assert found["NoNewPrivs"] == "1"


def test_an_ordinary_user_has_nothing_to_give_up(as_user: UserBox) -> None:
    done = as_user.run(sys.executable, "-c", GIVE_UP)
    found = fields(json.loads(done.stdout)[0])
    assert capabilities(found, "CapEff") == set() and found["NoNewPrivs"] == "1"


def everything_below(*folders: str) -> Iterator[str]:
    for folder in folders:
        for top, names, files in os.walk(folder):
            yield from (os.path.join(top, name) for name in [*names, *files])


def test_nothing_of_ours_can_be_read_by_others(pair: Pair, sandbox: Sandbox) -> None:
    """Run, state and cache directories, logs, journals, records, sockets; whatever the umask was."""
    before = os.umask(0)
    try:
        assert pair.world.cli("up").returncode == 0
    finally:
        os.umask(before)
    pair.world.cli("events"), pair.world.cli("check")
    folders = [pair.world.runtime_dir, pair.world.state_dir, pair.world.cache_root]
    found = {path: os.lstat(path).st_mode for path in [*folders, *everything_below(*folders)]}
    assert any(path.endswith("daemon.log") for path in found) and any(path.endswith("amlmount.sock") for path in found)
    assert {path: oct(mode) for path, mode in found.items() if mode & 0o077 and not stat.S_ISLNK(mode)} == {}
