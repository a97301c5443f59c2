"""What docs/semantics.md says of changing names, sentence by sentence."""

import errno
from pathlib import Path

import pytest

from amlmount.config.spec import MountSpec
from amlmount.stores.base import ObjectInfo, ObjectStore
from amlmount.stores.local import LocalStore
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.base import NodeKind
from amlmount.vfs.writing import open_writable, recover
from amlmount.vfs.writing.attempts import Attempt
from vfs_trees import FakeClock, memory, mount, source, tree
from writing.ground import RDWR, Tree, content_of, opened, spec_for
from writing.trouble import DOWN, Trouble, error_of


def test_name_mkdir(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    far, near = MemoryStore(), LocalStore(str(tmp_path / "store"))
    stores: list[ObjectStore] = [far, near]
    for number, store in enumerate(stores):
        with opened(store, tmp_path / str(number)) as tree:
            tree.mkdir("d")
            tree.later()
            assert tree.list() == ["d"] and tree.list("d") == []
    assert dict(far.head("d").metadata) == {"hdi_isfolder": "true"} and (tmp_path / "store" / "d").is_dir()


def test_name_rmdir(tmp_path: Path) -> None:
    store = MemoryStore({"d/x": b"1", "e/": b""})
    store.put("e", b"", metadata={"hdi_isfolder": "true"})
    with opened(store, tmp_path, list_ttl_s=1000.0) as tree:
        assert tree.list("d") == ["x"] and tree.list("e") == []
        assert error_of(lambda: tree.rmdir("d")) == errno.ENOTEMPTY
        tree.rmdir("e")
        assert content_of(store) == {"d/x": b"1"}
        store.delete("d/x")
        store.put("d/y", b"2")
        assert error_of(lambda: tree.rmdir("d")) == errno.ENOTEMPTY


def test_name_directory_stays(tmp_path: Path) -> None:
    store = MemoryStore({"d/x": b"1", "e/y": b"2"})
    with opened(store, tmp_path) as tree:
        tree.unlink("d/x")
        tree.rename("e/y", "d/y")
        tree.later()
        assert tree.list() == ["d", "e"] and tree.list("e") == []


def test_name_rename_file(tmp_path: Path) -> None:
    trouble = Trouble()
    store = MemoryStore({"a": b"1", "b": b"2"}, before=trouble)
    with opened(store, tmp_path) as tree:
        handle = tree.create("new")
        handle.write(0, b"3")
        tree.rename("new", "newer")
        handle.close()
        assert "copy newer" not in trouble.calls and store.get("newer") == b"3"
        tree.rename("a", "b")
        changes = [call for call in trouble.calls if call.split()[0] in ("copy", "delete")]
        assert changes == ["copy b", "delete a"] and tree.list() == ["b", "newer"]
        assert content_of(store) == {"b": b"1", "newer": b"3"}
        trouble.failing["copy"] = DOWN
        assert error_of(lambda: tree.rename("b", "c")) == errno.EIO
        assert tree.read("b") == b"1"


def test_name_rename_one_upload(tmp_path: Path) -> None:
    trouble = Trouble()
    store = MemoryStore({"final": b"before"}, before=trouble)
    with opened(store, tmp_path, durability="journal") as tree:
        trouble.calls.clear()
        tree.write("tmp", b"checkpoint")
        tree.rename("tmp", "final")
        assert tree.read("final") == b"checkpoint" and tree.list() == ["final"]
        assert store.get("final") == b"before"
        assert tree.files.drain(10)
        assert content_of(store) == {"final": b"checkpoint"}
        changes = [call for call in trouble.calls if call.split()[0] in ("put", "copy", "delete")]
        assert changes == ["put final"]


def test_name_rename_directory(tmp_path: Path) -> None:
    trouble = Trouble()
    store = MemoryStore({"d/x": b"1", "d/e/y": b"2", "f": b""}, before=trouble)
    with opened(store, tmp_path) as tree:
        tree.rename("d", "g")
        assert {name: data for name, data in content_of(store).items() if data} == {"g/x": b"1", "g/e/y": b"2"}
        failing = iter((None, DOWN))
        real, trouble_of = store.copy, failing

        def copy(source: ObjectInfo, name: str, *, if_none_match: bool = False) -> ObjectInfo:
            if (error := next(trouble_of, DOWN)) is not None:
                raise error
            return real(source, name, if_none_match=if_none_match)

        store.copy = copy  # type: ignore[method-assign]
        assert error_of(lambda: tree.rename("g", "h")) == errno.EIO
        assert {name for name, data in content_of(store).items() if data} == {"g/x", "g/e/y"}
        assert tree.read("g/x") == b"1" and tree.list() == ["f", "g"]


def test_a_renaming_that_was_begun_goes_on_over_its_own_copies(tmp_path: Path) -> None:
    store = MemoryStore({"d/x": b"1", "d/y": b"2"}, is_local=False)
    with opened(store, tmp_path) as tree:
        assert tree.list("d") == ["x", "y"]
        store.copy(store.head("d/x"), "e/x")
        tree.later()
        assert tree.list() == ["d", "e"]
        again = Attempt()
        with pytest.raises(OSError, match="not empty"):
            tree.renaming.rename(*tree.parent("d"), *tree.parent("e"), attempt=again)
        again.was_begun = True
        tree.renaming.rename(*tree.parent("d"), *tree.parent("e"), attempt=again)
        assert {name: data for name, data in content_of(store).items() if data} == {"e/x": b"1", "e/y": b"2"}
        assert tree.list() == ["e"] and tree.list("e") == ["x", "y"]


def test_name_rename_open(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    stores: list[ObjectStore] = [MemoryStore(), LocalStore(str(tmp_path / "store"))]
    for number, store in enumerate(stores):
        store.put("d/e/x", b"1")
        store.put("d/y", b"2")
        with opened(store, tmp_path / str(number)) as tree:
            with tree.open("d/e/x", RDWR) as writer, tree.open("d/y") as reader:
                writer.write(1, b"!")
                tree.rename("d", "f")
                assert writer.read() == b"1!" and reader.read() == b"2"
                writer.write(2, b"?")
            assert store.get("f/e/x") == b"1!?" and store.get("f/y") == b"2"
            tree.later()
            assert tree.read("f/e/x") == b"1!?"


def two_sources(state_dir: Path, store: ObjectStore) -> Tree:
    sources = (source(child="one", path="p"), source(child="two", path="q"))
    spec: MountSpec = spec_for(state_dir).model_copy(update={"sources": sources})
    clock = FakeClock()
    files = open_writable(spec, stores={"data": store}, clock=clock)
    recover(files)
    return Tree(files, clock)


def test_name_rename_into_other_source(tmp_path: Path) -> None:
    tree = two_sources(tmp_path, MemoryStore({"p/a": b"1", "q/b": b"2"}))
    try:
        assert error_of(lambda: tree.rename("one/a", "two/a")) == errno.EXDEV
    finally:
        tree.files.close()


def test_name_plain_root(tmp_path: Path) -> None:
    tree = two_sources(tmp_path, MemoryStore({"p/a": b"1", "q/b": b"2"}))
    try:
        assert error_of(lambda: tree.create("x")) == errno.EPERM
        assert error_of(lambda: tree.mkdir("x")) == errno.EPERM
        tree.write("one/x", b"1")
    finally:
        tree.files.close()


def test_name_noreplace(tmp_path: Path) -> None:
    store = MemoryStore({"a": b"1", "b": b"2"})
    with opened(store, tmp_path, list_ttl_s=1000.0) as tree:
        assert error_of(lambda: tree.rename("a", "b", may_replace=False)) == errno.EEXIST
        store.put("c", b"made elsewhere")
        assert error_of(lambda: tree.rename("a", "c", may_replace=False)) == errno.EEXIST
        tree.rename("a", "d", may_replace=False)
        assert content_of(store) == {"b": b"2", "c": b"made elsewhere", "d": b"1"}


def test_name_symlink_made(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = MemoryStore()
    with opened(store, tmp_path / "1") as tree:
        tree.names.symlink(1, b"link", b"../target")
        assert store.get("link") == b"../target" and dict(store.head("link").metadata) == {"is_symlink": "true"}
        tree.rename("link", "moved")
        tree.later()
        node = tree.find("moved")
        assert node.kind is NodeKind.SYMLINK and tree.files.readlink(node.node_id) == b"../target"
    with opened(LocalStore(str(tmp_path / "store")), tmp_path / "2") as local:
        assert error_of(lambda: local.names.symlink(1, b"link", b"x")) == errno.EPERM


def test_names_symlink() -> None:
    store = memory(plain=b"x")
    store.put("link", b"plain", metadata={"is_symlink": "true"})
    fs = mount(store)
    node = fs.lookup(1, b"link")
    assert node.kind is NodeKind.SYMLINK and fs.readlink(node.node_id) == b"plain"
    assert tree(fs) == {b"link": "link", b"plain": "plain"}


def test_name_not_storable(tmp_path: Path) -> None:
    with opened(MemoryStore(is_local=False), tmp_path) as tree:
        assert error_of(lambda: tree.names.create(1, b"\xff", RDWR)) == errno.EILSEQ
        tree.mkdir("d" * 600)
        assert error_of(lambda: tree.create("d" * 600 + "/" + "e" * 600)) == errno.ENAMETOOLONG
