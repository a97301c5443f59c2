"""The Python engine with real workers and real mounts: start, stop, and everything that goes wrong in between."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from amlmount.engines import select_engine
from amlmount.engines.attaching import has_unread
from amlmount.engines.base import Running
from amlmount.engines.python import PythonEngine
from amlmount.errors import (
    AmlmountError,
    BusyError,
    ConfigError,
    ContainerNotFoundError,
    MountFailedError,
    WaitTimeoutError,
)
from amlmount.mounts import connection, syscalls
from amlmount.mounts.fusemount import unmount
from amlmount.mounts.paths import find_mount
from mounting import differences, ended, make_source, mounted_at, spec_of, until
from sandbox import Sandbox, command_line

T = TypeVar("T")


@pytest.fixture
def source(sandbox: Sandbox) -> str:
    return make_source(sandbox.make_dir("s"))


@pytest.fixture
def log_dir(sandbox: Sandbox) -> str:
    return sandbox.make_dir("log")


def run(make: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await make()

    return asyncio.run(bounded())


async def off_loop(call: Callable[[], T]) -> T:
    """Touch the mount from a thread, as a user of it would."""
    return await asyncio.to_thread(call)


async def start(engine: PythonEngine, source: str, target: str) -> Running:
    return await engine.start(spec_of(source, target), timeout_s=20)


def test_every_file_equals_its_source_and_stop_leaves_nothing(source: str, mountpoint: str) -> None:
    async def story() -> None:
        engine = PythonEngine()
        running = await start(engine, source, mountpoint)
        entry = find_mount(mountpoint)
        assert entry is not None and entry.mount_id == running.mount_id
        assert (entry.fstype, entry.source, entry.read_only) == ("fuse.amlmount", source, True)
        assert {"nosuid", "nodev"} <= set(entry.options)
        assert await off_loop(lambda: differences(source, mountpoint)) == []
        await engine.stop(running, lazy=False, timeout_s=10)
        assert not mounted_at(mountpoint)
        assert running.exited.result().returncode == 0
        assert running.fuse_fd == -1

    run(story)


def test_the_starter_keeps_the_descriptor_and_a_readable_process(source: str, mountpoint: str) -> None:
    async def story() -> None:
        engine = PythonEngine()
        running = await start(engine, source, mountpoint)
        assert os.readlink(f"/proc/self/fd/{running.fuse_fd}") == "/dev/fuse"
        assert not os.get_inheritable(running.fuse_fd)
        with open(f"/proc/{running.pid}/comm") as file:
            assert file.read().startswith("amlmount:")
        assert source not in command_line(running.pid)
        assert os.getsid(running.pid) == running.pid
        with open(f"/proc/{running.pid}/limits") as file:
            assert "Max core file size        1 " in file.read()
        assert not [fd for fd in os.listdir("/proc/self/fd") if _link(fd).startswith(mountpoint)]
        await engine.stop(running, lazy=False, timeout_s=10)

    run(story)


def _link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def test_an_idle_worker_is_small(source: str, mountpoint: str) -> None:
    async def story() -> None:
        engine = PythonEngine()
        running = await start(engine, source, mountpoint)
        await off_loop(lambda: differences(source, mountpoint))
        with open(f"/proc/{running.pid}/status") as file:
            rss_kib = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
        await engine.stop(running, lazy=False, timeout_s=10)
        assert rss_kib <= 60 * 1024

    run(story)


def test_a_store_that_is_not_there_is_never_mounted(source: str, mountpoint: str) -> None:
    spec = spec_of(source, mountpoint)
    missing = spec.sources[0].model_copy(update={"store": {"type": "local", "path": source + "/gone"}})
    seen: list[bool] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.append(mounted_at(mountpoint))

    async def story() -> None:
        with pytest.raises(ContainerNotFoundError):
            await PythonEngine().start(spec.model_copy(update={"sources": (missing,)}), timeout_s=20)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        run(story)
    finally:
        over.set()
        watcher.join()
    assert len(seen) > 10 and not any(seen)


def test_a_target_that_cannot_be_mounted_leaves_no_process(source: str, mountpoint: str) -> None:
    async def story() -> None:
        with pytest.raises(MountFailedError, match="cannot mount"):
            await start(PythonEngine(), source, mountpoint + "/missing")

    run(story)


def test_busy_names_the_holder(source: str, mountpoint: str) -> None:
    async def story() -> None:
        engine = PythonEngine()
        running = await start(engine, source, mountpoint)
        file = await off_loop(lambda: os.open(os.path.join(mountpoint, "big.bin"), os.O_RDONLY))
        with pytest.raises(BusyError) as caught:
            await engine.stop(running, lazy=False, timeout_s=10)
        assert str(os.getpid()) in caught.value.message
        assert mounted_at(mountpoint) and not running.exited.done()
        await off_loop(lambda: os.close(file))
        await engine.stop(running, lazy=False, timeout_s=10)

    run(story)


def test_a_lazy_stop_lets_go_and_what_is_open_can_be_read_to_its_end(source: str, mountpoint: str) -> None:
    async def story() -> None:
        engine = PythonEngine()
        running = await start(engine, source, mountpoint)
        file = await off_loop(lambda: os.open(os.path.join(mountpoint, "big.bin"), os.O_RDONLY))
        async with asyncio.timeout(1):
            await engine.stop(running, lazy=True, timeout_s=5)
        assert not mounted_at(mountpoint) and not running.exited.done() and os.listdir(mountpoint) == []
        with open(os.path.join(source, "big.bin"), "rb") as expected:
            assert await off_loop(lambda: os.pread(file, 300_000, 0)) == expected.read()
        await off_loop(lambda: os.close(file))
        async with asyncio.timeout(5):
            assert (await running.exited).returncode == 0

    run(story)


def test_a_killed_worker_is_seen_at_once_and_cleared_away(source: str, mountpoint: str, log_dir: str) -> None:
    async def story() -> None:
        engine = PythonEngine(log_dir=log_dir)
        running = await start(engine, source, mountpoint)
        os.kill(running.pid, signal.SIGKILL)
        async with asyncio.timeout(1):
            reason = await running.exited
        assert reason.returncode == -signal.SIGKILL and reason.text.startswith("killed by SIGKILL")
        assert "serving" in reason.log_tail
        entry = find_mount(mountpoint)
        assert entry is not None and not connection.is_dead(entry)  # our descriptor keeps it for a successor
        await engine.stop(running, lazy=False, timeout_s=10)
        assert not mounted_at(mountpoint)

    run(story)


@pytest.mark.root
@pytest.mark.parametrize("has_read_it", [False, True])
def test_a_stopped_worker_is_taken_down(source: str, mountpoint: str, has_read_it: bool) -> None:
    """SIGSTOP is the hang: a reader waits for an answer that never comes, and gets an error from `stop`.

    A worker may have read the request when it is stopped; here we read it in its stead.
    """
    failed: list[int | None] = []

    def read() -> None:
        try:
            os.listdir(os.path.join(mountpoint, "MNIST_FLAT"))
        except OSError as error:
            failed.append(error.errno)

    async def story() -> None:
        engine = PythonEngine()
        running = await start(engine, source, mountpoint)
        os.kill(running.pid, signal.SIGSTOP)
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        entry = find_mount(mountpoint)
        assert entry is not None
        await off_loop(lambda: until(lambda: connection.waiting(entry)))
        if has_read_it and has_unread(running.fuse_fd):
            await off_loop(lambda: os.read(running.fuse_fd, 2 << 20))
        await engine.stop(running, lazy=True, timeout_s=0.5)
        await off_loop(lambda: reader.join(5))
        assert not mounted_at(mountpoint) and running.exited.done()

    run(story)
    assert failed


def test_a_worker_that_does_not_answer_is_a_timeout(
    source: str, mountpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        with pytest.raises(WaitTimeoutError, match="within 0"):
            await PythonEngine().start(spec_of(source, mountpoint), timeout_s=0.01)

    run(story)
    assert not mounted_at(mountpoint)


@pytest.mark.parametrize("steps", range(0, 60, 3))
def test_cancelled_at_any_moment_leaves_nothing(source: str, mountpoint: str, steps: int) -> None:
    async def story() -> None:
        engine = PythonEngine()
        starting = asyncio.create_task(start(engine, source, mountpoint))
        await asyncio.sleep(steps * 0.01)
        starting.cancel()
        try:
            running = await starting
        except asyncio.CancelledError:
            return
        await engine.stop(running, lazy=False, timeout_s=10)

    run(story)
    assert not mounted_at(mountpoint)


STARTER = """
import asyncio, os, signal, sys
from amlmount.engines.python import PythonEngine
from mounting import spec_of

async def main():
    running = await PythonEngine(log_dir=sys.argv[3]).start(spec_of(sys.argv[1], sys.argv[2]), timeout_s=20)
    print(running.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_the_worker_outlives_its_killed_starter(source: str, mountpoint: str, log_dir: str) -> None:
    """The mount goes on without a daemon, and ends by itself when it is unmounted."""
    argv = [sys.executable, "-c", STARTER, source, mountpoint, log_dir]
    env = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    started = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert started.returncode == -signal.SIGKILL, started.stderr
    pidfd = os.pidfd_open(int(started.stdout))
    try:
        assert differences(source, mountpoint) == []
        unmount(mountpoint)
        assert ended(pidfd)
    finally:
        os.close(pidfd)
    [log] = os.listdir(log_dir)
    with open(os.path.join(log_dir, log)) as file:
        assert file.read().rstrip().endswith("ended: unmounted")
    assert os.stat(os.path.join(log_dir, log)).st_mode & 0o777 == 0o600


def test_a_store_that_vanishes_gives_errors_and_then_is_well_again(source: str, mountpoint: str) -> None:
    async def story() -> None:
        engine = PythonEngine()
        policy = spec_of(source, mountpoint).policy.model_copy(
            update={"attr_timeout_s": 0, "entry_timeout_s": 0, "list_ttl_s": 0, "keep_cache": False}
        )
        running = await engine.start(spec_of(source, mountpoint, policy=policy), timeout_s=20)
        os.rename(source, source + ".away")
        with pytest.raises(OSError) as caught:
            await off_loop(lambda: os.listdir(mountpoint))
        assert caught.value.strerror == "Input/output error"
        os.rename(source + ".away", source)
        assert await off_loop(lambda: differences(source, mountpoint)) == []
        await engine.stop(running, lazy=False, timeout_s=10)

    run(story)


def test_unmounted_by_somebody_else_is_a_clean_end(source: str, mountpoint: str) -> None:
    async def story() -> None:
        engine = PythonEngine()
        running = await start(engine, source, mountpoint)
        await off_loop(lambda: unmount(mountpoint))
        async with asyncio.timeout(5):
            reason = await running.exited
        assert reason.returncode == 0
        await engine.stop(running, lazy=False, timeout_s=5)

    run(story)


@pytest.mark.root
def test_something_mounted_on_top_is_said(source: str, mountpoint: str) -> None:
    async def story() -> None:
        engine = PythonEngine()
        running = await start(engine, source, mountpoint)
        syscalls.mount("cover", mountpoint, "tmpfs")
        with pytest.raises(BusyError, match="cover is mounted on top"):
            await engine.stop(running, lazy=False, timeout_s=5)
        syscalls.umount2(mountpoint)
        await engine.stop(running, lazy=False, timeout_s=5)

    run(story)


def test_a_mount_id_that_is_given_again_is_not_ours(source: str, mountpoint: str, sandbox: Sandbox) -> None:
    """The kernel reuses ids at once: stopping what has gone must not take down whoever has its id now."""

    async def story() -> None:
        engine = PythonEngine()
        gone = await start(engine, source, mountpoint)
        await off_loop(lambda: unmount(mountpoint))
        other = await start(engine, source, sandbox.make_dir("m"))
        gone.mount_id = other.mount_id
        await engine.stop(gone, lazy=False, timeout_s=5)
        assert mounted_at(other.spec.target)
        await engine.stop(other, lazy=False, timeout_s=5)

    run(story)


def test_a_worker_that_cannot_import_says_why(
    source: str, mountpoint: str, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    broken = sandbox.make_dir("p")
    with open(os.path.join(broken, "pydantic.py"), "w") as file:
        file.write("raise ImportError('planted')\n")
    monkeypatch.setenv("PYTHONPATH", broken)

    async def story() -> None:
        with pytest.raises(AmlmountError, match="planted"):
            await start(PythonEngine(), source, mountpoint)

    run(story)


@pytest.fixture(autouse=True)
def no_descriptor_is_lost() -> Iterator[None]:
    connection._own_fusectl()
    gc.collect()  # what tests before this one have left to it is closed now, not in the middle
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


AZURE = {"type": "azure_blob", "account_name": "account", "container_name": "data"}


def test_the_engine_is_chosen_and_the_reason_said(
    source: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = spec_of(source, "/nowhere")
    azure = local.model_copy(update={"sources": (local.sources[0].model_copy(update={"store": AZURE}),)})
    path = sandbox.make_dir("bin")
    monkeypatch.setenv("PATH", path)
    assert select_engine(local)[1] == "blobfuse2 mounts Azure storage only"
    engine, why = select_engine(azure)
    assert (engine.name, why) == ("python", "blobfuse2 is not installed")
    os.symlink("/bin/true", os.path.join(path, "blobfuse2"))
    assert select_engine(azure)[1] == f"cannot tell the version of '{path}/blobfuse2'"
    assert select_engine(azure.model_copy(update={"engine": "python"}))[1] == "asked for by name"
    for changes, said in (({"engine": "blobfuse2"}, "with blobfuse2"), ({"read_only": False}, "for writing")):
        with pytest.raises(ConfigError, match=said):
            select_engine(azure.model_copy(update=changes))
