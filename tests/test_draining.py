"""A daemon that ends sends first what was written, for as long as something moves, and asks for the time that takes."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlmount.config.spec import MountSpec
from amlmount.daemon import draining
from amlmount.daemon.draining import drain
from amlmount.errors import AmlmountError
from daemons import poll
from fake_engine import spec_named
from fakeblob import Asked, FakeBlobService
from world import World


class Sending:
    """Mounts of which `a` has files to send; `advance` is what happens from one question to the next."""

    def __init__(self, files: int, advance: Callable[["Sending"], None] = lambda mounts: None) -> None:
        self.found: dict[str, Any] = {"dirty_files": files, "dirty_bytes": files * 100, "trouble": ""}
        self.found |= {"sent_files": 0, "sent_bytes": 0}
        self.asked, self._advance = 0, advance

    def mounted(self) -> list[MountSpec]:
        return [spec_named(name).model_copy(update={"read_only": name == "r"}) for name in ("a", "b", "r")]

    async def ask(self, name: str, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        assert name != "r", "nothing was written through it"
        if name == "b":
            raise AmlmountError("cannot ask 'b': the blobfuse2 engine answers no questions")
        await asyncio.sleep(0.01)
        self.asked += 1
        self._advance(self)
        return dict(self.found)


def one_file_less(mounts: Sending) -> None:
    mounts.found["dirty_files"] -= 1
    mounts.found["sent_files"] += 1


def one_file_in_pieces(mounts: Sending) -> None:
    """A large one: nothing is in the store before its last byte is."""
    mounts.found["sent_bytes"] += 5
    mounts.found["dirty_files"] = int(mounts.found["sent_bytes"] < 100)


def refused_again_and_again(mounts: Sending) -> None:
    """What was sent is not taken, each time."""
    mounts.found |= {"sent_bytes": mounts.asked % 2 * 100, "trouble": "cannot write: access was refused"}


def one_comes_for_each_that_goes(mounts: Sending) -> None:
    mounts.found["sent_files"] += 1


@pytest.mark.parametrize("advance", [one_file_less, one_file_in_pieces])
def test_as_long_as_something_moves(advance: Callable[["Sending"], None]) -> None:
    mounts, told = Sending(20, advance), list[str]()
    asyncio.run(drain(mounts, told.append, stalled_after_s=0.1))
    assert mounts.found["dirty_files"] == 0 and told.count("EXTEND_TIMEOUT_USEC=60000000") >= 18
    assert any(line.startswith("STATUS=a: ") and "bytes of" in line for line in told)


@pytest.mark.parametrize(
    ("advance", "why"), [(lambda mounts: None, "nothing moves"), (refused_again_and_again, "access was refused")]
)
def test_not_for_ever(advance: Callable[["Sending"], None], why: str, caplog: pytest.LogCaptureFixture) -> None:
    mounts = Sending(2, advance)
    asyncio.run(drain(mounts, lambda _: None, stalled_after_s=0.1))
    assert mounts.found["dirty_files"] == 2 and 4 <= mounts.asked < 60
    assert "a: 200 bytes of 2 files are not in the store (" in caplog.text and f"{why}); they are kept" in caplog.text


def test_programs_that_go_on_writing_are_not_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "WRITERS_S", 0.2)
    asyncio.run(drain(Sending(2, one_comes_for_each_that_goes), lambda _: None))
    assert "programs go on writing" in caplog.text


def test_whoever_flushes_is_answered_in_time(world: World) -> None:
    """One file can take longer to send than anybody waits: who asks is told what is left, and asks again."""
    with written_to_a_fake(world) as service:
        service.fail("silence", 1000, when=_is_upload)
        with open(f"{world.root}/mnt/new.txt", "w") as file:
            file.write("not taken")
        begun = time.monotonic()
        flushed = [world.cli("flush", "data", "--timeout", "1s") for _ in range(2)]
        assert time.monotonic() - begun < 12, "15 seconds is what a silent store is waited for"
        assert all("9 bytes of 1 file are not in the store yet" in done.stderr for done in flushed), flushed
        service.heal()
        service.ended.set()  # the connections that hang break, and what is sent again is taken
        done = world.cli("flush", "data", "--timeout", "30s")
        assert done.returncode == 0 and service.containers["data"]["new.txt"].data == b"not taken", done.stderr


@pytest.mark.parametrize("is_looked_for", ["while it is sent", "when it was sent"])
def test_what_could_not_be_sent_is_there_after_the_next_start(world: World, is_looked_for: str) -> None:
    """The store is listed before the journal is read: what is still to come is on top of that, and stays.

    While nothing gets through, it cannot be asked whether it may be written to either: that keeps no mount from coming.
    """
    with written_to_a_fake(world) as service:
        service.fail("status", 10000, when=_is_upload, status=503, code="ServerBusy")
        path = f"{world.root}/mnt/new.txt"
        with open(path, "w") as file:
            file.write("late")
        done = world.cli("down", "--discard-dirty")
        assert done.returncode == 0 and not os.path.exists(path), done.stderr
        service.heal()
        service.bytes_per_s = 1e9
        with service.link if is_looked_for == "while it is sent" else nullcontext():  # no body gets through meanwhile
            assert world.cli("up", env={"KEY": "a2V5"}).returncode == 0
            if is_looked_for == "when it was sent":
                poll(lambda: "new.txt" in service.containers["data"], "it is not sent")
                time.sleep(0.2)  # for the worker to take note of it
            assert os.listdir(f"{world.root}/mnt") == ["new.txt"] and os.path.getsize(path) == 4
            assert ("new.txt" in service.containers["data"]) == (is_looked_for == "when it was sent")
        assert world.cli("flush", "data").returncode == 0
        assert os.listdir(f"{world.root}/mnt") == ["new.txt"] and Path(path).read_text() == "late"
        assert service.containers["data"]["new.txt"].data == b"late"


@contextmanager
def written_to_a_fake(world: World) -> Iterator[FakeBlobService]:
    """A mount that can be written, of a service that misbehaves when it is told to."""
    service = FakeBlobService()
    try:
        definition = service.definition(credentials={"account_key": {"env": "KEY"}})
        mount = {"target": f"{world.root}/mnt", "source": "data", "read_only": False, "durability": "journal"}
        world.write_config(yaml.safe_dump({"stores": {"data": definition}, "mounts": {"data": mount}}))
        done = world.cli("up", env={"KEY": "a2V5"})
        assert done.returncode == 0, done.stderr
        yield service
    finally:
        service.close()


def test_a_daemon_that_is_stopped_sends_first(world: World) -> None:
    """The store refuses for a moment: closed at once, what was written would wait for the next start."""
    with written_to_a_fake(world) as service:
        service.fail("status", 3, when=_is_upload, status=503, code="ServerBusy")
        with open(f"{world.root}/mnt/new.txt", "w") as file:
            file.write("written just before the end")
        [daemon] = [pid for pid, _ in world.processes() if _is_daemon(pid)]
        os.kill(daemon, signal.SIGTERM)
        poll(lambda: not world.processes(), "it does not end")
        assert service.containers["data"]["new.txt"].data == b"written just before the end"


def _is_upload(asked: Asked) -> bool:
    return asked.method == "PUT"


def _is_daemon(pid: int) -> bool:
    with open(f"/proc/{pid}/cmdline") as file:
        return "\0daemon\0" in file.read()
