"""The twelve traps for whoever wraps blobfuse2, each with the test that we are not caught in it."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from daemons import poll
from drivers import Account, Driver, Writers, sh
from faulty_proxy import Proxy

pytestmark = pytest.mark.root


@pytest.fixture
def mounted(driver: Driver, account: Account, proxy: Proxy) -> Account:
    """A writable mount `data`, reached through the proxy."""
    account.container("data").put("a.txt", b"hello")
    account.go_through(proxy)
    account.configure(engine="blobfuse2", read_only=False)
    account.up()
    return account


def config_of(account: Account, pid: int) -> dict[str, dict[str, object]]:
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    [path] = [word.removeprefix("--config-file=") for word in words if word.startswith("--config-file=")]
    return dict(yaml.safe_load(Path(path).read_text()))


def test_trap_01_mounted_is_what_the_kernel_says_and_a_probe_answers(mounted: Account) -> None:
    """Not the exit code: the mount table has it at its target, and killed it is not called mounted."""
    [line] = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " blobfuse2 " in line]
    assert line.split()[4] == mounted.target("data")
    pid = mounted.status("data")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        mounted.until_replaced("data", pid)
    finally:
        mounted.down()


def test_trap_01_a_binary_that_exits_0_and_serves_nothing_is_a_failure(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "blobfuse2"
    program.write_text('#!/bin/sh\ncase "$*" in *--version*) echo blobfuse2 version 2.5.6;; esac\nexit 0\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    account.container("data")
    account.configure(engine="blobfuse2")
    done = account.world.cli("up")
    assert done.returncode == 1 and "blobfuse2 exited with 0 and said nothing" in done.stderr
    assert account.world.mounts() == [] and account.leftovers() == []


def test_trap_02_it_is_never_signalled_only_unmounted(mounted: Account) -> None:
    """A SIGTERM would leave ENOTCONN: `down` ends it with exit code 0, and so does the end of the daemon."""
    pid = mounted.status("data")["pid"]
    status = Path(f"/proc/{pid}/status").read_text()
    assert os.getsid(pid) == pid and "SigCgt" in status
    trace = subprocess.Popen(["tail", f"--pid={pid}", "-f", "/dev/null"])
    sh(f"echo x > {mounted.target('data')}/new.txt")
    mounted.down()
    trace.wait(20)
    assert mounted.opened["data"].get("new.txt") == b"x\n"
    assert "killed" not in mounted.daemon_log()


def test_trap_03_no_cache_directory_is_ever_used_twice_or_shared(mounted: Account) -> None:
    first = config_of(mounted, mounted.status("data")["pid"])["file_cache"]["path"]
    assert os.stat(os.path.dirname(str(first))).st_mode & 0o077 == 0
    pid = mounted.status("data")["pid"]
    os.kill(pid, signal.SIGKILL)
    after = mounted.until_replaced("data", pid)
    second = config_of(mounted, after["pid"])["file_cache"]["path"]
    assert first != second and str(second).startswith(f"{mounted.world.state_dir}/blobfuse2/data/run-")
    mounted.down()


def test_trap_04_dirty_files_are_salvaged_after_a_crash(mounted: Account, writers: Writers) -> None:
    pid = mounted.status("data")["pid"]
    writers.open(f"{mounted.target('data')}/dirty.txt", "dirty")
    os.kill(pid, signal.SIGKILL)
    mounted.until_replaced("data", pid)
    writers.end()
    poll(lambda: "1 removed" in mounted.daemon_log(), "not looked through", 30)
    assert mounted.opened["data"].get("dirty.txt") == b"dirty"
    mounted.down()


def test_trap_05_a_new_mount_does_not_meet_the_old_daemon(mounted: Account, proxy: Proxy) -> None:
    """Lazily detached with a file open, the old one works on; the new one has a cache and files of its own."""
    old = mounted.status("data")["pid"]
    holder = subprocess.Popen(
        ["sh", "-c", f"exec 3> {mounted.target('data')}/late.txt; echo ready; read go; echo late >&3; exec 3>&-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
    mounted.world.cli("down", "--lazy")
    mounted.up()
    new = mounted.status("data")["pid"]
    assert new != old and os.path.exists(f"/proc/{old}")
    sh(f"echo now > {mounted.target('data')}/now.txt")
    holder.communicate(b"go\n", timeout=30)
    poll(lambda: not os.path.exists(f"/proc/{old}") or _is_zombie(old), "the old one stays", 30)
    assert sh(f"cat {mounted.target('data')}/now.txt") == "now\n" and mounted.status("data")["pid"] == new
    assert mounted.opened["data"].get("late.txt") == b"late\n"
    mounted.down()


def _is_zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


def test_trap_06_a_live_mount_is_never_detached_by_another_spelling(mounted: Account) -> None:
    """blobfuse2 never sees the target: it serves /dev/fd/N, and `up` twice changes nothing."""
    pid = mounted.status("data")["pid"]
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert mounted.target("data") not in words and any(re.fullmatch(r"/dev/fd/\d+", word) for word in words)
    mounted.configure({"data": {"source": "data", "target": mounted.target("./data/")}}, engine="blobfuse2")
    mounted.up()
    assert mounted.status("data")["pid"] == pid
    mounted.down()


def test_trap_07_a_store_that_cannot_be_reached_is_said_in_seconds(driver: Driver, account: Account) -> None:
    account.container("data")
    account.stores["data"] |= {"endpoint": f"http://127.0.0.1:9/{account.name}"}
    account.configure(engine="blobfuse2")
    begun = time.monotonic()
    done = account.world.cli("up", "--timeout", "8s")
    assert done.returncode in (6, 124) and time.monotonic() - begun < 20
    assert "cannot connect to 127.0.0.1 port 9" in done.stderr
    account.down()


def test_trap_08_the_environment_and_the_folder_do_not_win(
    driver: Driver, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.container("data").put("a.txt", b"hello")
    account.configure(engine="blobfuse2")
    stray = {"AZURE_STORAGE_ACCOUNT": "", "AZURE_STORAGE_ACCOUNT_CONTAINER": "other", "AZURE_STORAGE_AUTH_TYPE": "msi"}
    done = account.world.cli("up", env=stray)
    assert done.returncode == 0, done.stderr
    pid = account.status("data")["pid"]
    assert b"AZURE_STORAGE" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert sh(f"cat {account.target('data')}/a.txt") == "hello"
    bad = account.world.cli("config", "check")
    assert bad.returncode == 0
    account.configure(engine="blobfuse2", blobfuse2={"file_cache": {"max_size_mb": 5}})
    refused = account.world.cli("config", "check")
    assert refused.returncode == 2 and "max-size-mb" in refused.stderr + refused.stdout
    account.down()


def test_trap_09_the_configuration_is_replaced_whole_and_says_everything(mounted: Account) -> None:
    """A key that a reload would reset stands there; a rewrite is one rename, so that no empty file is ever read."""
    from amlmount.blobfuse2.table import SECTION_KEYS

    config = config_of(mounted, mounted.status("data")["pid"])
    for section in ("file_cache", "logging"):
        reset = {key.name for key in SECTION_KEYS[section] if key.reset}
        assert reset <= set(config[section]), section
    words = Path(f"/proc/{mounted.status('data')['pid']}/cmdline").read_text().split("\0")
    [path] = [word.removeprefix("--config-file=") for word in words if word.startswith("--config-file=")]
    assert os.listdir(os.path.dirname(path)) == ["blobfuse2.yaml"] and os.stat(path).st_mode & 0o777 == 0o600
    mounted.down()


def test_trap_10_a_probe_costs_nothing_and_names_cost_one_request(mounted: Account, proxy: Proxy) -> None:
    pid = mounted.status("data")["pid"]
    config = config_of(mounted, pid)
    assert config["azstorage"]["max-results-for-list"] == 5000 and config["file_cache"]["max-size-mb"]
    from amlmount.probes import probe_mounted

    before = proxy.requests.total()
    assert probe_mounted(mounted.target("data"), 10).ok
    assert proxy.requests.total() == before
    os.kill(pid, signal.SIGSTOP)
    try:
        assert probe_mounted(mounted.target("data"), 1).answer == "hung"
    finally:
        os.kill(pid, signal.SIGCONT)
    mounted.down()


def test_trap_11_a_replaced_blob_is_seen_whole_within_the_promised_time(driver: Driver, account: Account) -> None:
    data = account.container("data")
    data.put("a.txt", b"short")
    account.configure(engine="blobfuse2", policy={"attr_timeout": "4s", "entry_timeout": "1s"})
    account.up()
    path = f"{account.target('data')}/a.txt"
    assert sh(f"cat {path}") == "short"
    data.put("a.txt", b"very much longer than before")
    poll(lambda: sh(f"cat {path}") == "very much longer than before", "the old content is served", 15)
    account.down()


def test_trap_12_what_is_private_stays_private(mounted: Account) -> None:
    sh(f"cat {mounted.target('data')}/a.txt")
    found = [path for path in mounted.leftovers() if path.endswith("/a.txt")]
    assert found
    for place in [*found, f"{mounted.world.state_dir}/logs/data.log"]:
        above, closed = place, False
        while (above := os.path.dirname(above)) != mounted.world.root:
            closed |= os.stat(above).st_mode & 0o077 == 0
        assert closed, f"others can reach {place}"
    from azurite import KEY

    pid = mounted.status("data")["pid"]
    for text in (f"/proc/{pid}/cmdline", f"/proc/{pid}/environ"):
        assert KEY.encode() not in Path(text).read_bytes()
    logged = mounted.world.cli("logs", "data").stdout + mounted.daemon_log()
    assert KEY not in logged and json.dumps(KEY) not in logged
    mounted.down()
