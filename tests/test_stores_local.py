"""The local store against what a directory can hold: links, special files, lost rights, a root that comes and goes."""

import contextlib
import errno
import os
import socket
import time
from pathlib import Path

import pytest

from amlmount.errors import (
    AccessDeniedError,
    AmlmountError,
    BlobNotFoundError,
    ConfigError,
    ContainerNotFoundError,
    NetworkError,
    PreconditionFailedError,
    UsageError,
)
from amlmount.stores import open_store
from amlmount.stores.base import HasDiskSpace
from amlmount.stores.local import LocalStore
from amlmount.stores.local_names import TEMP_PREFIX, blob_error, write_error
from amlmount.stores.local_rename import rename_to_new


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "root"
    directory.mkdir()
    return directory


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(str(root))


def listed(store: LocalStore, prefix: str = "", *, delimiter: bool = False) -> list[str]:
    pages = list(store.list(prefix, delimiter=delimiter))
    return sorted([info.name for page in pages for info in page.objects] + [p for page in pages for p in page.prefixes])


def test_open_store_opens_it(root: Path) -> None:
    store = open_store({"type": "local", "path": str(root)})
    assert isinstance(store, LocalStore) and store.is_local


def test_open_store_refuses_an_unknown_type() -> None:
    with pytest.raises(ConfigError, match="cannot open a store of type 's3'"):
        open_store({"type": "s3"})


def test_empty_directories_are_prefixes(store: LocalStore, root: Path) -> None:
    (root / "a/empty").mkdir(parents=True)
    assert listed(store, delimiter=True) == ["a/"]
    assert listed(store, "a/", delimiter=True) == ["a/empty/"]
    assert listed(store) == []


def test_a_link_that_stays_inside_is_what_it_points_to(store: LocalStore, root: Path) -> None:
    (root / "dir").mkdir()
    (root / "dir/file").write_bytes(b"data")
    (root / "relative").symlink_to("dir/file")
    (root / "absolute").symlink_to(root / "dir/file")
    (root / "folder").symlink_to("dir")
    assert listed(store) == ["absolute", "dir/file", "folder/file", "relative"]
    assert listed(store, delimiter=True) == ["absolute", "dir/", "folder/", "relative"]
    for name in ("relative", "absolute", "folder/file"):
        assert store.get(name, if_match=store.head(name).etag) == b"data"
    assert store.head("relative").etag == store.head("dir/file").etag


def test_a_link_that_leads_out_is_left_out(store: LocalStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(b"secret")
    (root / "file").symlink_to("../secret")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "dangling").symlink_to("nowhere")
    assert listed(store) == listed(store, delimiter=True) == listed(store, "folder/", delimiter=True) == []
    for name in ("file", "folder/file", "dangling"):
        with pytest.raises(BlobNotFoundError):
            store.get(name)
        with pytest.raises(BlobNotFoundError):
            store.delete(name)
    with pytest.raises(AccessDeniedError):
        store.put("folder/new", b"x")
    with pytest.raises(AccessDeniedError):
        store.put("folder/deep/new", b"x")
    assert sorted(os.listdir(tmp_path / "outside")) == ["file"]


def test_a_put_replaces_a_link_not_what_it_points_to(store: LocalStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "file").symlink_to("../secret")
    store.put("file", b"mine")
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert store.get("file") == b"mine"


def test_a_sibling_with_the_roots_name_as_prefix_is_outside(store: LocalStore, root: Path) -> None:
    sibling = root.with_name(root.name + "-other")
    sibling.mkdir()
    (sibling / "file").write_bytes(b"secret")
    (root / "file").symlink_to(sibling / "file")
    assert listed(store) == []


def test_links_that_loop_end(store: LocalStore, root: Path) -> None:
    (root / "a").mkdir()
    (root / "b").mkdir()
    (root / "a/self").symlink_to(".")
    (root / "a/up").symlink_to("..")
    (root / "a/x").symlink_to("../b")
    (root / "b/y").symlink_to("../a")
    (root / "a/file").write_bytes(b"")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    assert listed(store) == ["a/file", "b/y/file"]
    assert listed(store, "a/x/", delimiter=True) == []


def test_special_files_are_left_out(store: LocalStore, root: Path) -> None:
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to("fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(root / "socket"))
        assert listed(store) == listed(store, delimiter=True) == []
        for name in ("fifo", "link", "socket"):
            with pytest.raises(BlobNotFoundError):
                store.get(name)


def test_names_that_are_not_utf8_round_trip(store: LocalStore, root: Path) -> None:
    with open(os.fsencode(root) + b"/caf\xe9", "wb") as file:
        file.write(b"latin-1")
    [name] = listed(store)
    assert name == "caf\udce9"
    assert store.get(name) == b"latin-1"


def test_names_are_refused_before_the_disk_is_touched(root: Path, tmp_path: Path) -> None:
    store = LocalStore(str(root))
    (tmp_path / "secret").write_bytes(b"secret")
    for name in ("../secret", str(tmp_path / "secret"), "a/../../secret", "", ".", "x\0", "\ud800", f"{TEMP_PREFIX}1"):
        with pytest.raises(BlobNotFoundError):
            store.get(name)
        with pytest.raises(UsageError):
            store.put(name, b"")
    for prefix in ("../", "/", f"{tmp_path}/", "a/../../", "x\0/", "a//"):
        assert listed(store, prefix) == listed(store, prefix, delimiter=True) == []
    assert os.listdir(root) == []


def test_the_root_may_go_and_come_back(store: LocalStore, root: Path) -> None:
    (root / "file").write_bytes(b"1")
    root.rename(root.with_name("gone"))
    for ask in (lambda: listed(store), lambda: store.get("file"), lambda: store.put("new", b""), store.disk_space):
        with pytest.raises(ContainerNotFoundError, match="does not exist"):
            ask()
    assert not root.exists()
    root.with_name("gone").rename(root)
    assert listed(store) == ["file"]
    assert store.get("file") == b"1"


def test_a_root_that_is_a_link_may_be_pointed_elsewhere(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "file").write_text(version)
    current = tmp_path / "current"
    current.symlink_to("v1")
    store = LocalStore(str(current))
    assert store.get("file") == b"v1"
    current.unlink()
    current.symlink_to("v2")
    assert store.get("file") == b"v2"
    assert listed(store) == ["file"]


def test_a_root_that_is_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ContainerNotFoundError, match="not a directory"):
        listed(LocalStore(str(tmp_path / "file")))


def test_a_file_changed_in_place_is_another_version(store: LocalStore, root: Path) -> None:
    etag = store.put("file", b"old").etag
    with open(root / "file", "r+b") as file:
        file.write(b"new")
    with pytest.raises(PreconditionFailedError):
        store.get("file", if_match=etag)


def test_a_change_while_reading_is_seen(store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etag = store.put("file", b"old").etag
    pread = os.pread

    def slow_pread(fd: int, size: int, offset: int) -> bytes:
        data = pread(fd, size, offset)
        (root / "file").write_bytes(b"new!")
        return data

    monkeypatch.setattr(os, "pread", slow_pread)
    with pytest.raises(PreconditionFailedError):
        store.get("file", if_match=etag)


def test_a_put_sets_the_time_itself(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_456_789)  # no kernel's clock ticks that finely
    assert store.put("file", b"").mtime_ns == store.head("file").mtime_ns == 1_700_000_000_123_456_789


def test_a_put_that_fails_leaves_nothing(store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("file", b"old")

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(AmlmountError, match="cannot write blob 'file': no space left on device"):
        store.put("file", b"new")
    assert os.listdir(root) == ["file"]
    assert store.get("file") == b"old"


def test_a_leftover_of_a_killed_put_is_not_shown(store: LocalStore, root: Path) -> None:
    (root / f"{TEMP_PREFIX}0123").write_bytes(b"half")
    assert listed(store) == listed(store, delimiter=True) == []


def test_a_file_and_a_directory_cannot_have_one_name(store: LocalStore) -> None:
    store.put("a/b", b"")
    with pytest.raises(UsageError, match="there is a directory"):
        store.put("a", b"")
    with pytest.raises(UsageError, match="one of its directories is a file"):
        store.put("a/b/c", b"")
    assert listed(store) == ["a/b"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EACCES, AccessDeniedError),
        (errno.EPERM, AccessDeniedError),
        (errno.EIO, NetworkError),
        (errno.ESTALE, NetworkError),
        (errno.ENOTCONN, NetworkError),
        (errno.ENOENT, BlobNotFoundError),
        (errno.ENOTDIR, BlobNotFoundError),
        (errno.EMFILE, AmlmountError),
    ],
)
def test_what_the_system_says_is_translated(root: Path, code: int, kind: type[AmlmountError]) -> None:
    error = blob_error(OSError(code, "said"), "read", "name", str(root))
    assert type(error) is kind
    assert error.message.startswith("cannot read blob 'name': ")


def test_a_name_too_long_is_the_users_mistake_when_writing(store: LocalStore, root: Path) -> None:
    with pytest.raises(UsageError, match="file name too long"):
        store.put("n" * 300, b"")
    assert type(write_error(OSError(errno.EROFS, ""), "n", str(root))) is AmlmountError


def test_a_directory_without_rights_is_denied(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def denied(path: str, *args: object, **kwargs: object) -> int:
        if path.endswith("private"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", denied)  # root passes every permission bit
    store = LocalStore(str(root))
    for ask in (lambda: listed(store, "private/"), lambda: store.get("private")):
        with pytest.raises(AccessDeniedError, match="permission denied"):
            ask()


def test_disk_space_is_the_disks_own(store: LocalStore, root: Path) -> None:
    disk = os.statvfs(root)
    assert isinstance(store, HasDiskSpace)
    total, free = store.disk_space()
    assert total == disk.f_blocks * disk.f_frsize
    assert 0 < free <= total


def test_rename_to_new_falls_back_to_link(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amlmount.stores.local_rename._renameat2", lambda *args: errno.ENOSYS)
    store = LocalStore(str(root))
    store.put("file", b"1", if_none_match=True)
    with pytest.raises(PreconditionFailedError):
        store.put("file", b"2", if_none_match=True)
    assert store.get("file", if_match=store.head("file").etag) == b"1"
    assert os.listdir(root) == ["file"]


def test_rename_to_new_refuses_to_replace(root: Path) -> None:
    (root / "a").write_bytes(b"a")
    (root / "b").write_bytes(b"b")
    fd = os.open(root, os.O_RDONLY)
    try:
        with pytest.raises(FileExistsError):
            rename_to_new("a", "b", fd)
        rename_to_new("a", "c", fd)
    finally:
        os.close(fd)
    assert sorted(os.listdir(root)) == ["b", "c"]


def test_no_descriptor_is_left_open(store: LocalStore, root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    store.put("a/b", b"x")
    (root / "out").symlink_to("/etc/passwd")
    next(store.list(page_size=1))
    for name in ("a/b", "a", "out", "none"):
        with contextlib.suppress(AmlmountError):
            store.get(name, if_match="no")
    listed(store, delimiter=True)
    assert len(os.listdir("/proc/self/fd")) == before
