"""A worker that dies while files are open in both ways: the successor knows, and nobody gets an error."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import ClassVar

import pytest

from amlmount.engines.base import Running
from amlmount.engines.python import PythonEngine
from amlmount.fuse.handles import Ledger, Open
from amlmount.session.source import resolve_source
from fakeblob import FakeBlobService
from remote_mounts import MIB, fill
from sandbox import Sandbox

BIG = bytes(range(256)) * (3 * MIB // 256)
# Opens a file, and at every line of its input reads a piece by that handle and all of it by a new one.
READER = """
import sys
first = open(sys.argv[1], "rb", 0)
for line in sys.stdin:
    first.seek(int(line))
    piece = first.read(1000)
    whole = open(sys.argv[1], "rb", 0).read()
    print(piece == whole[int(line):][:1000] == (bytes(range(256)) * 8)[int(line) % 256:][:1000], len(whole), flush=True)
"""


@pytest.fixture
def fake() -> Iterator[FakeBlobService]:
    service = FakeBlobService()
    fill(service, {"big.bin": BIG, "other.bin": BIG})
    yield service
    service.close()


class Reader:
    """A process that holds one file open."""

    all: ClassVar[set["Reader"]] = set()

    def __init__(self, path: str) -> None:
        argv = [sys.executable, "-c", READER, path]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.all.add(self)

    def ask(self, offset: int) -> str:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{offset}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def end(self) -> None:
        self._process.communicate(timeout=10)
        self.all.discard(self)

    def kill(self) -> None:
        self._process.kill()
        self.end()


def test_files_open_in_either_way_outlive_a_worker(fake: FakeBlobService, mountpoint: str, sandbox: Sandbox) -> None:
    spec = resolve_source(fake.definition(), mountpoint, read_only=True, profile="standard", engine="python")
    spec = spec.model_copy(update={"cache_dir": os.path.join(sandbox.make_dir("c"), "cache")})
    right = f"True {len(BIG)}\n"

    async def kill(engine: PythonEngine, running: Running) -> Running:
        os.kill(running.pid, signal.SIGKILL)
        await running.exited
        return await engine.take_over(running, timeout_s=20)

    async def story() -> None:
        engine = PythonEngine()
        running = await engine.start(spec, timeout_s=20)
        cached = Reader(f"{mountpoint}/other.bin")  # opened before anything of it is here
        assert await asyncio.to_thread(cached.ask, 5) == right
        passed = Reader(f"{mountpoint}/other.bin")
        through = Reader(f"{mountpoint}/big.bin")
        assert await asyncio.to_thread(through.ask, 7) == right
        await asyncio.to_thread(through.end)
        through = Reader(f"{mountpoint}/big.bin")  # whole by now: the kernel reads it by itself
        for number in range(3):
            for reader in (cached, passed, through):
                assert await asyncio.to_thread(reader.ask, 1000 * number) == right
            running = await kill(engine, running)
        late = Reader(f"{mountpoint}/big.bin")
        for reader in (late, cached, passed, through):
            assert await asyncio.to_thread(reader.ask, 70_000) == right
            await asyncio.to_thread(reader.end)
        assert not Reader.all
        await engine.stop(running, lazy=False, timeout_s=10)

    try:
        asyncio.run(asyncio.wait_for(story(), 60))
    finally:
        for reader in list(Reader.all):
            reader.kill()


def test_the_ledger_knows_what_is_open() -> None:
    memory = memoryview(bytearray(24 * 6))
    ledger = Ledger(memory)
    assert ledger.left() == []
    slots = [ledger.enter(100 + number, number, number % 2) for number in range(6)]
    assert slots == [1, 2, 3, 4, 5, 0], "no room is no error"
    ledger.strike(slots[1])
    ledger.strike(0)
    successor = Ledger(memory)
    assert successor.left() == [Open(100, 0, 0, 1), Open(102, 2, 0, 3), Open(103, 3, 1, 4), Open(104, 4, 0, 5)]
    assert successor.enter(200, 9, 7) == 2, "what is free is used first"
