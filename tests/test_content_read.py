"""Reading from a store that is not local, below FUSE: who causes requests, what is shared, what is kept, what fails."""

import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from amlmount.errors import NetworkError
from amlmount.stores.memory import MemoryStore
from amlmount.vfs import open_filesystem
from amlmount.vfs.base import WouldBlock
from amlmount.vfs.content import flight
from flaky_store import FlakyStore
from mounting import until
from remote_content import BIG, MIB, Open, Remote, errno_of, is_kept, many, opening, policy, read_all, settle, wait
from vfs_trees import find, make_spec, source


@pytest.fixture
def cache_dir(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture
def opened(cache_dir: str) -> Iterator[Open]:
    with opening(cache_dir) as open_one:
        yield open_one


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
