"""A daemon that ends sends first what was written, for as long as something moves, and asks for the time that takes."""

import asyncio
import os
import signal
from typing import Any

import pytest
import yaml

from amlmount.config.spec import MountSpec
from amlmount.daemon.draining import drain
from amlmount.errors import AmlmountError
from daemons import poll
from fake_engine import spec_named
from fakeblob import Asked, FakeBlobService
from world import World


class Sending:
    """Mounts of which `a` has so much to send; `moves`: each question finds it less."""

    def __init__(self, left: int, *, moves: bool, uploads: int = 0) -> None:
        self.left, self.moves, self.uploads, self.asked = left, moves, uploads, 0

    def mounted(self) -> list[MountSpec]:
        return [spec_named(name).model_copy(update={"read_only": name == "r"}) for name in ("a", "b", "r")]

    async def ask(self, name: str, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        assert name != "r", "nothing was written through it"
        if name == "b":
            raise AmlmountError("cannot ask 'b': the blobfuse2 engine answers no questions")
        await asyncio.sleep(0.01)
        self.asked += 1
        if what == "stats":
            self.uploads += self.moves
            return {"store": {"uploads": {"count": self.uploads}}}
        self.left -= self.moves
        return {"is_done": self.left == 0, "dirty_files": 1, "dirty_bytes": self.left, "trouble": ""}


def test_as_long_as_something_moves() -> None:
    mounts, told = Sending(20, moves=True), list[str]()
    asyncio.run(drain(mounts, told.append, stalled_after_s=0.1))
    assert mounts.left == 0 and told.count("EXTEND_TIMEOUT_USEC=60000000") >= 20


def test_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    mounts = Sending(20, moves=False)
    asyncio.run(drain(mounts, lambda _: None, stalled_after_s=0.1))
    assert mounts.left == 20 and 4 <= mounts.asked < 60
    assert "a: 20 bytes of 1 files are not in the store (nothing moves); they are kept" in caplog.text


def test_a_daemon_that_is_stopped_sends_first(world: World) -> None:
    """The store refuses for a moment: closed at once, what was written would wait for the next start."""
    service = FakeBlobService()
    try:
        definition = service.definition(credentials={"account_key": {"env": "KEY"}})
        mount = {"target": f"{world.root}/mnt", "source": "data", "read_only": False, "durability": "journal"}
        world.write_config(yaml.safe_dump({"stores": {"data": definition}, "mounts": {"data": mount}}))
        done = world.cli("up", env={"KEY": "a2V5"})
        assert done.returncode == 0, done.stderr
        service.fail("status", 3, when=_is_upload, status=503, code="ServerBusy")
        with open(f"{world.root}/mnt/new.txt", "w") as file:
            file.write("written just before the end")
        [daemon] = [pid for pid, _ in world.processes() if _is_daemon(pid)]
        os.kill(daemon, signal.SIGTERM)
        poll(lambda: not world.processes(), "it does not end")
        assert service.containers["data"]["new.txt"].data == b"written just before the end"
    finally:
        service.close()


def _is_upload(asked: Asked) -> bool:
    return asked.method == "PUT"


def _is_daemon(pid: int) -> bool:
    with open(f"/proc/{pid}/cmdline") as file:
        return "\0daemon\0" in file.read()
