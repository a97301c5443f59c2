"""Inode numbers, versions and how fresh a listing is: docs/semantics.md, inodes and freshness."""

import errno
import gc
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlmount.errors import AmlmountError, NetworkError
from amlmount.stores.local import LocalStore
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.base import ROOT_NODE_ID, FileSystem, Node, NodeKind, WouldBlock
from amlmount.vfs.filesystem import BlobFileSystem
from amlmount.vfs.nodes import Numbers, Source
from amlmount.vfs.tree import Change
from flaky_store import FlakyStore
from vfs_trees import FakeClock, find, make_policy, memory, mount, source, tree

DEADLINE_S = 10


def errno_of(ask: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        ask()
    return caught.value.errno


def names(fs: FileSystem, node_id: int = ROOT_NODE_ID) -> list[bytes]:
    return [node.name for node in fs.list_dir(node_id)]


# Inodes


def test_inode_version() -> None:
    store, clock = memory(file=b"old"), FakeClock()
    fs = mount(store, clock=clock)
    old = fs.lookup(1, b"file")
    fs.remember(old)
    store.put("file", b"newer")
    clock.now_s += 121
    new = fs.lookup(1, b"file")
    assert new.node_id != old.node_id and new.ino == old.ino
    assert (new.size_bytes, new.etag) != (old.size_bytes, old.etag)


def test_inode_old_version_stays() -> None:
    store, clock = memory(file=b"old"), FakeClock()
    fs = mount(store, clock=clock)
    old = fs.lookup(1, b"file")
    before = (old.size_bytes, old.mtime_ns, old.etag)
    fs.remember(old)
    fs.remember(old)
    store.put("file", b"newer")
    clock.now_s += 121
    names(fs)
    assert fs.getattr(old.node_id) is old and (old.size_bytes, old.mtime_ns, old.etag) == before
    fs.forget(old.node_id, 1)
    assert fs.node(old.node_id) is old
    fs.forget(old.node_id, 1)
    assert errno_of(lambda: fs.node(old.node_id)) == errno.ESTALE


def test_inode_same_object() -> None:
    store, clock = memory("dir/a", "dir/b", "c"), FakeClock()
    fs = mount(store, clock=clock)
    before = {path: fs.node(find(fs, path)) for path in ("dir", "dir/a", "dir/b", "c")}
    store.put("dir/b", b"changed")
    clock.now_s += 121
    after = {path: fs.node(find(fs, path)) for path in before}
    assert [path for path in before if before[path] is not after[path]] == ["dir/b"]


def test_inode_takeover() -> None:
    store = memory("dir/a", "dir/b", "c", "ü/\udcff")
    stores = {"one": store, "two": store}
    sources, clock = (source("one", child="x"), source("two", child="y")), FakeClock()
    old = mount(stores, *sources, clock=clock)
    old.remember(old.node(find(old, "x/c")))

    def numbers() -> dict[bytes, tuple[int, int]]:
        fs = mount(stores, *sources)
        paths = [path.decode("utf-8", "surrogateescape") for path in tree(fs)]
        found = {}
        for path in paths:
            node_id = ROOT_NODE_ID
            for part in path.split("/"):
                node = fs.lookup(node_id, part.encode("utf-8", "surrogateescape"))
                node_id = node.node_id
            found[path.encode("utf-8", "surrogateescape")] = (node.node_id, node.ino)
        return found

    first = numbers()
    assert first == numbers()
    store.put("c", b"another version")
    clock.now_s += 121
    assert old.lookup(find(old, "x"), b"c").node_id == find(mount(stores, *sources), "x/c")
    assert (
        len({node_id for node_id, _ in first.values()}) == len({ino for _, ino in first.values()}) == len(first) == 14
    )


@given(st.lists(st.text(min_size=1), max_size=30))
def test_inode_range(blobs: list[str]) -> None:
    fs = mount(memory(*blobs))
    waiting = [ROOT_NODE_ID]
    while waiting:
        for node in fs.list_dir(waiting.pop()):
            assert 1 < node.node_id < 1 << 63 and 1 < node.ino < 1 << 63
            waiting += [node.node_id] if node.kind is NodeKind.DIRECTORY else []


def weak(store: MemoryStore, bits: int, clock: FakeClock | None = None) -> BlobFileSystem:
    return BlobFileSystem(
        [(None, Source(0, "data", store))], make_policy(), clock=clock or FakeClock(), numbers=Numbers(bits)
    )


def test_inode_collision() -> None:
    store = memory(*[f"{number}" for number in range(10)], "d/x", "d/y")
    clock = FakeClock()
    fs, again = weak(store, 5, clock), weak(store, 5)
    tree(fs), tree(again)
    nodes = [*fs.list_dir(1), *fs.list_dir(find(fs, "d"))]
    assert len({node.node_id for node in nodes}) == 13
    assert all(fs.node(node.node_id) is node for node in nodes)
    assert [node.node_id for node in again.list_dir(1)] == [node.node_id for node in fs.list_dir(1)]
    store.put("3", b"changed")
    clock.now_s += 121
    tree(fs)
    assert fs.read(find(fs, "3"), 0, 9) == b"changed"


def test_inode_returns() -> None:
    store, clock = memory("dir/a"), FakeClock()
    fs = mount(store, clock=clock)
    directory = fs.lookup(1, b"dir")
    fs.remember(directory)
    names(fs, directory.node_id)
    store.delete("dir/a")
    clock.now_s += 121
    assert errno_of(lambda: fs.lookup(1, b"dir")) == errno.ENOENT
    assert names(fs, directory.node_id) == []  # as somebody sees it whose working directory it is
    store.put("dir/b", b"")
    clock.now_s += 121
    assert fs.lookup(1, b"dir") is directory
    assert names(fs, directory.node_id) == [b"b"]


def test_inode_returns_with_what_is_there_now() -> None:
    store, clock = memory("dir/a"), FakeClock()
    fs = mount(store, clock=clock)
    directory = fs.lookup(1, b"dir")
    fs.remember(directory)
    clock.now_s += 100
    names(fs, directory.node_id)
    store.delete("dir/a")
    clock.now_s += 21
    assert names(fs) == []
    store.put("dir/b", b"")
    assert names(fs, directory.node_id) == [b"b"]  # although its own listing is 21 seconds old


def test_inode_forget_takes_what_is_below() -> None:
    store, clock = memory("dir/a"), FakeClock()
    fs = mount(store, clock=clock)
    directory = fs.lookup(1, b"dir")
    fs.remember(directory)
    store.delete("dir/a")
    clock.now_s += 121
    assert names(fs) == []
    store.put("dir/b", b"")
    assert names(fs, directory.node_id) == [b"b"]  # somebody's working directory
    fs.forget(directory.node_id, 1)
    assert len(fs._tree.nodes) == 1
    assert fs.statfs().files == 0


def test_inode_dropped_while_it_is_listed() -> None:
    store, clock, gate = FlakyStore(memory("dir/a")), FakeClock(), Gate()
    fs = mount(store, clock=clock)
    directory = fs.lookup(1, b"dir")
    store.on("list", gate, nth=1)
    thread, results = in_thread(lambda: names(fs, directory.node_id))
    assert gate.reached.wait(DEADLINE_S)
    store.inner.delete("dir/a")
    clock.now_s += 121
    assert names(fs) == []
    gate.opened.set()
    thread.join(DEADLINE_S)
    [result] = results
    assert isinstance(result, OSError) and result.errno == errno.ESTALE


def test_inode_directory_time() -> None:
    store, clock = memory("dir/a"), FakeClock()
    fs = mount(store, clock=clock)
    directory = fs.lookup(1, b"dir")
    first = directory.mtime_ns
    names(fs, directory.node_id)
    clock.now_s += 121
    names(fs, directory.node_id)
    assert directory.mtime_ns == first
    store.put("dir/b", b"")
    clock.now_s += 121
    names(fs, directory.node_id)
    assert directory.mtime_ns > first


def test_inode_forget() -> None:
    store, clock = memory(*[f"d{number}/f" for number in range(5)]), FakeClock()
    fs = mount(store, clock=clock)
    for round_number in range(4):
        tree(fs)
        for number in range(5):
            store.put(f"d{number}/f", b"%d" % round_number)
        clock.now_s += 121
    tree(fs)
    assert len(fs._tree.nodes) == 1 + 5 + 5  # no version is kept that nobody refers to
    assert (fs.statfs().files, fs._tree.size_bytes) == (5, 5)
    kept = fs.node(find(fs, "d1"))
    fs.remember(kept)
    for number in range(5):
        store.delete(f"d{number}/f")
    clock.now_s += 121
    names(fs)
    assert len(fs._tree.nodes) == 2
    fs.forget(kept.node_id, 1)
    fs.forget(ROOT_NODE_ID, 1)
    fs.forget(12345, 1)
    assert len(fs._tree.nodes) == 1
    assert (fs.statfs().files, fs._tree.size_bytes) == (0, 0)


def test_inode_remember_after_drop() -> None:
    store, clock = memory("a"), FakeClock()
    fs = mount(store, clock=clock)
    node = fs.lookup(1, b"a")
    store.put("a", b"new")
    clock.now_s += 121
    names(fs)
    fs.remember(node)  # the reply that carried it was on its way while another thread listed
    assert fs.node(node.node_id) is node
    fs.forget(node.node_id, 1)
    assert errno_of(lambda: fs.node(node.node_id)) == errno.ESTALE


def test_inode_unknown() -> None:
    fs = mount(memory("a"))
    for ask in (fs.node, fs.getattr, fs.list_dir, fs.readlink):
        assert errno_of(lambda ask=ask: ask(4711)) == errno.ESTALE  # type: ignore[misc]
    assert errno_of(lambda: fs.lookup(4711, b"a")) == errno.ESTALE
    assert errno_of(lambda: fs.read(4711, 0, 1)) == errno.ESTALE


def test_lookup_errors() -> None:
    fs = mount(memory("file", "dir/x"))
    file_id, dir_id = find(fs, "file"), find(fs, "dir")
    assert errno_of(lambda: fs.lookup(1, b"none")) == errno.ENOENT
    assert errno_of(lambda: fs.lookup(1, b"n" * 1025)) == errno.ENAMETOOLONG
    assert errno_of(lambda: fs.lookup(file_id, b"x")) == errno.ENOTDIR
    assert errno_of(lambda: fs.list_dir(file_id)) == errno.ENOTDIR
    assert errno_of(lambda: fs.read(dir_id, 0, 1)) == errno.EISDIR
    assert errno_of(lambda: fs.readlink(file_id)) == errno.EINVAL


# Freshness


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


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except (OSError, AmlmountError) as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


class Gate:
    """Holds a store call until it is opened, and tells when one has come."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(DEADLINE_S)


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


# Refresh


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


def test_many_threads_agree() -> None:
    store, stop = MemoryStore({f"{d}/{n}": b"x" for d in range(4) for n in range(10)}), threading.Event()
    fs = mount(store, policy=make_policy(list_ttl_s=0))

    def use() -> str:
        while not stop.is_set():
            for directory in fs.list_dir(1):
                fs.remember(directory)
                for node in fs.list_dir(directory.node_id):
                    fs.remember(node)
                    assert fs.node(node.node_id).name == node.name
                    fs.forget(node.node_id, 1)
                fs.forget(directory.node_id, 1)
        return "well"

    users = [in_thread(use) for _ in range(3)]
    for number in range(60):
        store.put(f"{number % 4}/{number % 10}", b"%d" % number)
        if number % 7 == 0:
            fs.refresh()
    stop.set()
    for thread, results in users:
        thread.join(DEADLINE_S)
        assert results == ["well"]
    tree(fs)
    assert len(fs._tree.nodes) == 1 + 4 + 40
    assert fs.statfs().files == 40


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "list", "forget", "later"]),
        st.sampled_from(["a", "a/b", "a/c", "b", "c/d/e"]),
    ),
    max_size=25,
)


@given(OPERATIONS)
def test_the_table_always_adds_up(operations: list[tuple[str, str]]) -> None:
    store, clock = MemoryStore(), FakeClock()
    fs = mount(store, clock=clock)
    held: list[Node] = []
    for operation, name in operations:
        if operation == "put":
            store.put(name, name.encode())
        elif operation == "delete" and name in dict.fromkeys(i.name for page in store.list() for i in page.objects):
            store.delete(name)
        elif operation == "list":
            for node in fs.list_dir(1):
                fs.remember(node)
                held.append(node)
        elif operation == "forget" and held:
            fs.forget(held.pop().node_id, 1)
        elif operation == "later":
            clock.now_s += 121
    for node in held:
        fs.forget(node.node_id, 1)
    clock.now_s += 121
    everything = tree(fs)
    assert len(fs._tree.nodes) == 1 + len(everything)
    files = [blob for blob in everything.values() if blob != "/"]
    assert (fs._tree.file_count, fs._tree.size_bytes) == (len(files), sum(map(len, files)))


def test_a_known_blob_takes_at_most_600_bytes(tmp_path: Path) -> None:
    count = 5000
    directory = tmp_path / "0 - zero"
    directory.mkdir()
    for number in range(count):
        (directory / f"0 - zero_{number}.jpg").touch()
    fs = mount(LocalStore(str(tmp_path)))
    gc.collect()
    tracemalloc.start()
    try:
        before_bytes, _ = tracemalloc.get_traced_memory()
        assert len(fs.list_dir(find(fs, "0 - zero"))) == count
        gc.collect()
        after_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after_bytes - before_bytes) / count <= 600
