"""A managed blobfuse2 from `up` to `down`, against Azurite: what the seed's scripts did, and what they could not do."""

import os
import signal
import stat
from pathlib import Path

import pytest

from amlmount.engines.base import ExitReason
from amlmount.engines.blobfuse2.served import count_oom_kills, oom_counter_of
from daemons import poll
from drivers import Account, Driver, fails_to_write, sh
from faulty_proxy import Proxy
from sandbox import start_time

pytestmark = pytest.mark.root


def test_two_containers_under_one_root_twice_over(driver: Driver, account: Account) -> None:
    data, clone = account.container("mnist-data"), account.container("mnist-clone")
    data.put("MNIST_FLAT/0 - zero/0.jpg", b"zero" * 100)
    account.configure(engine="blobfuse2", read_only=False)
    for turn in ("one", "two"):
        account.up()
        for name in ("mnist-data", "mnist-clone"):
            assert account.status(name)["engine"] == "blobfuse2"
            sh(f"echo {turn} of {name} > {account.target(name)}/{turn}.txt")
        assert sh(f"cat '{account.target('mnist-data')}/MNIST_FLAT/0 - zero/0.jpg'") == "zero" * 100
        sh(f"cp -r {account.target('mnist-data')}/MNIST_FLAT {account.target('mnist-clone')}/copy-{turn}")
        account.down()
        assert data.get(f"{turn}.txt") == f"{turn} of mnist-data\n".encode()
        assert clone.get(f"copy-{turn}/0 - zero/0.jpg") == b"zero" * 100
        poll(lambda: not account.world.processes(), "something still runs")
        assert account.world.mounts() == [] and account.leftovers() == []
    assert not os.path.lexists(f"{account.world.root}/mnt")


def test_killed_it_comes_back(driver: Driver, account: Account) -> None:
    account.container("data").put("a.txt", b"hello")
    account.configure(engine="blobfuse2")
    account.up()
    before = account.status("data")
    os.kill(before["pid"], signal.SIGKILL)
    after = account.until_replaced("data", before["pid"])
    assert after["restarts"] == 1
    assert sh(f"cat {account.target('data')}/a.txt") == "hello"
    account.down()
    assert account.leftovers() == []


def test_nothing_is_private_but_with_us_it_is(driver: Driver, account: Account) -> None:
    account.container("data").put("a.txt", b"hello")
    account.configure(engine="blobfuse2", read_only=False)
    account.up()
    sh(f"cat {account.target('data')}/a.txt; echo x > {account.target('data')}/b.txt")
    for place in account.leftovers():
        above = os.path.dirname(place)
        closed = [stat.S_IMODE(os.stat(above).st_mode) & 0o077 == 0]
        while above not in (account.world.root, "/"):
            above = os.path.dirname(above)
            closed.append(stat.S_IMODE(os.stat(above).st_mode) & 0o077 == 0)
        assert any(closed), f"others can reach {place}"
    pid = account.status("data")["pid"]
    assert b"AZURE_STORAGE" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert os.readlink(f"/proc/{pid}/cwd") == "/" and os.getsid(pid) == pid and start_time(pid)
    account.down()


def test_a_killed_daemons_blobfuse2_loses_nothing(driver: Driver, account: Account, proxy: Proxy) -> None:
    data = account.container("data")
    data.put("a.txt", b"hello")
    account.go_through(proxy)
    account.configure(engine="blobfuse2", read_only=False)
    account.up()
    daemon = account.world.cli_json("ps") and Path(account.world.runtime_dir, "daemon.lock").read_text()
    proxy.refuses = lambda method, path: method == "PUT"
    fails_to_write(f"{account.target('data')}/failed.txt", "precious")
    os.kill(int(daemon), signal.SIGKILL)
    proxy.refuses = lambda method, path: False
    account.up()
    assert sh(f"cat {account.target('data')}/a.txt") == "hello"
    poll(lambda: account.world.cli_json("ps")[0]["state"] == "mounted", "not back")
    account.down()
    poll(lambda: any(item.name == "failed.txt" for page in data.list() for item in page.objects), "not sent", 30)
    assert data.get("failed.txt") == b"precious"
    poll(lambda: account.leftovers() == [], f"left: {account.leftovers()}")


def test_running_out_of_memory_is_told_from_a_kill(tmp_path: Path) -> None:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    [path] = [line.split(":", 2)[2] for line in lines if line.startswith("0::")]
    folder = tmp_path / path.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.events").write_text("low 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n")
    counter = oom_counter_of(os.getpid(), str(tmp_path))
    assert counter is not None and count_oom_kills(counter) == 2 and count_oom_kills(None) == 0
    assert ExitReason(-9, "", out_of_memory=True).text == "killed by SIGKILL because memory ran out"
    assert ExitReason(-9).text == "killed by SIGKILL"
    assert ExitReason(-9, "2026-11-24 12:00:11,922 INFO amlmount.worker: serving\n").text == "killed by SIGKILL"
    assert ExitReason(1, "no\nwhat went wrong\n").text == "exited with 1: what went wrong"
