"""How old what is listed may be, who waits for a listing, and what a refresh tells."""

import errno

import pytest

from amlmount.errors import NetworkError
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.base import ROOT_NODE_ID, WouldBlock
from amlmount.vfs.tree import Change
from flaky_store import FlakyStore
from test_vfs_tree import DEADLINE_S, Gate, errno_of, in_thread, names
from vfs_trees import FakeClock, find, make_policy, memory, mount, source, tree


def test_fresh_within_ttl() -> None:
    inner, clock = memory("a"), FakeClock()
    store = FlakyStore(inner)
    fs = mount(store, clock=clock)
    assert names(fs) == [b"a"]
    inner.put("b", b"")
    clock.now_s += 119
    assert names(fs) == [b"a"] and errno_of(lambda: fs.lookup(1, b"b")) == errno.ENOENT
    assert store.calls["list"] == 1
    clock.now_s += 2
    assert names(fs) == [b"a", b"b"]
    assert store.calls["list"] == 2


def test_fresh_pinned() -> None:
    store, clock = memory("a"), FakeClock()
    fs = mount(store, policy=make_policy(pinned=True), clock=clock)
    assert names(fs) == [b"a"]
    store.put("b", b"")
    clock.now_s += 1e9
    assert names(fs) == [b"a"]
    fs.refresh()
    assert names(fs) == [b"a", b"b"]


def test_fresh_every_time() -> None:
    store = memory("a")
    fs = mount(store, policy=make_policy(list_ttl_s=0))
    assert names(fs) == [b"a"]
    store.put("b", b"")
    assert fs.lookup(1, b"b").name == b"b"
    store.delete("a")
    assert names(fs) == [b"b"]


def test_fresh_one_fetch() -> None:
    store, gate = FlakyStore(memory("a")), Gate()
    store.on("list", gate, nth=1)
    fs = mount(store)
    waiting = [in_thread(lambda: names(fs)) for _ in range(6)]
    assert gate.reached.wait(DEADLINE_S)
    gate.opened.set()
    for thread, results in waiting:
        thread.join(DEADLINE_S)
        assert results == [[b"a"]]
    assert store.calls["list"] == 1


def test_fresh_not_older_than_the_question() -> None:
    inner, gate = memory("a"), Gate()
    store = FlakyStore(inner)
    store.on("page", gate, nth=1)
    fs = mount(store, policy=make_policy(list_ttl_s=0))
    first, first_saw = in_thread(lambda: names(fs))
    assert gate.reached.wait(DEADLINE_S)
    inner.put("b", b"")  # after that listing began, before the next question
    second, second_saw = in_thread(lambda: names(fs))
    gate.opened.set()
    first.join(DEADLINE_S)
    second.join(DEADLINE_S)
    assert second_saw == [[b"a", b"b"]]
    assert first_saw in ([[b"a"]], [[b"a", b"b"]])


def test_fresh_error_reaches_all() -> None:
    store, gate = FlakyStore(memory("a")), Gate()

    def fail() -> None:
        gate()
        raise NetworkError("cannot reach the store")

    store.on("list", fail, nth=1)
    fs = mount(store)
    waiting = [in_thread(lambda: names(fs)) for _ in range(3)]
    assert gate.reached.wait(DEADLINE_S)
    gate.opened.set()
    for thread, results in waiting:
        thread.join(DEADLINE_S)
        [result] = results
        assert result == [b"a"] or (isinstance(result, OSError) and result.errno == errno.EIO)
    assert names(fs) == [b"a"]


def test_fresh_survives_a_bug() -> None:
    store = FlakyStore(memory("a"))

    def bug() -> None:
        raise ZeroDivisionError

    store.on("list", bug, nth=1)
    fs = mount(store)
    with pytest.raises(ZeroDivisionError):
        names(fs)
    assert names(fs) == [b"a"]


def test_fresh_half_a_listing_changes_nothing() -> None:
    inner, clock = MemoryStore({f"{n}": b"" for n in range(9)}, page_size=3), FakeClock()
    store = FlakyStore(inner)
    fs = mount(store, clock=clock)
    before = names(fs)
    assert len(before) == 9
    inner.delete("0")
    clock.now_s += 121
    store.fail("page", nth=2)
    assert errno_of(lambda: names(fs)) == errno.EIO
    assert len(fs._tree.nodes) == 10
    assert names(fs) == before[1:]


def test_never_waits() -> None:
    inner, clock, gate = memory("dir/file"), FakeClock(), Gate()
    store = FlakyStore(inner, is_local=False)
    fs = mount(store, clock=clock)
    for ask in (lambda: fs.list_dir(1, may_wait=False), lambda: fs.lookup(1, b"dir", may_wait=False)):
        with pytest.raises(WouldBlock):
            ask()
    assert store.calls.total() == 0
    file_id = find(fs, "dir/file")
    assert fs.lookup(1, b"dir", may_wait=False).name == b"dir"
    with pytest.raises(WouldBlock):
        fs.read(file_id, 0, 1, may_wait=False)
    assert fs.read(file_id, 99, 1, may_wait=False) == b""
    assert store.calls["get"] == 0
    clock.now_s += 121
    store.on("list", gate, nth=1)
    thread, _ = in_thread(lambda: names(fs))
    assert gate.reached.wait(DEADLINE_S)
    with pytest.raises(WouldBlock):
        fs.list_dir(1, may_wait=False)
    assert fs.getattr(file_id, may_wait=False).name == b"file"  # nor does any of these wait for the listing
    assert fs.statfs().files == 1
    fs.forget(file_id, 0)
    gate.opened.set()
    thread.join(DEADLINE_S)


def test_never_waits_for_local_stores_others_list() -> None:
    store, gate = FlakyStore(memory("a"), is_local=True), Gate()
    store.on("list", gate, nth=1)
    fs = mount(store)
    thread, _ = in_thread(lambda: names(fs))
    assert gate.reached.wait(DEADLINE_S)
    with pytest.raises(WouldBlock):
        fs.list_dir(1, may_wait=False)
    gate.opened.set()
    thread.join(DEADLINE_S)
    assert [node.name for node in fs.list_dir(1, may_wait=False)] == [b"a"]


def by_name(changes: list[Change]) -> dict[bytes, tuple[bool, bool]]:
    return {change.name: (change.old_node_id is not None, change.new_node_id is not None) for change in changes}


def test_refresh_tells_what_changed() -> None:
    store = memory("dir/same", "dir/changed", "dir/gone", "other/x", "vanishes/y")
    fs = mount(store, policy=make_policy(pinned=True))
    tree(fs)
    dir_id, old_id, vanishing = find(fs, "dir"), find(fs, "dir/changed"), find(fs, "vanishes")
    assert fs.refresh() == []
    store.put("dir/changed", b"2")
    store.put("dir/new", b"")
    store.delete("dir/gone")
    store.delete("vanishes/y")
    changes = fs.refresh()
    assert by_name(changes) == {
        b"changed": (True, True),
        b"gone": (True, False),
        b"new": (False, True),
        b"vanishes": (True, False),
    }
    assert {change.parent_id for change in changes} == {dir_id, ROOT_NODE_ID}
    [changed] = [change for change in changes if change.name == b"changed"]
    assert (changed.old_node_id, changed.new_node_id) == (old_id, find(fs, "dir/changed"))
    assert [change.old_node_id for change in changes if change.name == b"vanishes"] == [vanishing]
    assert fs.refresh() == []


def test_refresh_of_a_path() -> None:
    inner = memory("a/b/x", "a/y", "c/z")
    store = FlakyStore(inner)
    fs = mount(store, policy=make_policy(pinned=True))
    tree(fs)
    for name in ("a/b/new", "a/new", "c/new", "new"):
        inner.put(name, b"")
    assert by_name(fs.refresh("c/z")) == {b"new": (False, True)}  # a file: the directory it is in
    assert set(names(fs, find(fs, "c"))) == {b"new", b"z"}
    listed = store.calls["list"]
    changes = fs.refresh("/a/b/")
    assert {(change.parent_id, change.name) for change in changes} == {
        (find(fs, "a"), b"new"),
        (find(fs, "a/b"), b"new"),
    }
    assert store.calls["list"] == listed + 2
    assert b"new" not in names(fs)
    assert fs.refresh("nowhere/at/all") != []  # what is deepest known on the way: the root
    assert fs.refresh("a/../b") == []


def test_refresh_lists_only_what_was_listed() -> None:
    store = FlakyStore(memory("a/x", "b/x"))
    fs = mount(store)
    assert fs.refresh() == [] and store.calls["list"] == 0
    names(fs)
    fs.refresh()
    assert store.calls["list"] == 2


def test_refresh_with_several_sources() -> None:
    one, two = memory("a"), memory("b")
    fs = mount({"one": one, "two": two}, source("one", child="x"), source("two", child="y"))
    tree(fs)
    two.put("c", b"")
    assert by_name(fs.refresh()) == {b"c": (False, True)}


def test_refresh_after_a_failed_one() -> None:
    inner = memory("a")
    store = FlakyStore(inner)
    fs = mount(store, policy=make_policy(pinned=True))
    names(fs)
    inner.put("b", b"")
    store.fail("list", nth=1)
    with pytest.raises(NetworkError):
        fs.refresh()
    assert by_name(fs.refresh()) == {b"b": (False, True)}


def test_refresh_during_a_listing() -> None:
    inner, gate = memory("a"), Gate()
    store = FlakyStore(inner)
    store.on("page", gate, nth=2)
    fs = mount(store, policy=make_policy(list_ttl_s=50), clock=(clock := FakeClock()))
    names(fs)
    clock.now_s += 51
    listing, _ = in_thread(lambda: names(fs))
    assert gate.reached.wait(DEADLINE_S)
    inner.put("b", b"")  # the listing under way does not see it
    refreshing, changes = in_thread(fs.refresh)
    for _ in range(1000):
        with fs._lock:
            if fs._root.fetch and fs._root.fetch.superseded:
                break
        refreshing.join(0.01)
    gate.opened.set()
    listing.join(DEADLINE_S)
    refreshing.join(DEADLINE_S)
    [found] = changes
    assert isinstance(found, list) and by_name(found) == {b"b": (False, True)}
    assert names(fs) == [b"a", b"b"]
