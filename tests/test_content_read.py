"""Reading from a store that is not local, below FUSE: who causes requests, what is shared, what is kept, what fails."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from amlmount.config.spec import Policy
from amlmount.errors import NetworkError
from amlmount.stores.memory import MemoryStore
from amlmount.vfs import open_filesystem
from amlmount.vfs.base import WouldBlock
from amlmount.vfs.content import flight
from amlmount.vfs.filesystem import BlobFileSystem
from flaky_store import FlakyStore
from mounting import until
from vfs_trees import find, make_policy, make_spec, source

MIB = 1 << 20
BIG = bytes(range(256)) * (40 * MIB // 256)


def policy(**values: object) -> Policy:
    defaults = {
        "read_ahead_max_bytes": 16 * MIB,
        "prefetch_small_bytes": 128 << 10,
        "prefetch_budget_bytes": 64 * MIB,
        "cache_on_disk": True,
    }
    return make_policy().model_copy(update=defaults | values)


class Remote(FlakyStore):
    """A store far away, which notes every range that was asked for."""

    def __init__(self, content: dict[str, bytes]) -> None:
        super().__init__(MemoryStore(content), is_local=False)
        self.ranges: list[tuple[str, int, int]] = []

    def get(self, name: str, start: int = 0, length: int | None = None, *, if_match: str | None = None) -> bytes:
        assert if_match, "a request without If-Match"
        self.ranges.append((name, start, length or 0))
        return super().get(name, start, length, if_match=if_match)

    @property
    def asked_bytes(self) -> int:
        return sum(length for _, _, length in self.ranges)


Open = Callable[..., BlobFileSystem]


@pytest.fixture
def cache_dir(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture
def opened(cache_dir: str) -> Iterator[Open]:
    files: list[BlobFileSystem] = []

    def open_one(store: Remote, rules: Policy | None = None, *, cache: str | None = cache_dir) -> BlobFileSystem:
        spec = make_spec([source()], rules or policy()).model_copy(update={"cache_dir": cache})
        files.append(open_filesystem(spec, stores={"data": store}))
        return files[-1]

    yield open_one
    for one in files:
        one.close()


def read_all(fs: BlobFileSystem, node_id: int, size: int, step: int = 128 << 10) -> bytes:
    return b"".join(bytes(fs.read(node_id, offset, step)) for offset in range(0, size, step))


def errno_of(ask: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        ask()
    return caught.value.errno


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_what_is_read_is_what_is_stored(opened: Open, cache_dir: str, cache: str) -> None:
    store = Remote({"small": b"0123456789", "empty": b"", "big": BIG})
    fs = opened(store, cache=cache_dir if cache == "disk" else None)
    small, big = find(fs, "small"), find(fs, "big")
    assert fs.read(small, 3, 4) == b"3456" and fs.read(small, 8, 9) == b"89" and fs.read(small, 10, 1) == b""
    assert fs.read(find(fs, "empty"), 0, 10) == b""
    assert fs.read(big, 12345, 100) == BIG[12345:12445]
    assert fs.read(big, len(BIG) - 10, 100) == BIG[-10:]
    assert read_all(fs, big, len(BIG)) == BIG
    asked = store.calls["get"]
    assert fs.read(small, 0, 10) == b"0123456789" and fs.read(big, len(BIG) - MIB, MIB) == BIG[-MIB:]
    assert store.calls["get"] == asked


def test_content_listing_fetches_nothing(opened: Open) -> None:
    store = Remote({f"d/{n}": b"x" for n in range(100)} | {"d/big": BIG[:MIB]})
    fs = opened(store)
    for node in fs.list_dir(find(fs, "d")):
        fs.getattr(node.node_id)
    time.sleep(0.05)
    assert store.calls["get"] == 0


def test_content_one_fetch(opened: Open) -> None:
    store = Remote({"d/small": b"s" * 1000, "big": BIG})
    fs, gate = opened(store, policy(prefetch_small_bytes=0, prefetch_budget_bytes=0)), threading.Event()
    store.on("get", lambda: wait(gate))
    small, big = find(fs, "d/small"), find(fs, "big")
    with ThreadPoolExecutor(16) as pool:
        smalls = [pool.submit(fs.read, small, 0, 1000) for _ in range(8)]
        bigs = [pool.submit(fs.read, big, 20 * MIB + 7, 1000) for _ in range(8)]
        until(lambda: store.calls["get"] == 2)
        gate.set()
        assert {bytes(one.result()) for one in smalls} == {b"s" * 1000}
        assert {bytes(one.result()) for one in bigs} == {BIG[20 * MIB + 7 : 20 * MIB + 1007]}
    assert store.calls["get"] == 2


def test_a_thread_that_may_not_wait_is_told_so(opened: Open) -> None:
    store = Remote({"small": b"abc", "big": BIG})
    fs = opened(store)
    for name in ("small", "big"):
        node_id = find(fs, name)
        with pytest.raises(WouldBlock):
            fs.read(node_id, 0, 3, may_wait=False)
        expected = bytes(fs.read(node_id, 0, 3))
        assert fs.read(node_id, 0, 3, may_wait=False) == expected


def test_content_random_reader(opened: Open) -> None:
    store = Remote({"big": BIG})
    fs, big = opened(store), None
    big = find(fs, "big")
    for offset in range(5 * MIB + 77, 40 * MIB, 5 * MIB):
        assert fs.read(big, offset, 256 << 10) == BIG[offset : offset + (256 << 10)]
    assert store.calls["get"] == 7 and store.asked_bytes <= 2 * 7 * (256 << 10)


def test_content_read_ahead(opened: Open) -> None:
    store = Remote({"big": BIG})
    fs = opened(store)
    big = find(fs, "big")
    for offset in range(0, 4 * MIB, 128 << 10):
        fs.read(big, offset, 128 << 10)
    until(lambda: store.asked_bytes >= 9 * MIB)
    read_all(fs, big, len(BIG))
    assert store.asked_bytes == len(BIG), "something was fetched twice"
    assert max(length for _, _, length in store.ranges) <= 4 * MIB


def test_nobody_waits_for_the_disk(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come and is not written yet is read all the same, over the ends of ranges too, and asked for once."""
    store = Remote({"big": BIG})
    fs = opened(store)
    big, gate = find(fs, "big"), threading.Event()
    assert fs.content and fs.content.directory
    directory, really = fs.content.directory, fs.content.directory.write_blob

    def write_late(*words: Any) -> None:
        wait(gate)
        really(*words)

    monkeypatch.setattr(directory, "write_blob", write_late)
    try:
        fs.read(big, 0, 4096)
        fs.read(big, 32 << 10, 1000)
        data = fs.read(big, (64 << 10) - 500, 1000)  # the first block came by itself
        assert data == BIG[(64 << 10) - 500 : (64 << 10) + 500]
        assert directory.used_bytes == 0
    finally:
        gate.set()
    until(lambda: directory.used_bytes >= MIB)
    assert read_all(fs, big, len(BIG)) == BIG
    assert store.asked_bytes == len(BIG)


def test_content_without_read_ahead(opened: Open) -> None:
    store = Remote({"big": BIG})
    fs = opened(store, policy(read_ahead_max_bytes=0))
    big = find(fs, "big")
    for offset in range(0, 4 * MIB, 128 << 10):
        fs.read(big, offset, 128 << 10)
    assert store.asked_bytes == 4 * MIB


def many(count: int = 300, size: int = 100) -> dict[str, bytes]:
    return {f"d/{n:05d}": bytes([n % 251]) * size for n in range(count)}


def test_content_prefetch(opened: Open) -> None:
    store = Remote(many())
    fs = opened(store)
    fs.read(find(fs, "d/00007"), 0, 10)
    until(lambda: store.calls["get"] == 65)  # one asked for, and the first batch
    first = [name for name, _, _ in store.ranges]
    assert sorted(first) == [f"d/{n:05d}" for n in range(7, 72)], "in listing order, from there on"
    fs.read(find(fs, "d/00008"), 0, 10)
    until(lambda: store.calls["get"] == 300)
    for name, data in many().items():
        assert fs.read(find(fs, name), 0, 100) == data
    assert store.calls["get"] == 300


def test_content_prefetch_only_what_is_small(opened: Open) -> None:
    store = Remote(many(20) | {"d/00005x": b"m" * (200 << 10), "d/e/other": b"x"})
    fs = opened(store)
    fs.read(find(fs, "d/00000"), 0, 10)
    fs.read(find(fs, "d/00001"), 0, 10)
    until(lambda: store.calls["get"] == 20)
    time.sleep(0.05)
    assert {name for name, _, _ in store.ranges} == set(many(20))


def test_content_budget(opened: Open) -> None:
    store = Remote(many(1000, 1000))
    fs = opened(store, policy(prefetch_budget_bytes=100_000))
    fs.read(find(fs, "d/00000"), 0, 10)
    fs.read(find(fs, "d/00001"), 0, 10)
    until(lambda: store.calls["get"] >= 100)
    time.sleep(0.1)
    assert store.calls["get"] <= 105, "a reader that went away left more than the budget behind"
    fs.read(find(fs, "d/00089"), 0, 10)  # is there, and says how far the reader is
    until(lambda: store.calls["get"] >= 185)
    time.sleep(0.1)
    assert store.calls["get"] <= 195


def test_one_file_of_a_quarter_of_the_budget_is_left_out_of_the_page_cache(opened: Open) -> None:
    store, stored = Remote(many(100, 1000)), []
    fs = opened(store, policy(prefetch_budget_bytes=100_000))
    fs.use_page_cache(lambda node_id, data: stored.append((node_id, bytes(data))))
    fs.read(find(fs, "d/00000"), 0, 10)
    fs.read(find(fs, "d/00001"), 0, 10)
    until(lambda: store.calls["get"] == 100)
    until(lambda: len(stored) >= 90)
    assert len(stored) <= 98 - 98_000 // 25_000
    by_id = {
        fs.lookup(find(fs, "d"), name.removeprefix("d/").encode()).node_id: data
        for name, data in many(100, 1000).items()
    }
    assert all(by_id[node_id] == data for node_id, data in stored)


def test_what_somebody_waits_for_is_not_put_into_the_page_cache(opened: Open) -> None:
    store, stored, gate = Remote(many(3)), [], threading.Event()
    fs = opened(store)
    fs.use_page_cache(lambda node_id, data: stored.append(node_id))
    store.on("get", lambda: wait(gate))
    ids = [find(fs, name) for name in many(3)]
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(fs.read, ids[n], 0, 100) for n in (0, 1)]
        until(lambda: store.calls["get"] == 3)
        time.sleep(0.05)
        gate.set()
        assert [bytes(one.result()) for one in waiting] == [many(3)[f"d/0000{n}"] for n in (0, 1)]
    until(lambda: stored == [ids[2]])


def test_a_store_that_is_down_ends_prefetch(opened: Open) -> None:
    store = Remote(many(500))
    fs = opened(store)
    ids = [find(fs, f"d/0000{n}") for n in (0, 1)]
    store.fail("get")
    assert [errno_of(lambda one=one: fs.read(one, 0, 1)) for one in ids] == [errno.EIO] * 2  # type: ignore[misc]
    until(lambda: threading.active_count() > 0 and store.calls["get"] > 2)
    settle(lambda: store.calls["get"])
    assert store.calls["get"] < 300
    store.heal()
    assert fs.read(ids[0], 0, 100) == many()["d/00000"]


def wait(gate: threading.Event) -> None:
    gate.wait(10)


def settle(count: Callable[[], int]) -> None:
    """Wait until a count stays as it is."""
    last = -1
    while (now := count()) != last:
        last = now
        time.sleep(0.1)


def is_kept(fs: BlobFileSystem, name: str) -> bool:
    assert fs._content is not None
    return fs._content.is_kept(fs.node(find(fs, name)))  # type: ignore[arg-type]


def test_content_survives_restart(opened: Open) -> None:
    content = many(50) | {"big": BIG[: 3 * MIB + 5]}
    store = Remote(content)
    fs = opened(store)
    for name, data in content.items():
        assert read_all(fs, find(fs, name), len(data)) == data
    until(lambda: all(is_kept(fs, name) for name in content))  # bytes are handed out before they are written
    fs.close()
    store.ranges.clear()
    fs = opened(store)
    for name, data in content.items():
        assert read_all(fs, find(fs, name), len(data)) == data
    assert store.ranges == []


def test_content_never_trusted(opened: Open, cache_dir: str) -> None:
    """What is kept under the etag of yesterday is not what is read today, and damage is fetched again."""
    content = {"small": b"s" * 500, "big": BIG[: 2 * MIB], "other": b"o" * 500}
    store = Remote(content)
    fs = opened(store)
    for name, data in content.items():
        assert read_all(fs, find(fs, name), len(data)) == data
    fs.close()
    store.put("small", b"new")
    tamper(cache_dir)
    fs = opened(store)
    assert fs.read(find(fs, "small"), 0, 500) == b"new"
    assert fs.read(find(fs, "other"), 0, 500) == content["other"]
    assert read_all(fs, find(fs, "big"), 2 * MIB) == content["big"]


def tamper(folder: str) -> None:
    for base, _, names in os.walk(folder):
        for name in names:
            if name.endswith((".pack", ".data")):
                with open(os.path.join(base, name), "r+b") as file:
                    for offset in range(0, os.fstat(file.fileno()).st_size, 100):
                        file.seek(offset)
                        file.write(b"#")


def test_a_cache_that_vanishes_or_is_cut_under_a_reader_costs_requests_only(opened: Open, cache_dir: str) -> None:
    store = Remote({"small": b"s" * 500, "big": BIG[: 4 * MIB]})
    fs = opened(store)
    small, big = find(fs, "small"), find(fs, "big")
    read_all(fs, small, 500), read_all(fs, big, 4 * MIB)
    for base, _, names in os.walk(cache_dir):
        for name in names:
            if name.endswith((".pack", ".data")):
                os.truncate(os.path.join(base, name), 0)
    assert read_all(fs, small, 500) == b"s" * 500
    assert read_all(fs, big, 4 * MIB) == BIG[: 4 * MIB]


@pytest.mark.parametrize("how", ["replaced", "deleted"])
def test_content_changes_under_a_reader(opened: Open, how: str) -> None:
    store = Remote({"big": BIG, "small": b"old"})
    fs = opened(store)
    big, small = find(fs, "big"), find(fs, "small")
    assert fs.read(big, 0, 1000) == BIG[:1000]
    settle(lambda: store.calls["get"])
    for name in ("big", "small"):
        store.put(name, b"N" * len(BIG)) if how == "replaced" else store.delete(name)
    assert fs.read(big, 500, 1000) == BIG[500:1500], "what is here of the old version is served"
    assert errno_of(lambda: fs.read(big, 30 * MIB, 1000)) == errno.ESTALE
    assert errno_of(lambda: fs.read(small, 0, 3)) == errno.ESTALE


def test_a_range_that_fails_fails_those_who_want_it_and_is_tried_again(opened: Open) -> None:
    store = Remote({"big": BIG})
    fs = opened(store)
    big = find(fs, "big")
    store.fail("get", NetworkError("cannot: reset"))
    assert errno_of(lambda: fs.read(big, 30 * MIB, 10)) == errno.EIO
    store.heal()
    assert fs.read(big, 30 * MIB, 10) == BIG[30 * MIB : 30 * MIB + 10]


def test_a_fetch_that_never_ends_is_eio_for_those_who_wait_for_it(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "DEADLINE_S", 0.2)
    store, gate = Remote({"big": BIG}), threading.Event()
    fs = opened(store)
    big = find(fs, "big")
    store.on("get", lambda: wait(gate))
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(fs.read, big, 30 * MIB, 10)
        until(lambda: store.calls["get"] == 1)
        assert errno_of(lambda: fs.read(big, 30 * MIB, 10)) == errno.EIO
        gate.set()
        stuck.result()


@pytest.mark.root
def test_content_disk_full(opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    os.system(f"mount -t tmpfs -o size=1m tiny {disk}")
    try:
        content = {f"s/{n}": bytes([n]) * 60_000 for n in range(40)} | {"big": BIG}
        store = Remote(content)
        fs = opened(store, cache=f"{disk}/cache")
        for _ in range(2):
            for name, data in content.items():
                assert read_all(fs, find(fs, name), len(data)) == data
        fs.close()
    finally:
        os.system(f"umount -l {disk}")
    told = [record for record in caplog.records if "cannot keep what is read on disk" in record.getMessage()]
    assert 1 <= len(told) <= 3, "told when it begins, not for every block"


def test_without_a_usable_cache_directory_reading_goes_on(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no directory")
    fs = opened(Remote({"a": b"abc"}), cache=str(tmp_path / "file" / "cache"))
    assert fs.read(find(fs, "a"), 0, 3) == b"abc"


def test_profiles_that_keep_nothing_leave_nothing_on_disk(opened: Open, cache_dir: str) -> None:
    fs = opened(Remote({"big": BIG, "a": b"abc"}), policy(cache_on_disk=False))
    assert read_all(fs, find(fs, "big"), len(BIG)) == BIG
    assert fs.read(find(fs, "a"), 0, 3) == b"abc"
    assert not os.path.exists(cache_dir)


def test_memory_is_bounded(opened: Open) -> None:
    """Read 400 MiB without a disk: what is kept never exceeds what docs/cache.md states."""
    import amlmount.vfs.content.reader as reader

    block = bytes(1 << 20)

    class Endless(Remote):
        def get(self, name: str, start: int = 0, length: int | None = None, *, if_match: str | None = None) -> bytes:
            return block[: length or 0] if (length or 0) <= len(block) else bytes(length or 0)

    store = Endless({"big": bytes(400 * MIB)})
    fs = opened(store, cache=None)
    big = find(fs, "big")
    content = fs._content
    assert content is not None
    for offset in range(0, 400 * MIB, MIB):
        fs.read(big, offset, MIB)
        assert content._large._recent.used_bytes <= reader.MEMORY_BYTES


def test_two_sources_with_one_name_and_etag_are_two_blobs(cache_dir: str) -> None:
    class Fixed(MemoryStore):
        def list(self, prefix: str = "", *, delimiter: bool = False, page_size: int = 5000):  # type: ignore[no-untyped-def]
            for page in super().list(prefix, delimiter=delimiter, page_size=page_size):
                yield type(page)([info._replace(etag="same") for info in page.objects], page.prefixes)

        def get(self, name: str, start: int = 0, length: int | None = None, *, if_match: str | None = None) -> bytes:
            return super().get(name, start, length)

    stores: Sequence[FlakyStore] = [FlakyStore(Fixed({"x": word}), is_local=False) for word in (b"one", b"two")]
    sources = [
        source(name, child=name).model_copy(update={"store": {"type": "memory", "container": name}}) for name in "ab"
    ]
    spec = make_spec(sources, policy()).model_copy(update={"cache_dir": cache_dir})
    fs = open_filesystem(spec, stores=dict(zip("ab", stores, strict=True)))
    assert fs.read(find(fs, "a/x"), 0, 3) == b"one" and fs.read(find(fs, "b/x"), 0, 3) == b"two"
    fs.close()
