"""What docs/semantics.md says of writers elsewhere, sentence by sentence."""

import errno
from pathlib import Path

import pytest

from amlmount.errors import NetworkError
from amlmount.stores.base import ObjectInfo
from amlmount.stores.local import LocalStore
from amlmount.stores.memory import MemoryStore
from writing.ground import RDWR, content_of, opened
from writing.trouble import conflicts, error_of, wait_for


@pytest.mark.parametrize("durability", ["store", "journal"])
def test_conflict_kept_beside(tmp_path: Path, durability: str) -> None:
    store = MemoryStore({"a": b"old"})
    with opened(store, tmp_path, durability=durability) as tree:
        handle = tree.open("a", RDWR)
        handle.write(0, b"mine")
        store.put("a", b"theirs")
        if durability == "store":
            assert error_of(handle.close) == errno.ESTALE
        else:
            handle.close()
            wait_for(lambda: conflicts(store))
        assert store.get("a") == b"theirs" and list(conflicts(store).values()) == [b"mine"]
        wait_for(lambda: tree.files.writing_stats().dirty_files == 0)
        tree.later()
        assert tree.read("a") == b"theirs"


def test_conflict_deleted(tmp_path: Path) -> None:
    store = MemoryStore({"a": b"old"})
    with opened(store, tmp_path) as tree:
        with tree.open("a", RDWR) as handle:
            handle.write(3, b"er")
            store.delete("a")
        assert content_of(store) == {"a": b"older"}


@pytest.mark.parametrize("make", ["memory", "local"])
def test_conflict_own_write(tmp_path: Path, make: str) -> None:
    (tmp_path / "store").mkdir()
    store: MemoryStore | LocalStore = MemoryStore() if make == "memory" else LocalStore(str(tmp_path / "store"))
    real = store.upload

    def unheard(*args: object, **kwargs: object) -> ObjectInfo:
        real(*args, **kwargs)  # type: ignore[arg-type]
        store.upload = real  # type: ignore[method-assign]
        raise NetworkError("cannot hear the answer")

    with opened(store, tmp_path / "state", upload_timeout_s=10.0) as tree:
        tree.write("a", b"old")
        with tree.open("a", RDWR) as handle:
            handle.write(0, b"new")
            store.upload = unheard  # type: ignore[method-assign]
        assert content_of(store) == {"a": b"new"}


def test_conflict_new_file(tmp_path: Path) -> None:
    store = MemoryStore()
    with opened(store, tmp_path) as tree:
        handle = tree.create("a")
        handle.write(0, b"mine")
        store.put("a", b"theirs")
        assert error_of(handle.close) == errno.ESTALE
        assert store.get("a") == b"theirs" and list(conflicts(store).values()) == [b"mine"]


def test_conflict_unlink_and_rename(tmp_path: Path) -> None:
    store = MemoryStore({"a": b"1", "b": b"2", "c": b"3"})
    with opened(store, tmp_path) as tree:
        assert tree.list() == ["a", "b", "c"]
        store.put("a", b"changed")
        store.put("c", b"changed")
        tree.unlink("a")
        tree.rename("b", "c")
        assert content_of(store) == {"c": b"2"}
