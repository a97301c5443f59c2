"""A file system that takes the place of another knows what that knew, by the same numbers, and asks no store for it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from amlmount.config.spec import MountSpec
from amlmount.stores import open_store
from amlmount.vfs import open_filesystem
from amlmount.vfs.base import ROOT_NODE_ID, Node
from amlmount.vfs.filesystem import BlobFileSystem
from mounting import make_source, spec_of


class ListJournal:
    """A journal in memory, rewritten when it is twice as long as it was."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.was = 0

    def append(self, record: bytes) -> None:
        self.kept.append(record)

    @property
    def wants_rewrite(self) -> bool:
        return len(self.kept) > 2 * self.was + 8

    def rewrite(self, records: Iterable[bytes]) -> None:
        self.kept = list(records)
        self.was = len(self.kept)


class Counting:
    """A store that counts how often it is asked to list."""

    def __init__(self, spec: MountSpec) -> None:
        self.store = open_store(spec.sources[0].store)
        self.lists = 0

    def __getattr__(self, name: str) -> object:
        self.lists += name == "list"
        return getattr(self.store, name)


@pytest.fixture
def spec(tmp_path: Path) -> MountSpec:
    return spec_of(make_source(str(tmp_path)), "/nowhere")


def opened(spec: MountSpec) -> tuple[BlobFileSystem, Counting]:
    store = Counting(spec)
    return open_filesystem(spec, stores={spec.sources[0].store_name: store}), store  # type: ignore[dict-item]


def fresh(spec: MountSpec) -> MountSpec:
    return spec.model_copy(update={"policy": spec.policy.model_copy(update={"list_ttl_s": 0})})


def walk(files: BlobFileSystem, node_id: int = ROOT_NODE_ID) -> Iterator[Node]:
    for node in files.list_dir(node_id):
        files.remember(node)
        yield node
        if node.kind.value == "directory":
            yield from walk(files, node.node_id)


def facts(nodes: Iterable[Node]) -> list[tuple[object, ...]]:
    return [(n.node_id, n.ino, n.parent_id, n.name, n.blob_name, n.size_bytes, n.mtime_ns, n.etag) for n in nodes]


def heir_of(journal: ListJournal, spec: MountSpec) -> tuple[BlobFileSystem, Counting]:
    heir, store = opened(spec)
    heir.inherit(journal.kept)
    return heir, store


def test_an_heir_knows_every_inode_without_asking_the_store(spec: MountSpec) -> None:
    files, _ = opened(spec)
    journal = ListJournal()
    files.leave_to(journal)
    known = list(walk(files))
    heir, store = heir_of(journal, spec)
    assert facts(heir.node(node.node_id) for node in known) == facts(known)
    assert facts(walk(heir)) == facts(known) and store.lists == 0
    assert heir.root().mtime_ns == files.root().mtime_ns
    assert heir.statfs().files == files.statfs().files
    big = heir.lookup(ROOT_NODE_ID, b"big.bin")
    assert heir.read(big.node_id, 0, 10) == files.read(big.node_id, 0, 10)


@pytest.mark.parametrize("rewritten", [False, True])
def test_versions_that_no_path_leads_to_are_known_too(spec: MountSpec, tmp_path: Path, rewritten: bool) -> None:
    """An open file of yesterday's version gives ESTALE when it is gone, and never another version's bytes."""
    spec = fresh(spec)
    files, _ = opened(spec)
    journal = ListJournal()
    files.leave_to(journal)
    list(walk(files))
    old = files.lookup(ROOT_NODE_ID, b"big.bin")
    old_folder = files.lookup(files.lookup(ROOT_NODE_ID, b"MNIST_FLAT").node_id, b"0 - zero")
    (tmp_path / "big.bin").write_bytes(b"new")
    (tmp_path / "added").write_bytes(b"1")
    (tmp_path / "empty").unlink()
    (tmp_path / "MNIST_FLAT" / "0 - zero").rename(tmp_path / "MNIST_FLAT" / "9")
    now = list(walk(files))
    if rewritten:
        files.leave_to(journal)
    heir, _ = heir_of(journal, spec)
    assert facts(heir.node(node.node_id) for node in now) == facts(now)
    assert [node.name for node in heir.list_dir(ROOT_NODE_ID)] == [node.name for node in files.list_dir(ROOT_NODE_ID)]
    assert facts([heir.node(old.node_id), heir.node(old_folder.node_id)]) == facts([old, old_folder])
    with pytest.raises(OSError, match="not the version"):
        heir.read(old.node_id, 0, 10)
    heir.forget(old.node_id, 1)
    with pytest.raises(OSError, match="unknown inode"):
        heir.node(old.node_id)


def test_the_heir_of_an_heir(spec: MountSpec, tmp_path: Path) -> None:
    spec = fresh(spec)
    files, _ = opened(spec)
    journal = ListJournal()
    files.leave_to(journal)
    known = list(walk(files))
    for turn in range(20):
        (tmp_path / f"turn{turn}").write_bytes(b"x")
        files, _ = heir_of(journal, spec)
        files.leave_to(journal)
        files.list_dir(ROOT_NODE_ID)
    assert {n.name for n in files.list_dir(ROOT_NODE_ID)} >= {b"turn%d" % turn for turn in range(20)}
    assert facts(files.node(node.node_id) for node in known[1:]) == facts(known[1:])
    assert len(journal.kept) < 30


def test_several_containers_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = spec_of(make_source(str(tmp_path / "one")), "/x"), spec_of(make_source(str(tmp_path / "two")), "/x")
    sources = (
        one.sources[0].model_copy(update={"child": "a", "store_name": "one"}),
        two.sources[0].model_copy(update={"child": "b", "store_name": "two"}),
    )
    spec = one.model_copy(update={"sources": sources})
    files, journal = open_filesystem(spec), ListJournal()
    files.leave_to(journal)
    known = list(walk(files))
    heir = open_filesystem(spec)
    heir.inherit(journal.kept)
    assert facts(walk(heir)) == facts(known) and facts([heir.root()]) == facts([files.root()])
