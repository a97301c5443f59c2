"""Many small files, one after the other: what is not asked for, written down or waited for again at each of them."""

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amlmount.errors import AccessDeniedError, NetworkError
from amlmount.stores.base import ObjectInfo
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.base import ROOT_NODE_ID, WouldBlock
from amlmount.vfs.writing import filesystem
from amlmount.vfs.writing.livefile import LiveFile
from amlmount.vfs.writing.records import decode
from amlmount.vfs.writing.standing import Backlog
from mounting import until
from writing.ground import WRONLY, Tree, content_of, opened

LIMIT = 10_000


class Store(MemoryStore):
    """A store that is asked over a network, and does something of the test's before it takes a blob."""

    def __init__(self) -> None:
        self.uploaded = 0
        self.before: Callable[[str], object] = lambda name: None
        super().__init__(is_local=False)

    def upload(self, name: str, content: Any, **more: Any) -> ObjectInfo:
        self.uploaded += 1
        self.before(name)
        return super().upload(name, content, **more)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def tree(store: Store, tmp_path: Path) -> Iterator[Tree]:
    with opened(store, tmp_path, durability="journal") as tree:
        yield tree


def written_by_the_kernel(tree: Tree, name: str, data: bytes) -> LiveFile:
    """Make a file of which we hear nothing but its closing."""
    file = tree.names.create(ROOT_NODE_ID, name.encode(), WRONLY, may_wait=False)
    assert isinstance(file, LiveFile)
    fd, epoch = tree.files.empty_file(file, WRONLY) or (-1, -1)
    assert tree.files.begin_direct(file, WRONLY, epoch)
    os.write(fd, data)
    os.close(fd)
    return file


def test_who_reads_requests_makes_a_new_file_and_closes_what_was_flushed(tree: Tree) -> None:
    tree.list()
    file = written_by_the_kernel(tree, "a", b"content")
    tree.files.flush(file.node_id)
    tree.files.close_file(file, may_wait=False)
    assert not file.opens and not file.state.is_direct and file.is_pending
    assert tree.read("a") == b"content"


def test_who_reads_requests_leaves_to_others_what_was_written_after_the_flush(tree: Tree) -> None:
    tree.list()
    file = written_by_the_kernel(tree, "a", b"content")
    tree.files.flush(file.node_id)
    os.pwrite(file.fd(), b"more", 7)
    with pytest.raises(WouldBlock):
        tree.files.close_file(file, may_wait=False)
    assert file.opens == 1
    tree.files.close_file(file)
    assert file.is_pending and file.state.promised == file.state.change


def test_who_reads_requests_does_not_wait_for_whoever_holds_a_file(tree: Tree) -> None:
    tree.list()
    file = written_by_the_kernel(tree, "a", b"content")
    tree.files.flush(file.node_id)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with file.lock:
            held.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(10)
        with pytest.raises(WouldBlock):
            tree.files.close_file(file, may_wait=False)
    finally:
        done.set()
        holder.join()
    tree.files.close_file(file, may_wait=False)


def test_who_reads_requests_makes_no_file_for_which_a_store_is_asked(tree: Tree) -> None:
    tree.list()
    tree.write("there", b"content")
    for name, flags in ((b"there", WRONLY), (b"new", WRONLY | os.O_EXCL)):
        with pytest.raises(WouldBlock):
            tree.names.create(ROOT_NODE_ID, name, flags, may_wait=False)
    tree.files.uploads.refused = AccessDeniedError("no")
    with pytest.raises(WouldBlock):
        tree.names.create(ROOT_NODE_ID, b"new", WRONLY, may_wait=False)
    assert tree.list() == ["there"]


def test_a_small_file_takes_two_records_to_be_promised(tree: Tree, tmp_path: Path) -> None:
    tree.list()
    before = decode((tmp_path / "journal").read_bytes()).next_number
    for number in range(10):
        file = written_by_the_kernel(tree, str(number), b"content")
        tree.files.flush(file.node_id)
        tree.files.close_file(file, may_wait=False)
    records = decode((tmp_path / "journal").read_bytes()).records[before - 1 :]
    assert Counter(record.kind for record in records) == {"file": 10, "promise": 10}


def test_one_that_is_slow_to_be_sent_holds_up_no_other(tree: Tree, store: Store) -> None:
    for name in ("one", "two"):  # as many threads as this takes are there then, and all of them wait
        tree.write(name, b"before")
    assert tree.files.drain(10)
    until(lambda: len(content_of(store)) == 2)
    go_on = threading.Event()
    store.before = lambda name: None if name != "slow" else go_on.wait(20)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filesystem, "RENAMED_WITHIN_S", 0.1)
            tree.write("slow", b"1")
            patch.setattr(filesystem, "RENAMED_WITHIN_S", 0.3)
            tree.write("quick", b"2")
        until(lambda: "quick" in content_of(store))
        assert "slow" not in content_of(store)
    finally:
        go_on.set()
    until(lambda: "slow" in content_of(store))


def refuse(name: str) -> None:
    raise NetworkError(f"cannot reach the store for {name}")


def test_no_more_is_promised_than_is_let(tmp_path: Path) -> None:
    store = Store()
    with opened(store, tmp_path, durability="journal") as tree:
        tree.files._backlog = Backlog(tree.files.ledger.files, LIMIT)
        tree.list()
        store.before = refuse
        for name in ("a", "b"):
            tree.write(name, bytes(LIMIT - 1))
        handle = tree.create("c", WRONLY)
        handle.write(0, b"more")
        with pytest.raises(OSError) as caught:
            handle.fsync()
        assert caught.value.errno == errno.EIO
        store.before = lambda name: None
        assert tree.files.drain(10)
        handle.write(0, b"less")
        calls = store.uploaded
        handle.close()
        assert store.uploaded == calls  # it is promised again, and sent later
