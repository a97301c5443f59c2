"""blobfuse2 mounts that outlive their daemon, their blobfuse2 and their definition, under who reads and writes them."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amlmount.engines.blobfuse2.promises import limits
from amlmount.errors import BusyError
from amlmount.fuse.negotiate import CAP_VARIABLE
from benchmarks.users import content
from daemons import poll
from drivers import Account, Driver, sh
from mounting import mounted_at, spec_of
from readers import Readers, User
from sandbox import start_time
from standin.install import install_standin
from test_blobfuse2_engine import ground, left_in, make_engine

pytestmark = pytest.mark.root
__all__ = ["ground"]  # a fixture


def daemon_of(account: Account) -> int:
    return int(Path(account.world.runtime_dir, "daemon.lock").read_text())


@pytest.fixture
def users() -> Iterator[list[Readers]]:
    """Processes that use mounts; ended whatever happens."""
    made: list[Readers] = []
    yield made
    for user in made:
        user.kill()


def fill(account: Account, folder: str) -> None:
    """Fill a container and a folder with the same files."""
    data = account.container("data")
    os.makedirs(f"{folder}/class")
    for number in range(12):
        Path(folder, "class", f"{number}.jpg").write_bytes(bytes([number]) * 700)
    for name in ("a.bin", "b.bin"):
        Path(folder, name).write_bytes(b"".join(b"%s%06d" % (name.encode(), index) for index in range(60_000)))
    for top, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(top, name)
            data.put(f"tree/{os.path.relpath(path, folder)}", Path(path).read_bytes())


@pytest.mark.parametrize("kernel", ["as it is", "as 5.15"])
def test_killed_under_readers_and_a_writer(
    kernel: str,
    driver: Driver,
    account: Account,
    users: list[Readers],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, here = f"{tmp_path}/source", account.target("data")
    fill(account, source)
    account.configure(engine="blobfuse2", read_only=False)
    env = {} if kernel == "as it is" else {CAP_VARIABLE: "34"}
    done = account.world.cli("up", env=env)
    assert done.returncode == 0, done.stderr
    sh(f"mkdir {here}/out")
    reader = Readers(source, f"{here}/tree", threads=2) if kernel == "as it is" else User("open", f"{here}/tree")
    users += [reader, User("poll", here), *([User("write", here, "out")] if kernel == "as it is" else [])]
    for user in users:
        user.wait_until_ready()
    for _ in range(2 if kernel == "as it is" else 1):
        pid = account.status("data")["pid"]
        os.kill(pid, signal.SIGKILL)
        account.until_replaced("data", pid)
    time.sleep(1)
    seen, polled, *written = [user.tally() for user in users]
    assert polled["bare"] == 0 and polled["looks"] > 20
    if kernel == "as it is":
        assert not polled["errors"] and not seen["errors"] and not seen["wrong"] and sum(seen["done"].values()) > 20
        assert not written[0]["errors"] and len(written[0]["closed"]) > 3
        poll(lambda: all_whole(account, written[0]["closed"]), "not all in the store")
    else:
        assert seen["opens"] > 5
        assert all("not connected" in error or "abort" in error for error in seen["errors"]), seen["errors"]
    account.down()
    poll(lambda: not account.world.processes(), f"left: {account.world.processes()}")
    poll(lambda: not unsent(account), f"left: {unsent(account)}")
    assert account.world.mounts() == []


def unsent(account: Account) -> list[str]:
    """Return what lies in caches that were set aside, but for cut downloads in their trash."""
    return [path for path in account.leftovers() if re.search("/aside-[^/]+/data/", path)]


def all_whole(account: Account, names: list[str]) -> bool:
    """Say whether all these files are in the store as they were written."""
    data = account.opened["data"]
    there = {item.name for page in data.list("out/") for item in page.objects}
    return all(f"out/{name}" in there and data.get(f"out/{name}") == content(name) for name in names)


def test_a_reload_under_readers_leaves_no_gap_and_the_old_one_ends_by_itself(
    driver: Driver, account: Account, users: list[Readers], tmp_path: Path
) -> None:
    source, here = f"{tmp_path}/source", account.target("data")
    fill(account, source)
    account.configure(engine="blobfuse2")
    account.up()
    users += [Readers(source, f"{here}/tree", threads=2), User("open", f"{here}/tree"), User("poll", here)]
    for user in users:
        user.wait_until_ready()
    old = account.status("data")["pid"]
    key = f"{account.key_file}.new"
    shutil.copy(account.key_file, key)
    account.stores["data"]["credentials"] = {"account_key": {"file": key}}
    account.configure(engine="blobfuse2", blobfuse2={"libfuse": {"entry-expiration-sec": 30}})
    planned = account.world.cli_json("reload", "--dry-run")
    assert planned[0]["gap"] is None, planned
    done = account.world.cli("reload")
    assert done.returncode == 0, done.stderr
    assert account.status("data")["pid"] != old
    seen, opened, polled = [user.tally() for user in users]
    assert not seen["errors"] and not seen["wrong"] and not opened["errors"] and not polled["errors"]
    assert polled["bare"] == 0 and opened["opens"] > 20 and sum(seen["done"].values()) > 20
    poll(lambda: not start_time(old), "the old one stays")
    account.down()
    poll(lambda: not account.world.processes(), f"left: {account.world.processes()}")
    assert account.leftovers() == [] and account.world.mounts() == []


def test_one_that_hangs_is_replaced(driver: Driver, account: Account, tmp_path: Path) -> None:
    account.container("data").put("a.txt", b"hello")
    account.configure(engine="blobfuse2")
    account.up()
    pid = account.status("data")["pid"]
    with open(f"{account.target('data')}/a.txt") as held:
        os.kill(pid, signal.SIGSTOP)
        assert sh(f"cat {account.target('data')}/a.txt; ls {account.target('data')}") == "helloa.txt\n"
        assert account.status("data")["pid"] != pid and held.read() == "hello"
    account.down()
    poll(lambda: not account.world.processes(), f"left: {account.world.processes()}")


def test_what_a_mount_does_not_get_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("/", "/m", engine="blobfuse2")
    blocks = spec.model_copy(update={"read_only": False, "blobfuse2": {"block_cache": {"block-size-mb": 8}}})
    assert limits(spec) == []
    monkeypatch.setenv(CAP_VARIABLE, "39")
    assert "before Linux 6.9" in limits(spec)[0]
    monkeypatch.setenv(CAP_VARIABLE, "34")
    assert "before Linux 6.5" in limits(spec)[0]
    assert any("open writers" in phrase for phrase in limits(blocks))


HOLDER = """
import os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(file, b"one ")
seen = os.open(sys.argv[2], os.O_RDONLY) if len(sys.argv) > 2 else -1
os.chdir(os.path.dirname(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    os.write(file, b"two")
    os.close(file)
    print("closed", os.pread(seen, 5, 0).decode() if seen >= 0 else "")
except OSError as error:
    print(error.strerror, os.pread(seen, 5, 0).decode())
if seen >= 0:
    print(" ".join(sorted(os.listdir("."))))
"""


@pytest.fixture
def holder() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a process that holds a file open for writing, and another for reading, and works in the mount."""
    made: list[subprocess.Popen[str]] = []

    def start(*paths: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        made.append(subprocess.Popen([sys.executable, "-c", HOLDER, *paths], stdin=pipe, stdout=pipe, text=True))
        assert made[-1].stdout and made[-1].stdout.readline() == "ready\n"
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate(timeout=30)


def test_a_daemon_that_is_killed_or_restarted_finds_its_mounts_again(
    driver: Driver, account: Account, holder: Callable[..., "subprocess.Popen[str]"]
) -> None:
    account.container("data").put("a.txt", b"hello")
    account.configure(engine="blobfuse2", read_only=False)
    account.up()
    here, before = account.target("data"), account.status("data")["pid"]
    writer = holder(f"{here}/open.txt", f"{here}/a.txt")
    os.kill(daemon_of(account), signal.SIGKILL)
    assert sh(f"cat {here}/a.txt") == "hello"
    account.up()
    assert account.status("data")["pid"] == before and "adopted" in account.daemon_log()
    assert account.world.cli("restart", "--daemon").returncode == 0
    poll(lambda: account.status("data")["state"] == "mounted", "not there")
    assert account.status("data")["pid"] == before
    for pid in (before, daemon_of(account)):  # both at once
        os.kill(pid, signal.SIGKILL)
    account.up()
    assert account.until_replaced("data", before)
    assert writer.communicate("\n", timeout=30)[0] == "closed hello\na.txt open.txt\n"
    assert account.opened["data"].get("open.txt") == b"one two"
    account.down()
    poll(lambda: not account.world.processes(), f"left: {account.world.processes()}")
    assert account.leftovers() == [] and account.world.mounts() == []


def test_one_that_dies_after_its_mount_was_let_go_of_loses_nothing(
    driver: Driver, ground: str, mountpoint: str, holder: Callable[..., "subprocess.Popen[str]"]
) -> None:
    async def story() -> None:
        engine = make_engine(ground)
        spec = spec_of(f"{ground}/src", mountpoint, read_only=False, engine="blobfuse2")
        running = await engine.start(spec, timeout_s=30)
        writer = await asyncio.to_thread(holder, f"{mountpoint}/b.txt")
        await engine.stop(running, lazy=True, timeout_s=0.2)
        os.kill(running.pid, signal.SIGKILL)
        await running.exited
        said, _ = await asyncio.to_thread(writer.communicate, "\n", 30)
        assert said == "closed \n"
        assert Path(ground, "src", "b.txt").read_bytes() == b"one two"
        assert not mounted_at(mountpoint) and os.listdir(mountpoint) == []
        await asyncio.to_thread(poll, lambda: left_in(ground) == [], "files are left")

    asyncio.run(story())


def test_block_cache_keeps_readers_and_tells_open_writers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ground: str,
    mountpoint: str,
    holder: Callable[..., "subprocess.Popen[str]"],
) -> None:
    monkeypatch.setenv("PATH", f"{install_standin(tmp_path / 'bin').folder}:{os.environ['PATH']}")

    async def story() -> None:
        engine = make_engine(ground)
        spec = spec_of(f"{ground}/src", mountpoint, read_only=False, engine="blobfuse2")
        spec = spec.model_copy(update={"blobfuse2": {"block_cache": {"block-size-mb": 1, "mem-size-mb": 64}}})
        running = await engine.start(spec, timeout_s=30)
        user = await asyncio.to_thread(holder, f"{mountpoint}/b.txt", f"{mountpoint}/a.txt")
        os.kill(running.pid, signal.SIGKILL)
        await running.exited
        assert engine.can_take_over(running)
        successor = await engine.take_over(running, timeout_s=30)
        assert successor.pid != running.pid and successor.mount_id != running.mount_id and running.fuse_fd == -1
        said, _ = await asyncio.to_thread(user.communicate, "\n", 30)
        assert said.startswith("Input/output error hello\n") and "a.txt" in said
        async with asyncio.timeout(20):
            while mounted_at(mountpoint):
                with contextlib.suppress(BusyError):  # until the kernel has told of the last close
                    await engine.stop(successor, lazy=False, timeout_s=20)

    asyncio.run(story())
