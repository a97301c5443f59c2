"""A worker that dies is replaced under its mount: callers wait, nobody gets an error, every byte is right."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from amlmount.engines.forkserver import ForkServer
from amlmount.engines.python import PythonEngine
from amlmount.errors import AmlmountError
from amlmount.fuse.negotiate import CAP_VARIABLE
from mounting import make_source, spec_of
from readers import Readers
from sandbox import Sandbox, command_line

T = TypeVar("T")
OLD_KERNEL, NEW_KERNEL = "34", ""


@pytest.fixture
def source(sandbox: Sandbox) -> str:
    return make_source(sandbox.make_dir("s"))


@pytest.fixture(params=[NEW_KERNEL, OLD_KERNEL], ids=["as it is", "5.15"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel as it is, and with everything newer than 5.15 switched off."""
    monkeypatch.setenv(CAP_VARIABLE, request.param)
    return str(request.param)


def run(make: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(90):
            return await make()

    return asyncio.run(bounded())


@asynccontextmanager
async def reading(source: str, mount: str) -> Any:
    readers = Readers(source, mount)
    try:
        await asyncio.to_thread(readers.wait_until_ready)
        yield readers
    finally:
        readers.kill()


def test_kills_under_readers(source: str, mountpoint: str, kernel: str) -> None:
    async def story() -> None:
        forks = ForkServer()
        engine = PythonEngine(forks=forks)
        running = await engine.start(spec_of(source, mountpoint), timeout_s=20)
        async with reading(source, mountpoint) as readers:
            for _ in range(12):
                await asyncio.sleep(0.05)
                os.kill(running.pid, signal.SIGKILL)
                assert (await running.exited).returncode == -signal.SIGKILL
                assert engine.can_take_over(running)
                running = await engine.take_over(running, timeout_s=20)
            tally = await asyncio.to_thread(readers.tally)
        await engine.stop(running, lazy=False, timeout_s=10)
        forks.close()
        assert not tally["errors"] and not tally["wrong"]
        assert sum(tally["done"].values()) > 300

    run(story)


def test_a_frozen_worker_is_found_and_replaced(source: str, mountpoint: str, kernel: str, sandbox: Sandbox) -> None:
    log_dir = sandbox.make_dir("log")

    async def story() -> None:
        engine = PythonEngine(log_dir=log_dir)
        running = await engine.start(spec_of(source, mountpoint), timeout_s=20)
        async with reading(source, mountpoint) as readers:
            for _ in range(20):
                await asyncio.sleep(0.02)
                assert not engine.is_hung(running), "busy is not hung"
            os.kill(running.pid, signal.SIGSTOP)
            while not engine.is_hung(running):
                await asyncio.sleep(0.05)
            old, running = running, await engine.take_over(running, timeout_s=20)
            assert (await old.exited).returncode == -signal.SIGKILL
            await asyncio.sleep(0.2)
            tally = await asyncio.to_thread(readers.tally)
        await engine.stop(running, lazy=False, timeout_s=10)
        assert not tally["errors"] and not tally["wrong"]

    run(story)


def test_a_worker_that_hangs_writes_down_where(source: str, mountpoint: str, sandbox: Sandbox) -> None:
    log_dir = sandbox.make_dir("log")

    async def story() -> None:
        engine = PythonEngine(log_dir=log_dir)
        running = await engine.start(spec_of(source, mountpoint), timeout_s=20)
        old, running = running, await engine.take_over(running, timeout_s=20)
        assert (await old.exited).returncode == -signal.SIGABRT
        await engine.stop(running, lazy=False, timeout_s=10)

    run(story)
    [log] = os.listdir(log_dir)
    with open(os.path.join(log_dir, log)) as file:
        assert "session.py" in file.read()


def test_the_store_may_be_away_meanwhile(source: str, mountpoint: str) -> None:
    """What was listed is known, and what was open is open, when the store comes back."""

    async def story() -> None:
        engine = PythonEngine()
        running = await engine.start(spec_of(source, mountpoint), timeout_s=20)
        names = await asyncio.to_thread(lambda: sorted(os.listdir(mountpoint)))
        script = "import os,sys; f=open(sys.argv[1],'rb',0); print(f.read(9)); input(); print(f.read(9)); f.close()"
        pipe = subprocess.PIPE
        argv = [sys.executable, "-c", script, os.path.join(mountpoint, "big.bin")]
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as reader:
            assert reader.stdout
            first = await asyncio.to_thread(reader.stdout.readline)
            os.rename(source, source + ".away")
            os.kill(running.pid, signal.SIGKILL)
            await running.exited
            running = await engine.take_over(running, timeout_s=20)
            assert await asyncio.to_thread(lambda: sorted(os.listdir(mountpoint))) == names
            os.rename(source + ".away", source)
            second, _ = await asyncio.to_thread(lambda: reader.communicate("\n", timeout=10))
        assert (first, second) == (f"{bytes(range(9))!r}\n", f"{bytes(range(9, 18))!r}\n")
        await engine.stop(running, lazy=False, timeout_s=10)

    run(story)


def test_what_is_gone_cannot_be_taken_over(source: str, mountpoint: str) -> None:
    async def story() -> None:
        engine = PythonEngine()
        running = await engine.start(spec_of(source, mountpoint), timeout_s=20)
        await engine.stop(running, lazy=False, timeout_s=10)
        assert not engine.can_take_over(running)

    run(story)


def test_a_takeover_that_fails_leaves_the_mount_as_it_was(
    source: str, mountpoint: str, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    broken = sandbox.make_dir("p")
    Path(broken, "pydantic.py").write_text("raise ImportError('planted')\n")

    async def story() -> None:
        engine = PythonEngine()
        running = await engine.start(spec_of(source, mountpoint), timeout_s=20)
        os.kill(running.pid, signal.SIGKILL)
        await running.exited
        monkeypatch.setenv("PYTHONPATH", broken)
        with pytest.raises(AmlmountError, match="planted"):
            await engine.take_over(running, timeout_s=20)
        monkeypatch.delenv("PYTHONPATH")
        assert engine.can_take_over(running)
        running = await engine.take_over(running, timeout_s=20)
        assert await asyncio.to_thread(lambda: os.path.exists(f"{mountpoint}/big.bin"))
        await engine.stop(running, lazy=False, timeout_s=10)

    run(story)


@pytest.mark.parametrize("steps", range(0, 30, 3))
def test_a_takeover_given_up_at_any_moment_can_be_tried_again(source: str, mountpoint: str, steps: int) -> None:
    async def story() -> None:
        forks = ForkServer()
        engine = PythonEngine(forks=forks)
        running = await engine.start(spec_of(source, mountpoint), timeout_s=20)
        os.kill(running.pid, signal.SIGKILL)
        await running.exited
        taking = asyncio.create_task(engine.take_over(running, timeout_s=20))
        await asyncio.sleep(steps * 0.001)
        taking.cancel()
        try:
            running = await taking
        except asyncio.CancelledError:
            running = await engine.take_over(running, timeout_s=20)
        assert await asyncio.to_thread(lambda: os.path.exists(f"{mountpoint}/big.bin"))
        await engine.stop(running, lazy=False, timeout_s=10)
        forks.close()

    run(story)


class TestForkServer:
    """Workers by fork."""

    def test_a_worker_has_a_name_of_its_own_and_the_server_may_die(self, source: str, mountpoint: str) -> None:
        async def story() -> None:
            forks = ForkServer()
            engine = PythonEngine(forks=forks)
            running = await engine.start(spec_of(source, mountpoint), timeout_s=20)
            assert command_line(running.pid).split() == ["amlmount.worker", running.spec.name]
            assert os.getsid(running.pid) == running.pid
            assert forks._process
            os.kill(forks._process.pid, signal.SIGKILL)
            os.kill(running.pid, signal.SIGKILL)
            await running.exited
            running = await engine.take_over(running, timeout_s=20)
            await engine.stop(running, lazy=False, timeout_s=10)
            assert (await running.exited).returncode == 0
            forks.close()

        run(story)

    def test_workers_outlive_it(self, source: str, mountpoint: str) -> None:
        async def story() -> None:
            forks = ForkServer()
            engine = PythonEngine(forks=forks)
            running = await engine.start(spec_of(source, mountpoint), timeout_s=20)
            forks.close()
            await asyncio.sleep(0.2)
            assert await asyncio.to_thread(lambda: os.path.exists(f"{mountpoint}/big.bin"))
            await engine.stop(running, lazy=False, timeout_s=10)

        run(story)
