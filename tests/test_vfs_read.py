"""Reading, what errors become, and `df`: docs/semantics.md, reads, errors and space."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from amlmount.errors import (
    AccessDeniedError,
    AmlmountError,
    BlobNotFoundError,
    ContainerNotFoundError,
    NetworkError,
    PreconditionFailedError,
    ThrottledError,
)
from amlmount.stores.local import LocalStore
from amlmount.vfs import open_filesystem
from amlmount.vfs.base import FileSystem
from amlmount.vfs.errno import errno_of as errno_of_error
from amlmount.vfs.filesystem import UNLIMITED_BYTES
from flaky_store import FlakyStore
from vfs_trees import FakeClock, find, make_policy, make_spec, memory, mount, source, tree


def errno_of(ask: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        ask()
    return caught.value.errno


def test_read_ranges() -> None:
    fs = mount(memory(file=b"0123456789", empty=b""))
    file_id = find(fs, "file")
    assert fs.read(file_id, 0, 100) == b"0123456789"
    assert fs.read(file_id, 3, 4) == b"3456"
    assert fs.read(file_id, 8, 100) == b"89"
    assert fs.read(file_id, 10, 1) == fs.read(file_id, 99, 1) == fs.read(file_id, 0, 0) == b""
    assert fs.read(find(fs, "empty"), 0, 10) == b""


@pytest.mark.parametrize("how", ["replaced", "deleted"])
def test_read_other_version(how: str) -> None:
    store = memory(file=b"old")
    fs = mount(store, policy=make_policy(pinned=True))
    file_id = find(fs, "file")
    assert fs.read(file_id, 0, 9) == b"old"
    store.put("file", b"new") if how == "replaced" else store.delete("file")
    assert errno_of(lambda: fs.read(file_id, 0, 9)) == errno.ESTALE
    assert fs.lookup(1, b"file").node_id == file_id  # names are pinned as well
    assert fs.last_error is None


def test_read_stale_expires_the_listing() -> None:
    store = memory(file=b"old")
    fs = mount(store)
    file_id = find(fs, "file")
    store.put("file", b"new")
    assert errno_of(lambda: fs.read(file_id, 0, 9)) == errno.ESTALE
    assert fs.read(find(fs, "file"), 0, 9) == b"new"  # at once, not after two minutes


def test_read_short_is_an_error() -> None:
    class Liar(FlakyStore):
        def get(self, name: str, start: int = 0, length: int | None = None, *, if_match: str | None = None) -> bytes:
            return super().get(name, start, length, if_match=if_match)[:-1]

    fs = mount(Liar(memory(file=b"12345")))
    assert errno_of(lambda: fs.read(find(fs, "file"), 0, 5)) == errno.EIO


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BlobNotFoundError("cannot"), errno.ESTALE),
        (PreconditionFailedError("cannot"), errno.ESTALE),
        (AccessDeniedError("cannot"), errno.EACCES),
        (ContainerNotFoundError("cannot"), errno.EIO),
        (NetworkError("cannot"), errno.EIO),
        (ThrottledError("cannot"), errno.EIO),
        (AmlmountError("cannot"), errno.EIO),
    ],
)
def test_error_numbers(error: AmlmountError, code: int) -> None:
    assert errno_of_error(error) == code
    store = FlakyStore(memory("dir/file"))
    fs = mount(store)
    file_id = find(fs, "dir/file")
    store.fail("get", error)
    assert errno_of(lambda: fs.read(file_id, 0, 1)) == code
    store.fail("list", error)
    assert errno_of(lambda: mount(store).list_dir(1)) == code


def test_error_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "amlmount.vfs")
    store = FlakyStore(memory("a"))
    fs = mount(store, policy=make_policy(list_ttl_s=0))
    store.fail("list")
    for _ in range(5):
        assert errno_of(lambda: fs.list_dir(1)) == errno.EIO
    store.fail("list", AccessDeniedError("cannot list: key expired"))
    for _ in range(5):
        assert errno_of(lambda: fs.list_dir(1)) == errno.EACCES
    store.heal()
    fs.list_dir(1)
    fs.list_dir(1)
    assert [record.getMessage() for record in caplog.records] == [
        "store data: cannot reach the store for list",
        "store data: cannot list: key expired",
        "store data is well again",
    ]


def test_error_kept_while_it_lasts() -> None:
    store = FlakyStore(memory("a"))
    fs = mount(store, policy=make_policy(list_ttl_s=0))
    seen = [fs.last_error]
    store.fail("list")
    for _ in range(2):
        errno_of(lambda: fs.list_dir(1))
        seen.append(fs.last_error)
    store.heal()
    fs.list_dir(1)
    seen.append(fs.last_error)
    before, first, second, after = seen
    assert before is after is None
    assert first and second and first.since_ns == second.since_ns
    assert (first.store_name, first.error.code) == ("data", "network")


def test_error_root_vanishes(tmp_path: Path) -> None:
    root, clock = tmp_path / "root", FakeClock()
    (root / "dir").mkdir(parents=True)
    (root / "dir/file").write_bytes(b"data")
    fs = mount(LocalStore(str(root)), clock=clock)
    file_id = find(fs, "dir/file")
    root.rename(tmp_path / "gone")
    assert errno_of(lambda: fs.read(file_id, 0, 9)) == errno.EIO
    clock.now_s += 121
    assert errno_of(lambda: fs.list_dir(1)) == errno.EIO
    assert errno_of(lambda: fs.lookup(1, b"dir")) == errno.EIO
    assert fs.last_error and isinstance(fs.last_error.error, ContainerNotFoundError)
    (tmp_path / "gone").rename(root)
    assert [node.name for node in fs.list_dir(1)] == [b"dir"]
    assert fs.read(file_id, 0, 9) == b"data"
    assert fs.last_error is None


def test_space_local(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    fs = mount(LocalStore(str(tmp_path)))
    disk = os.statvfs(tmp_path)
    assert fs.statfs().total_bytes == disk.f_blocks * disk.f_frsize
    assert 0 < fs.statfs().free_bytes <= fs.statfs().total_bytes
    tree(fs)
    assert fs.statfs().files == 1


def test_space_without_end(tmp_path: Path) -> None:
    fs = mount(memory(a=b"123", b=b"4567"))
    assert fs.statfs().total_bytes == fs.statfs().free_bytes == UNLIMITED_BYTES
    tree(fs)
    stats = fs.statfs()
    assert (stats.total_bytes - stats.free_bytes, stats.free_bytes, stats.files) == (7, UNLIMITED_BYTES, 2)
    mixed = mount(
        {"one": memory("a"), "two": LocalStore(str(tmp_path))}, source("one", child="x"), source("two", child="y")
    )
    assert mixed.statfs().free_bytes == UNLIMITED_BYTES
    gone = mount(LocalStore(str(tmp_path / "none")))
    assert gone.statfs().free_bytes == UNLIMITED_BYTES
    assert gone.last_error is not None


def test_close_closes_every_store_once() -> None:
    store = FlakyStore(memory("a/x", "b/y"))
    fs: FileSystem = mount(store, source(path="a", child="a"), source(path="b", child="b"))
    fs.close()
    assert store.calls["close"] == 1


def test_stores_are_opened_from_their_definitions(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"local")
    local = source("disk", child="disk").model_copy(update={"store": {"type": "local", "path": str(tmp_path)}})
    held = source("held", child="held").model_copy(update={"store": {"type": "memory", "objects": {"a": "text"}}})
    fs = open_filesystem(make_spec([local, held], make_policy()))
    assert fs.read(find(fs, "disk/file"), 0, 9) == b"local"
    assert fs.read(find(fs, "held/a"), 0, 9) == b"text"
    fs.close()
