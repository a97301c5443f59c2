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

from amlmount.errors import AmlmountError
from amlmount.stores.local import LocalStore
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.base import ROOT_NODE_ID, FileSystem, Node, NodeKind
from amlmount.vfs.filesystem import BlobFileSystem
from amlmount.vfs.nodes import Numbers, Source
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


# Refresh


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
