"""Random operations while the store misbehaves: connections reset before and after, 503, 500, bodies that stall.

Nothing of it may reach a program: each fault passes within the time that a close waits.
"""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from amlmount.errors import NetworkError, PreconditionFailedError
from amlmount.stores.azure import open_azure, staging
from amlmount.stores.azure.blocks import Part
from amlmount.stores.azure.store import AzureStore
from amlmount.stores.azure.timing import Timing
from amlmount.stores.base import ObjectStore
from amlmount.stores.memory import MemoryStore
from fakeblob import Asked, FakeBlobService
from writing.ground import RDWR, opened
from writing.lengths import EXAMPLES, STEPS
from writing.test_writing_model import Dice, Sides, case_of

TIMING = Timing(connect_s=1, silence_s=0.3, request_s=1.5, call_s=6, first_backoff_s=0.01, max_backoff_s=0.1)
KINDS = ["reset", "done_reset", "status", "busy", "stall", "garbage"]


class Weather:
    """Lets every so-manieth step meet a fault."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.service = FakeBlobService()

    def make_store(self) -> tuple[ObjectStore, Callable[[], None]]:
        store = open_azure(self.service.definition(), timing=TIMING)

        def close() -> None:
            store.close()
            self.service.close()

        return store, close

    def change(self) -> None:
        """Have the next request, or two, go wrong; not more, or they would have to."""
        if not any(fault.times for fault in self.service._faults) and self.random.random() < 0.3:
            kind = self.random.choice(KINDS)
            more = {"status": 500} if kind == "status" else {"status": 503, "code": "ServerBusy"}
            self.service.fail("status" if kind == "busy" else kind, self.random.randint(1, 2), **more)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("durability", ["store", "journal"])
def test_faults_reach_no_program(durability: str) -> None:
    for seed in range(max(EXAMPLES // 3, 2)):
        weather, dice, done = Weather(seed), Dice(seed), list[object]()
        sides = case_of(weather.make_store, durability=durability, upload_timeout_s=20.0)()
        try:
            for _ in range(STEPS):
                operation = dice.operation(sides)
                done.append(operation)
                weather.change()
                getattr(Sides, operation[0])(sides, **operation[1])
                sides.same()
        except BaseException as error:
            error.add_note(f"seed {seed}, lately: {done[-10:]}")
            raise
        finally:
            sides.teardown()


@pytest.fixture
def fake() -> Iterator[FakeBlobService]:
    with closing(FakeBlobService()) as service:
        yield service


@pytest.fixture
def store(fake: FakeBlobService) -> Iterator[AzureStore]:
    with closing(open_azure(fake.definition(), timing=TIMING)) as opened:
        yield opened


def is_put(asked: Asked) -> bool:
    return asked.method == "PUT"


def test_a_copy_that_was_made_unseen_is_made(fake: FakeBlobService, store: AzureStore) -> None:
    source = store.put("a", b"data", metadata={"k": "v"})
    fake.fail("done_reset", 1, when=is_put)
    assert store.copy(source, "b", if_none_match=True).etag == store.head("b").etag
    with fake.lock:
        fake.put("data", "c", b"other")
    fake.fail("reset", 1, when=is_put)
    with pytest.raises(PreconditionFailedError):
        store.copy(source, "c", if_none_match=True)
    assert store.get("c") == b"other"


def test_metadata_that_was_set_unseen_is_set(fake: FakeBlobService, store: AzureStore) -> None:
    old = store.put("a", b"data", metadata={"k": "1"})
    fake.fail("done_reset", 1, when=is_put)
    new = store.set_metadata(old, {"k": "2"})
    assert new == store.head("a") and dict(new.metadata) == {"k": "2"}


class Pieces:
    """Content of 40 bytes."""

    size_bytes = 40

    def read(self, start: int, length: int) -> bytes:
        return bytes(range(40))[start : start + length]


@pytest.mark.parametrize("kind", ["reset", "done_reset", "status", "garbage"])
def test_blocks_get_there_whatever_goes_wrong(
    fake: FakeBlobService, store: AzureStore, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amlmount.stores.azure.store.MAX_SINGLE_BYTES", 10)
    monkeypatch.setattr(staging, "plan_blocks", lambda size, present, unchanged: _tens(size))
    for nth in range(5):
        numbers = itertools.count()
        fake.fail(kind, 1, when=partial(_is_put_number, nth, numbers))
        info = store.upload(f"x{nth}", Pieces(), if_none_match=True)
        assert store.get(f"x{nth}", if_match=info.etag) == bytes(range(40))


def _is_put_number(nth: int, numbers: Iterator[int], asked: Asked) -> bool:
    return is_put(asked) and next(numbers) == nth


def _tens(size: int) -> list[Part]:
    return [Part("", start, 10) for start in range(0, size, 10)]


def test_a_close_during_an_unlink_that_fails_loses_nothing(tmp_path: Path) -> None:
    """Until it has failed, the file looks as if nobody could want it any more."""
    asked, may_fail = threading.Event(), threading.Event()

    def before(operation: str, name: str) -> None:
        if operation == "delete":
            asked.set()
            assert may_fail.wait(10)
            raise NetworkError("cannot reach the store")

    store = MemoryStore({"a": b"old"}, before=before)
    with opened(store, tmp_path) as tree, ThreadPoolExecutor(2) as pool:
        handle = tree.open("a", RDWR)
        handle.write(0, b"new")
        unlinking = pool.submit(tree.unlink, "a")
        assert asked.wait(10)
        closed = pool.submit(handle.close)
        time.sleep(0.1)
        may_fail.set()
        with pytest.raises(OSError):
            unlinking.result()
        closed.result()
        assert store.get("a") == b"new" == tree.read("a")
