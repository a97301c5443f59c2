"""What docs/semantics.md says of writing, sentence by sentence: what lasts, and what files are.

Names and conflicts have modules of their own; what needs a kernel is in test_writing_mount.py.
"""

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from amlmount.config.spec import SourceSpec
from amlmount.errors import BusyError, NetworkError
from amlmount.stores.azure.blocks import BLOCK_BYTES
from amlmount.stores.base import ObjectInfo
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.writing import open_writable, recover, refusals
from writing.ground import RDWR, Tree, content_of, open_tree, opened, spec_for
from writing.trouble import DENIED, DOWN, Trouble, conflicts, error_of, wait_for

# What is acknowledged is not lost


def test_durable_store(tmp_path: Path) -> None:
    store = MemoryStore(is_local=False)
    with opened(store, tmp_path) as tree:
        handle = tree.create("a")
        handle.write(0, b"one")
        assert "a" not in content_of(store)
        handle.fsync()
        assert store.get("a") == b"one"
        handle.write(3, b" two")
        handle.close()
        assert store.get("a") == b"one two"


def test_durable_journal(tmp_path: Path) -> None:
    trouble = Trouble()
    store = MemoryStore(is_local=False, before=trouble)
    trouble.failing["put"] = DOWN
    tree = open_tree(store, tmp_path, durability="journal")
    tree.write("a", b"data")
    tree.files.uploads.close()  # the process goes no further
    os.close(tree.files._lock_fd)
    assert content_of(store) == {}
    trouble.failing.clear()
    with opened(store, tmp_path) as after:
        wait_for(lambda: content_of(store) == {"a": b"data"})
        assert after.read("a") == b"data"


def test_durable_until_close(tmp_path: Path) -> None:
    store = MemoryStore()
    tree = open_tree(store, tmp_path)
    tree.create("a").write(0, b"never closed")
    tree.files.close()
    with opened(store, tmp_path) as after:
        assert content_of(store) == {} and after.list() == []
        [kept] = after.files.writing_stats().kept
        assert (kept.name, Path(kept.path).read_bytes()) == ("a", b"never closed")


def test_durable_failed_close(tmp_path: Path) -> None:
    trouble = Trouble()
    store = MemoryStore(before=trouble)
    with opened(store, tmp_path) as tree:
        for failure, number in ((DOWN, errno.EIO), (DENIED, errno.EACCES)):
            trouble.failing["put"] = failure
            handle = tree.create(f"{number}")
            handle.write(0, b"data")
            assert error_of(handle.close) == number
            assert tree.read(f"{number}") == b"data"
            trouble.failing.clear()
            tree.files.uploads.refused = None
        assert tree.files.drain(20)
        assert set(content_of(store)) == {str(errno.EIO), str(errno.EACCES)}


def test_durable_refusal_is_told(tmp_path: Path) -> None:
    trouble = Trouble()
    store = MemoryStore(is_local=False, before=trouble)
    trouble.failing["put"] = DENIED
    with opened(store, tmp_path, durability="journal") as tree:
        handle = tree.create("a")
        handle.write(0, b"one")
        handle.fsync()  # the disk has it
        wait_for(lambda: handle.node.trouble is not None)  # type: ignore[attr-defined]
        handle.write(3, b" two")
        assert error_of(handle.fsync) == errno.EACCES
        assert error_of(handle.close) == errno.EACCES
        trouble.failing.clear()
        assert tree.files.drain(20) and store.get("a") == b"one two"


def test_durable_recovery(tmp_path: Path) -> None:
    trouble = Trouble()
    trouble.failing["put"] = DOWN
    store = MemoryStore({"d/old": b"x"}, before=Trouble())
    store._before = trouble
    tree = open_tree(store, tmp_path, durability="journal")
    tree.write("d/new", b"data" * 50_000)
    tree.files.close()
    with opened(store, tmp_path, durability="journal") as after:
        assert after.list("d") == ["new", "old"] and after.read("d/new") == b"data" * 50_000
        assert after.files.writing_stats().dirty_bytes == 200_000
        wait_for(lambda: "cannot reach" in after.files.writing_stats().trouble)
        trouble.failing.clear()
        assert after.files.drain(20) and store.get("d/new") == b"data" * 50_000
        after.later()
        assert after.list("d") == ["new", "old"]


def test_durable_one_owner(tmp_path: Path) -> None:
    with opened(MemoryStore(), tmp_path), pytest.raises(BusyError, match="another process"):
        open_tree(MemoryStore(), tmp_path)


def test_durable_place(tmp_path: Path) -> None:
    trouble = Trouble()
    trouble.failing["put"] = DOWN
    tree = open_tree(MemoryStore(before=trouble), tmp_path, durability="journal")
    tree.write("a", b"data")
    tree.files.close()
    other = SourceSpec(store_name="data", store={"type": "memory", "container": "another"})
    spec = spec_for(tmp_path).model_copy(update={"sources": (other,)})
    store = MemoryStore()
    files = open_writable(spec, stores={"data": store})
    found = recover(files)
    files.close()
    assert content_of(store) == {} and Path(found.kept[0]).read_bytes() == b"data"


def test_durable_mapping(tmp_path: Path) -> None:
    store = MemoryStore({"a": bytes(10)})
    with opened(store, tmp_path) as tree:
        handle = tree.open("a", RDWR)
        tree.files.flush(handle.node.node_id)  # close(2) comes first,
        handle.write(0, b"later")  # then the kernel writes back what the mapping changed,
        tree.files.close_file(handle.node)  # and lets go of the file without another FLUSH
        wait_for(lambda: store.get("a") == b"later" + bytes(5))


def test_durable_refused_at_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = Trouble()
    store = MemoryStore({"a": b"x"}, before=trouble)
    trouble.failing["check_writable"] = DENIED
    with opened(store, tmp_path) as tree:
        tree.files.refusals.ask(tree.files.tops()[0][0])
        assert error_of(lambda: tree.open("a", RDWR)) == errno.EACCES
        assert error_of(lambda: tree.create("b")) == errno.EACCES
        assert error_of(lambda: tree.mkdir("d")) == errno.EACCES
        assert tree.read("a") == b"x"
        trouble.failing.clear()
        monkeypatch.setattr(refusals, "ASK_AGAIN_S", 0.0)
        tree.write("a", b"y")
        assert store.get("a") == b"y"


def test_durable_drain(tmp_path: Path) -> None:
    trouble = Trouble()
    trouble.failing["put"] = DOWN
    store = MemoryStore(before=trouble)
    with opened(store, tmp_path, durability="journal") as tree:
        tree.write("a", b"data")
        assert not tree.files.drain(0.3)
        assert tree.files.writing_stats().dirty_files == 1
        trouble.failing.clear()
        assert tree.files.drain(20) and store.get("a") == b"data"
        assert tree.files.writing_stats().dirty_files == 0


def test_durable_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    with opened(store, tmp_path) as tree:
        tree.write("a", b"fine")
        handle = tree.create("b")

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(tree.files.disk, "write", full)
            assert error_of(lambda: handle.write(0, b"data")) == errno.ENOSPC
        handle.write(0, b"now")
        handle.close()
        assert content_of(store) == {"a": b"fine", "b": b"now"}


# Files


def test_write_anywhere(tmp_path: Path) -> None:
    store = MemoryStore({"a": b"0123456789"})
    with opened(store, tmp_path) as tree:
        with tree.open("a", RDWR) as handle:
            handle.write(3, b"!")
            handle.write(12, b"end")
            assert handle.read() == b"012!456789\0\0end" and handle.read(11, 2) == b"\0e"
        assert store.get("a") == b"012!456789\0\0end"


def test_write_seen_at_once(tmp_path: Path) -> None:
    store = MemoryStore({"a": b"old"})
    with opened(store, tmp_path) as tree, tree.open("a") as reader:
        assert reader.read() == b"old"
        with tree.open("a", RDWR) as writer:
            writer.write(0, b"new")
            assert reader.read() == b"new" and tree.read("a") == b"new" and store.get("a") == b"old"
        assert store.get("a") == b"new"


def test_write_append(tmp_path: Path) -> None:
    store = MemoryStore({"log": b"1"})
    with opened(store, tmp_path) as tree:
        for line in (b"2", b"3"):
            with tree.open("log", os.O_WRONLY | os.O_APPEND) as handle:
                handle.write(handle.node.size_bytes, line)
        assert store.get("log") == b"123"
        with tree.open("log", os.O_WRONLY | os.O_APPEND) as handle:
            tree.truncate("log", 1)  # by somebody else, and the kernel has not heard of it yet
            tree.files.write(handle.node.node_id, 3, b"4", is_append=True)
        assert store.get("log") == b"14"


def test_write_truncate(tmp_path: Path) -> None:
    store = MemoryStore({"a": b"0123456789"})
    with opened(store, tmp_path) as tree:
        tree.truncate("a", 4)
        assert store.get("a") == b"0123" and tree.size("a") == 4
        tree.truncate("a", 6)
        assert store.get("a") == b"0123\0\0"
        with tree.open("a", RDWR | os.O_TRUNC) as handle:
            assert handle.read() == b""
            handle.write(0, b"x")
            handle.truncate(3)
        assert store.get("a") == b"x\0\0"


def test_write_in_part(tmp_path: Path) -> None:
    store = CountingStore({"big": bytes(3 * BLOCK_BYTES)})
    with opened(store, tmp_path) as tree:
        with tree.open("big", RDWR) as handle:
            handle.write(BLOCK_BYTES + 5, b"change")
        [unchanged] = store.unchanged
        assert unchanged == [(0, BLOCK_BYTES + 5), (BLOCK_BYTES + 11, 3 * BLOCK_BYTES)]
        assert store.get("big", BLOCK_BYTES, 12) == b"\0" * 5 + b"change" + b"\0"


class CountingStore(MemoryStore):
    """Remembers what it was told is unchanged; what that saves is held by tests/contract/test_writable_contract.py."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.unchanged: list[object] = []
        super().__init__(objects)

    def upload(self, name: str, content: Any, **more: Any) -> ObjectInfo:
        self.unchanged.append(more.pop("unchanged", ()))
        return super().upload(name, content, **more)


def test_write_small_is_whole(tmp_path: Path) -> None:
    store = MemoryStore({"a": b"0123456789"}, is_local=False)
    with opened(store, tmp_path) as tree:
        handle = tree.open("a", RDWR)
        handle.write(2, b"!")
        store.put("a", b"theirs")
        assert handle.read() == b"01!3456789"
        assert error_of(handle.close) == errno.ESTALE
        assert list(conflicts(store).values()) == [b"01!3456789"]


def test_write_create_exclusive(tmp_path: Path) -> None:
    store = MemoryStore()
    made: list[str] = []
    with opened(store, tmp_path / "1") as one, opened(store, tmp_path / "2") as other:
        gate = threading.Barrier(2)

        def attempt(tree: Tree, name: str) -> None:
            assert tree.list() == []
            gate.wait()
            try:
                tree.create("lock", RDWR | os.O_EXCL).close()
                made.append(name)
            except FileExistsError:
                return

        threads = [threading.Thread(target=attempt, args=pair) for pair in ((one, "one"), (other, "other"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == 1


def test_write_same_inode(tmp_path: Path) -> None:
    store = MemoryStore({"a": b"1"})
    with opened(store, tmp_path) as tree:
        before = tree.find("a").node_id
        for data in (b"2", b"3"):
            with tree.open("a", RDWR) as handle:
                handle.write(0, data)
                assert handle.node.node_id == before
            tree.later()
            assert tree.find("a").node_id == before
            assert tree.read("a") == data


def test_a_listing_between_an_upload_and_its_answer_takes_no_name_away(tmp_path: Path) -> None:
    """What is open stays what its name leads to, though the store shows a version of which we have not heard yet."""
    store = MemoryStore(is_local=False)
    with opened(store, tmp_path) as tree:
        tree.write("a", b"one")
        tree.later()
        assert tree.list() == ["a"]
        with tree.open("a", RDWR | os.O_TRUNC) as handle:
            handle.write(0, b"two")
            upload = store.upload

            def lose_the_answer(*args: Any, **more: Any) -> ObjectInfo:
                upload(*args, **more)
                tree.later()
                assert tree.list() == ["a"]
                raise NetworkError("cannot write blob 'a': no answer")

            store.upload = lose_the_answer  # type: ignore[method-assign]
            assert error_of(handle.fsync) == errno.EIO
            store.upload = upload  # type: ignore[method-assign]
            handle.write(3, b" three")
            assert tree.find("a") is handle.node and tree.read("a") == b"two three"
        assert content_of(store) == {"a": b"two three"}


def test_write_unlinked(tmp_path: Path) -> None:
    store = MemoryStore({"a": b"one", "b": b"two", "c": b"three"}, is_local=False)
    with opened(store, tmp_path) as tree:
        with tree.open("a") as one, tree.open("b", RDWR) as two, tree.open("c") as three:
            tree.unlink("a")
            tree.unlink("b")
            tree.create("new").close()
            tree.rename("new", "c")
            two.write(3, b"!")
            assert (one.read(), two.read(), three.read()) == (b"one", b"two!", b"three")
        assert content_of(store) == {"c": b""} and tree.list() == ["c"]


def test_write_mtime(tmp_path: Path) -> None:
    store = MemoryStore()
    with opened(store, tmp_path) as tree:
        tree.write("a", b"x")
        written_ns = tree.find("a").mtime_ns
        assert abs(written_ns - time.time_ns()) < 10**10
        tree.files.set_mtime(tree.find("a").node_id, 1_600_000_000_123_456_789)
        assert store.head("a").metadata["mtime"] == "2020-09-13T12:26:40.123456789Z"
    with opened(store, tmp_path) as again:
        assert again.find("a").mtime_ns == 1_600_000_000_123_456_789


def test_write_metadata_kept(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("a", b"x", metadata={"author": "me"})
    with opened(store, tmp_path) as tree:
        with tree.open("a", RDWR) as handle:
            handle.write(1, b"y")
        assert store.head("a").metadata["author"] == "me" and store.get("a") == b"xy"
