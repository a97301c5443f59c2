"""What is fetched before somebody asks for it: ahead in a large blob, the small ones of a folder, within a budget."""

import errno
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mounting import until
from remote_content import BIG, MIB, Open, Remote, errno_of, many, opening, policy, read_all, settle, wait
from vfs_trees import find


@pytest.fixture
def cache_dir(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture
def opened(cache_dir: str) -> Iterator[Open]:
    with opening(cache_dir) as open_one:
        yield open_one


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
