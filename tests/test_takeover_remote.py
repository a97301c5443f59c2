"""Takeovers and swaps of mounts of a store that is not local: cache directory, passthrough, page cache."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from amlmount.config.spec import MountSpec
from amlmount.engines.base import Running
from amlmount.engines.python import PythonEngine
from amlmount.errors import AmlmountError
from amlmount.session.source import resolve_source
from fakeblob import FakeBlobService
from remote_mounts import MIB, fill, gets
from sandbox import Sandbox

T = TypeVar("T")
BIG = bytes(range(256)) * (9 * MIB // 256) + b"tail"
CONTENT = {f"set/{n:03d}.jpg": bytes([n]) * (500 + n) for n in range(100)} | {"big.bin": BIG}
# Holds the large file open and says, each time it is asked, whether what it reads is right.
HOLDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print("ready", flush=True)
for line in sys.stdin:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    again = os.open(sys.argv[1], os.O_RDONLY)
    data = os.pread(fd, 1 << 20, 3 << 20), os.pread(again, 1 << 20, 3 << 20)
    os.close(again)
    print(data[0] == data[1] == (bytes(range(256)) * 4096), flush=True)
"""


@pytest.fixture
def fake() -> Iterator[FakeBlobService]:
    service = FakeBlobService()
    fill(service, CONTENT)
    yield service
    service.close()


@pytest.fixture(params=["standard", "epochs", "fresh"])
def spec(request: pytest.FixtureRequest, fake: FakeBlobService, mountpoint: str, sandbox: Sandbox) -> MountSpec:
    found = resolve_source(fake.definition(), mountpoint, read_only=True, profile=request.param, engine="python")
    return found.model_copy(update={"cache_dir": os.path.join(sandbox.make_dir("c"), "cache")})


def run(make: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await make()

    return asyncio.run(bounded())


class Holder:
    """A process that has the large file open."""

    def __init__(self, target: str) -> None:
        pipe = subprocess.PIPE
        argv = [sys.executable, "-c", HOLDER, f"{target}/big.bin"]
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)

    async def says(self, expected: str) -> None:
        assert self._process.stdout
        said = await asyncio.wait_for(asyncio.to_thread(self._process.stdout.readline), 20)
        assert said.strip() == expected

    async def reads_right(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        await self.says("True")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


async def read_all(target: str) -> None:
    script = (
        "import os,sys\nfor top, _, names in os.walk(sys.argv[1]):\n"
        "    for name in names:\n        with open(os.path.join(top, name), 'rb') as file: file.read()\n"
    )
    argv = [sys.executable, "-c", script, target]
    await asyncio.to_thread(lambda: subprocess.run(argv, check=True, timeout=30))


def test_a_successor_has_the_cache_and_every_open_file(spec: MountSpec, fake: FakeBlobService) -> None:
    async def story() -> None:
        engine = PythonEngine()
        running = await engine.start(spec, timeout_s=20)
        await read_all(spec.target)
        holder = Holder(spec.target)
        try:
            await holder.says("ready")
            await holder.reads_right()
            asked = len(gets(fake))
            for _ in range(3):
                os.kill(running.pid, signal.SIGKILL)
                await running.exited
                running = await engine.take_over(running, timeout_s=20)
                await holder.reads_right()
                await read_all(spec.target)
            assert len(gets(fake)) - asked < 60, "what was on disk is read from there"
        finally:
            holder.close()
        await engine.stop(running, lazy=False, timeout_s=10)

    run(story)


async def has_cache(engine: PythonEngine, running: Running) -> bool:
    try:
        await engine.ask(running, "cache", {}, timeout_s=5)
    except AmlmountError:
        return False
    return True


@pytest.mark.root
def test_a_mount_that_replaces_another_takes_its_cache_when_that_is_done(spec: MountSpec) -> None:
    async def story() -> None:
        engine = PythonEngine()
        old = await engine.start(spec, timeout_s=20)
        await read_all(spec.target)
        holder = Holder(spec.target)
        try:
            await holder.says("ready")
            new = await engine.start_beneath(spec, timeout_s=20)
            await engine.stop(old, lazy=True, timeout_s=5)
            assert not await has_cache(engine, new)
            await read_all(spec.target)
            await holder.reads_right()
        finally:
            holder.close()
        async with asyncio.timeout(20):
            while not await has_cache(engine, new):
                await asyncio.sleep(0.1)
        await read_all(spec.target)
        await engine.stop(new, lazy=False, timeout_s=10)

    run(story)
