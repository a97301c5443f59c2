"""Parts that are sent while a file is being written: what arrives is what was written, whatever was touched since."""

import errno
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from amlmount.stores.azure import open_azure, staging
from amlmount.stores.azure import store as azure_store
from amlmount.stores.azure.blocks import plan_blocks
from amlmount.stores.azure.store import AzureStore
from amlmount.vfs.writing import ahead
from amlmount.vfs.writing.ahead import AT_FULL_SPEED, FULL_SPEED
from amlmount.vfs.writing.livefile import LiveFile
from amlmount.vfs.writing.parts import MAX_WAITING, Ahead
from fakeblob import Asked, FakeBlobService
from mounting import until
from writing.ground import Handle, Tree, open_tree

PART = 1000
NOTHING = b""  # what is compared, where every write is heard of


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "BLOCK_BYTES", PART)
    monkeypatch.setattr(staging, "plan_blocks", lambda size, present, same: plan_blocks(size, present, same, PART))
    monkeypatch.setattr(azure_store, "MAX_SINGLE_BYTES", PART)


@pytest.fixture
def fake() -> Iterator[FakeBlobService]:
    with closing(FakeBlobService()) as service:
        yield service


@pytest.fixture
def store(fake: FakeBlobService) -> Iterator[AzureStore]:
    with closing(open_azure(fake.definition())) as opened:
        yield opened


@pytest.fixture
def tree(store: AzureStore, tmp_path: Path) -> Iterator[Tree]:
    with closing(open_tree(store, tmp_path).files) as files:
        yield Tree(files, None)  # type: ignore[arg-type]


def blocks(fake: FakeBlobService) -> int:
    return sum(asked.query.get("comp") == "block" and "blockid" in asked.query for asked in fake.asked)


def test_durable_sent_ahead(fake: FakeBlobService, store: AzureStore, tree: Tree) -> None:
    data = random.Random(1).randbytes(10 * PART + 7)
    with tree.create("a") as handle:
        for start in range(0, len(data), 250):
            handle.write(start, data[start : start + 250])
        ahead = handle.node.ahead  # type: ignore[attr-defined]
        assert len(ahead.sent(NOTHING)) == 10 == blocks(fake) and "a" not in fake.containers["data"]
    assert blocks(fake) == 11 and store.get("a") == data


def test_what_was_touched_is_sent_again(fake: FakeBlobService, store: AzureStore, tree: Tree) -> None:
    data = bytearray(random.Random(1).randbytes(6 * PART))
    with tree.create("a") as handle:
        handle.write(0, bytes(data))
        handle.node.ahead.sent(NOTHING)  # type: ignore[attr-defined]
        data[PART + 5 : PART + 8] = b"new"
        handle.write(PART + 5, b"new")
        data[3 * PART - 1 : 3 * PART + 1] = b"xy"
        handle.write(3 * PART - 1, b"xy")
        assert handle.node.ahead.sent(NOTHING) == [0, 4]  # type: ignore[attr-defined]
    assert store.get("a") == data and blocks(fake) == 5 + 4


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_writes_and_cuts(store: AzureStore, tree: Tree, seed: int) -> None:
    dice, model = random.Random(seed), bytearray()
    for name in ("a", "b"):
        with tree.create(name) as handle:
            model.clear()
            for _ in range(40):
                what = dice.random()
                if what < 0.7 or not model:
                    place, data = len(model), dice.randbytes(dice.randint(1, 1500))
                else:
                    place, data = dice.randint(0, len(model) + 50), dice.randbytes(dice.randint(1, 300))
                if what > 0.93:
                    size = dice.randint(0, len(model) + 500)
                    handle.truncate(size)
                    del model[size:]
                    model.extend(bytes(size - len(model)))
                    continue
                if what > 0.9:
                    handle.fsync()
                handle.write(place, data)
                model.extend(bytes(max(place - len(model), 0)))
                model[place : place + len(data)] = data
        assert store.get(name) == model
        tree.rename(name, "c")
        assert store.get("c") == model


def test_parts_that_failed_or_got_lost_are_sent_at_the_close(
    fake: FakeBlobService, store: AzureStore, tree: Tree
) -> None:
    data = random.Random(2).randbytes(5 * PART + 1)
    fake.fail("status", 2, when=is_block, status=403, code="AuthorizationFailure")
    with tree.create("a") as handle:
        handle.write(0, data)
        handle.node.ahead.sent(NOTHING)  # type: ignore[attr-defined]
    assert store.get("a") == data
    with tree.create("b") as handle:
        handle.write(0, data)
        handle.node.ahead.sent(NOTHING)  # type: ignore[attr-defined]
        with fake.lock:
            fake.put("data", "b", b"")  # a commit of somebody else takes all parts with it
            del fake.containers["data"]["b"]
    assert store.get("b") == data


def is_block(asked: Asked) -> bool:
    return asked.query.get("comp") == "block"


def test_a_write_that_failed_half_way_is_no_longer_what_was_sent(
    store: AzureStore, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(3).randbytes(3 * PART + 1)
    with tree.create("a") as handle:
        handle.write(0, data)
        assert handle.node.ahead.sent(NOTHING) == [0, 1, 2]  # type: ignore[attr-defined]
        disk, real = tree.files.disk, tree.files.disk.write

        def half(fd: int, data: bytes, offset: int) -> None:
            real(fd, data[:2], offset)
            raise OSError(errno.ENOSPC, "no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(disk, "write", half)
            with pytest.raises(OSError, match="no space"):
                handle.write(PART, b"xxxx")
        shown = handle.read()
    assert shown[PART : PART + 2] == b"xx" and store.get("a") == shown


# What the kernel writes by itself: nobody tells us which parts were touched


@contextmanager
def written_directly(tree: Tree, name: str) -> Iterator[tuple[Handle, int]]:
    """A new file, and the descriptor by which the kernel writes it."""
    with tree.create(name, os.O_WRONLY) as handle:
        found = tree.files.empty_file(handle.node, os.O_WRONLY)
        assert found is not None and tree.files.begin_direct(handle.node, os.O_WRONLY, found[1])
        yield handle, found[0]
        os.close(found[0])


def arrive(handle: Handle, count: int) -> None:
    """Wait until so many parts were sent ahead."""
    file = handle.node
    assert isinstance(file, LiveFile)
    until(lambda: file.ahead is not None and sum(job.done() for job in list(file.ahead.sending.values())) == count)


@pytest.mark.parametrize("touched", [(), (0,), (3, 7), range(10)])
def test_parts_the_kernel_touched_are_sent_again(
    fake: FakeBlobService, store: AzureStore, tree: Tree, touched: Sequence[int]
) -> None:
    data = bytearray(random.Random(1).randbytes(10 * PART + 7))
    with written_directly(tree, "a") as (handle, fd):
        os.pwrite(fd, data, 0)
        arrive(handle, 10)
        assert "a" not in fake.containers["data"]
        for number in touched:
            data[number * PART + 1] ^= 1
            os.pwrite(fd, data[number * PART + 1 : number * PART + 2], number * PART + 1)
    assert store.get("a") == data and blocks(fake) == 10 + len(touched) + 1


def test_a_hole_is_not_sent_ahead(fake: FakeBlobService, store: AzureStore, tree: Tree) -> None:
    """Whoever makes the file as long as it will be first, and fills it then, sends it once."""
    data = random.Random(1).randbytes(100 * PART)
    with written_directly(tree, "a") as (handle, fd):
        os.ftruncate(fd, len(data))
        time.sleep(3 * ahead.LOOK_S)
        assert handle.node.ahead is None  # type: ignore[attr-defined]
        os.pwrite(fd, data, 0)
    assert store.get("a") == data and blocks(fake) <= 100


def test_what_was_cut_and_written_anew_is_what_arrives(store: AzureStore, tree: Tree) -> None:
    data = random.Random(1).randbytes(5 * PART)
    with written_directly(tree, "a") as (handle, fd):
        os.pwrite(fd, bytes(9 * PART), 0)
        arrive(handle, 8)
        handle.truncate(0)
        os.pwrite(fd, data, 0)
    assert store.get("a") == data


@pytest.mark.parametrize("status", [500, 403])
def test_a_part_that_cannot_be_sent_ahead_is_sent_at_the_close(
    fake: FakeBlobService, store: AzureStore, tree: Tree, status: int
) -> None:
    data = random.Random(1).randbytes(5 * PART)
    with written_directly(tree, "a") as (handle, fd):
        fake.fail("status", 2, when=lambda asked: asked.query.get("comp") == "block", status=status)
        os.pwrite(fd, data, 0)
        arrive(handle, 4)
    assert store.get("a") == data


def test_only_what_is_new_is_looked_at(store: AzureStore, tree: Tree) -> None:
    """After an fsync the store has the beginning: it is not sent ahead once more."""
    with written_directly(tree, "a") as (handle, fd):
        os.pwrite(fd, bytes(9 * PART), 0)
        arrive(handle, 8)
        handle.fsync()
        os.pwrite(fd, b"x" * PART, 9 * PART)
        time.sleep(3 * ahead.LOOK_S)
        assert handle.node.ahead is None  # type: ignore[attr-defined]
    assert store.get("a") == bytes(9 * PART) + b"x" * PART


def test_whoever_writes_at_full_speed_is_left_alone(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few parts at once while a file grows fast, more of them as soon as that is over."""
    asked: list[tuple[float, int]] = []
    grows, sends = Ahead.grows_by, Ahead.send_up_to
    rates = iter([FULL_SPEED, FULL_SPEED - 1.0])

    def grows_by(self: Ahead, end: int, now_s: float) -> float:
        assert grows(self, end, now_s) >= 0
        return next(rates, 0.0)

    def send_up_to(self: Ahead, end: int, fd: int, pool: ThreadPoolExecutor, at_once: int = MAX_WAITING) -> None:
        asked.append((end, at_once))
        sends(self, end, fd, pool, at_once)

    monkeypatch.setattr(Ahead, "grows_by", grows_by)
    monkeypatch.setattr(Ahead, "send_up_to", send_up_to)
    with written_directly(tree, "a") as (handle, fd):
        os.pwrite(fd, bytes(30 * PART), 0)
        until(lambda: len(asked) >= 2)
        assert handle.node.ahead.next_number >= AT_FULL_SPEED  # type: ignore[attr-defined]
    assert [at_once for _, at_once in asked[:2]] == [AT_FULL_SPEED, MAX_WAITING]


def test_no_more_parts_than_may_be_under_way(tmp_path: Path) -> None:
    goes_on, begun = threading.Event(), Held()
    begun.wait = goes_on.wait
    (tmp_path / "data").write_bytes(bytes(30 * PART))
    fd = os.open(tmp_path / "data", os.O_RDONLY)
    parts = Ahead(begun, "a")  # type: ignore[arg-type]
    assert parts.grows_by(PART, 1.0) == math.inf and parts.grows_by(3 * PART, 3.0) == PART
    with ThreadPoolExecutor(8) as pool:
        parts.send_up_to(30 * PART, fd, pool, 4)
        parts.send_up_to(30 * PART, fd, pool, 4)
        assert list(parts.sending) == [0, 1, 2, 3]
        goes_on.set()
        until(lambda: all(job.done() for job in parts.sending.values()))
        parts.send_up_to(30 * PART, fd, pool, 4)
        assert len(parts.sending) == 8
    os.close(fd)


class Held:
    """A store that takes parts when it is told to."""

    part_bytes = PART

    def __init__(self) -> None:
        self.wait: Callable[[], object] = lambda: None

    def send(self, number: int, data: bytes) -> None:
        self.wait()
