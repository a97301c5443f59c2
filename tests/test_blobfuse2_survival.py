"""blobfuse2 mounts that outlive their daemon, their blobfuse2 and their definition, under who reads and writes them."""

import os
import signal
from pathlib import Path

import pytest

from daemons import poll
from drivers import Account, Driver, sh

pytestmark = pytest.mark.root


def daemon_of(account: Account) -> int:
    return int(Path(account.world.runtime_dir, "daemon.lock").read_text())


def test_a_daemon_that_is_killed_or_restarted_finds_its_mounts_again(driver: Driver, account: Account) -> None:
    account.container("data").put("a.txt", b"hello")
    account.configure(engine="blobfuse2", read_only=False)
    account.up()
    here, before = account.target("data"), account.status("data")
    with open(f"{here}/open.txt", "w") as file:
        file.write("one ")
        file.flush()
        os.kill(daemon_of(account), signal.SIGKILL)
        assert sh(f"cat {here}/a.txt") == "hello"
        account.up()
        assert account.status("data")["pid"] == before["pid"] and "adopted" in account.daemon_log()
        assert account.world.cli("restart", "--daemon").returncode == 0
        poll(lambda: account.status("data")["state"] == "mounted", "not there")
        assert account.status("data")["pid"] == before["pid"]
        file.write("two")
    account.down()
    assert account.opened["data"].get("open.txt") == b"one two"
    poll(lambda: not account.world.processes(), f"left: {account.world.processes()}")
    assert account.leftovers() == [] and account.world.mounts() == []
