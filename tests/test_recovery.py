"""Classifying a cache file by file, and what is done with it, without any mount."""

import os
from pathlib import Path

import pytest

from amlmount.errors import BusyError, NetworkError
from amlmount.recovery import Folder, Instance, find_folders, make_running, read_report, remove_tree, salvage
from amlmount.recovery.classify import Comparison, LocalFile, Rules, Verdict, classify
from amlmount.recovery.contents import is_part, is_same, send
from amlmount.recovery.rescue import salvage_pending
from amlmount.stores.base import ObjectInfo
from amlmount.stores.memory import MemoryStore
from flaky_store import FlakyStore

MARK = 0o711
NOON_NS = 1_700_000_000 * 10**9
RULES = Rules(whole_seconds=True, unfinished_mode=MARK)


def local(size: int = 5, mtime_ns: int = NOON_NS + 5, mode: int = 0o644) -> LocalFile:
    return LocalFile("f", "/nowhere/f", size, mtime_ns, mode)


def blob(size: int = 5, mtime_ns: int = NOON_NS) -> ObjectInfo:
    return ObjectInfo("f", size, "e", mtime_ns)


def comparing(same: bool = False, part: bool = False) -> Comparison:
    return Comparison(lambda: same, lambda: part)


@pytest.mark.parametrize(
    ("file", "there", "compare", "verdict"),
    [
        (local(mtime_ns=NOON_NS, mode=0o755), blob(), comparing(), Verdict.CLEAN),
        (local(mtime_ns=NOON_NS, mode=0o755), blob(6), comparing(), Verdict.STALE),
        (local(mtime_ns=NOON_NS, mode=0o755), None, comparing(), Verdict.STALE),
        (local(mode=MARK), blob(), comparing(part=True), Verdict.UNFINISHED),
        (local(mode=MARK), blob(), comparing(part=False), Verdict.CHANGED),  # a file that somebody has made 0711
        (local(mode=MARK), blob(6), comparing(part=True), Verdict.CHANGED),
        (local(), blob(), comparing(same=True), Verdict.STORED),
        (local(), blob(mtime_ns=NOON_NS + 10**9), comparing(same=True), Verdict.STORED),
        (local(), blob(mtime_ns=NOON_NS + 10**9), comparing(), Verdict.CONFLICT),
        (local(mtime_ns=NOON_NS + 999_999_999), blob(mtime_ns=NOON_NS), comparing(), Verdict.CHANGED),
        (local(), None, comparing(), Verdict.NEW),
        (local(size=0), None, comparing(), Verdict.LOST),
        (local(size=0), blob(), comparing(), Verdict.LOST),
        (local(size=0), blob(0), comparing(same=True), Verdict.STORED),
    ],
)
def test_every_kind(file: LocalFile, there: ObjectInfo | None, compare: Comparison, verdict: Verdict) -> None:
    assert classify(file, there, RULES, compare) is verdict


def test_a_store_with_fine_times_knows_copies_by_them() -> None:
    rules = Rules(whole_seconds=False, unfinished_mode=MARK)
    assert classify(local(mtime_ns=NOON_NS + 7), blob(mtime_ns=NOON_NS + 7), rules, comparing()) is Verdict.CLEAN
    assert classify(local(mtime_ns=NOON_NS), None, rules, comparing()) is Verdict.NEW


def test_a_part_is_the_blob_with_pages_missing(tmp_path: Path) -> None:
    store, path = MemoryStore(), tmp_path / "f"
    whole = os.urandom(3 * 4096 + 100)
    info = store.put("f", whole)
    other = b"x" if whole[5000:5001] != b"x" else b"y"
    for content, expected in (
        (whole, True),
        (whole[:5000] + bytes(len(whole) - 5000), True),
        (bytes(4096) + whole[4096:], True),
        (whole[:5000] + other + bytes(len(whole) - 5001), False),
    ):
        path.write_bytes(content)
        assert is_part(store, info, str(path)) is expected
        assert is_same(store, info, str(path)) is (content == whole)


def test_a_large_file_is_sent_whole(tmp_path: Path) -> None:
    store, path = MemoryStore(), tmp_path / "f"
    path.write_bytes(os.urandom((8 << 20) + 5))
    send(store, "f", str(path), if_match=None, metadata={"kept": "1"})
    assert store.get("f") == path.read_bytes() and store.head("f").metadata == {"kept": "1"}


def aside(tmp_path: Path, **changes: object) -> Folder:
    facts: dict[str, object] = {"mount": "m", "target": "/m", "store": {}, "path": "", "read_only": False}
    facts |= {"allow_other": False, "cache": "file_cache", "cache_bytes": 1, "memory_bytes": 0} | changes
    return make_running(str(tmp_path / "base"), Instance(**facts))  # type: ignore[arg-type]


def test_a_run_that_lives_is_not_touched(tmp_path: Path) -> None:
    folder = aside(tmp_path)
    assert folder.instance.alive
    with pytest.raises(BusyError, match="still runs"):
        salvage(folder)


def test_a_store_that_is_down_leaves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = aside(tmp_path).note(boot_id="another").set_aside().note(ended_at_s=1.0)
    Path(folder.data, "sub").mkdir()
    Path(folder.data, "sub", "f").write_bytes(b"data")
    inner = MemoryStore()
    store = FlakyStore(inner)
    monkeypatch.setattr("amlmount.recovery.rescue.open_store", lambda definition: store)
    store.fail("head", NetworkError("cannot reach it"))
    report = salvage(folder)
    assert report.pending and [(f.name, f.verdict, f.action) for f in report.files] == [("sub/f", "unknown", "kept")]
    assert [found.path for found in find_folders(str(tmp_path / "base"), "aside-")] == [folder.path]
    monkeypatch.setattr("amlmount.recovery.rescue.open_store", lambda definition: inner)
    assert [f.action for f in salvage(folder, dry_run=True).files] == ["none"]
    assert [f.action for f in salvage(folder).files] == ["sent"] and inner.get("sub/f") == b"data"
    assert not os.path.exists(folder.path)


def test_what_was_dealt_with_is_left_alone_and_its_report_keeps_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = aside(tmp_path).note(boot_id="another").set_aside().note(ended_at_s=1.0)
    Path(folder.data, "new").write_bytes(b"data")
    Path(folder.data, "empty").touch()
    store = MemoryStore()
    monkeypatch.setattr("amlmount.recovery.rescue.open_store", lambda definition: store)
    first = salvage_pending(folder)
    assert first is not None and [f.action for f in first.files] == ["kept", "sent"]
    assert salvage_pending(folder) is None, "only a person can do more"
    assert [f.action for f in salvage(folder).files] == ["kept"], "who asks by name is told what is left"
    report = read_report(folder)
    assert report is not None
    assert [(f["name"], f["action"]) for f in report["files"]] == [("new", "sent"), ("empty", "kept")]


def test_a_prefix_is_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = aside(tmp_path, path="deep/down").note(boot_id="another").set_aside().note(ended_at_s=1.0)
    Path(folder.data, "f").write_bytes(b"data")
    store = MemoryStore()
    monkeypatch.setattr("amlmount.recovery.rescue.open_store", lambda definition: store)
    salvage(folder)
    assert store.get("deep/down/f") == b"data"


@pytest.mark.root
def test_nothing_is_removed_through_a_mount(tmp_path: Path) -> None:
    from amlmount.mounts import syscalls

    (tmp_path / "tree" / "m").mkdir(parents=True)
    syscalls.mount("none", str(tmp_path / "tree" / "m"), "tmpfs")
    try:
        (tmp_path / "tree" / "m" / "blob").write_text("precious")
        remove_tree(str(tmp_path / "tree"))
        assert (tmp_path / "tree" / "m" / "blob").read_text() == "precious"
    finally:
        syscalls.umount2(str(tmp_path / "tree" / "m"))
    remove_tree(str(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()
