"""Mounting, unmounting, who holds a mount, dead or alive: with real mounts through /dev/fuse."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiny_fuse
from amlmount import mounts
from amlmount.errors import BusyError, MountFailedError, NotFoundError
from amlmount.mounts import MountEntry, syscalls
from sandbox import lazy_unmount

pytestmark = pytest.mark.root
HOLD = "import os, sys; f = open(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
HOLD_CWD = "import os, sys; os.chdir(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
HOLD_MAP = (
    "import ctypes, os, sys; f = os.open(sys.argv[1], 0); ctypes.CDLL(None).mmap(None, 4096, 1, 2, f, 0);"
    "os.close(f); print('held', flush=True); sys.stdin.read()"  # Python's own mmap keeps a descriptor
)


@dataclass
class Served:
    """A mount with a server of its own."""

    target: str
    fuse_fd: int
    server: "subprocess.Popen[bytes]"

    @property
    def entry(self) -> MountEntry:
        found = mounts.find_mount(self.target)
        assert found is not None
        return found

    def kill_server(self) -> None:
        self.server.kill()
        self.server.wait()

    def let_go(self) -> None:
        if self.fuse_fd >= 0:
            os.close(self.fuse_fd)
            self.fuse_fd = -1

    def hold(self, code: str, path: str) -> "subprocess.Popen[bytes]":
        pipe = subprocess.PIPE
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code, path], stdin=pipe, stdout=pipe)
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        return child


def mount(target: str, *, read_only: bool = True, source: str = "test") -> int:
    return mounts.open_and_mount(
        target, source=source, read_only=read_only, allow_other=True, default_permissions=True, max_read_bytes=1 << 17
    )


@pytest.fixture
def served(mountpoint: str) -> Iterator[Served]:
    fuse_fd = mount(mountpoint)
    found = Served(mountpoint, fuse_fd, tiny_fuse.start(fuse_fd))
    try:
        yield found
    finally:
        lazy_unmount(mountpoint)
        found.kill_server()
        found.let_go()


def read_hello(target: str) -> bytes:
    return subprocess.run(["cat", f"{target}/hello"], capture_output=True, timeout=10, check=True).stdout


@pytest.mark.parametrize("read_only", [True, False])
def test_a_mount_says_what_was_asked_for(mountpoint: str, read_only: bool) -> None:
    fuse_fd = mount(mountpoint, read_only=read_only, source="store, with comma")
    try:
        found = mounts.find_mount(mountpoint)
        assert found is not None
        assert (found.fstype, found.source) == ("fuse.amlmount", "store, with comma")
        assert {"nosuid", "nodev"} <= set(found.options)
        assert ("ro" in found.super_options) == read_only  # the superblock's, not only the mount's
        wanted = {"allow_other", "default_permissions", "max_read=131072", "user_id=0", "group_id=0"}
        assert wanted <= set(found.super_options)
        assert not os.get_inheritable(fuse_fd)
    finally:
        os.close(fuse_fd)


def test_a_served_mount_is_read_and_unmounted(served: Served) -> None:
    assert read_hello(served.target) == tiny_fuse.CONTENT
    mounts.unmount(served.target)
    assert mounts.find_mount(served.target) is None
    assert served.server.wait(10) == 0


def test_unmounting_nothing_says_so(mountpoint: str) -> None:
    with pytest.raises(NotFoundError, match=f"cannot unmount '{mountpoint}': nothing is mounted there"):
        mounts.unmount(mountpoint)


@pytest.mark.parametrize(
    ("code", "name", "what"),
    [
        (HOLD, "hello", "open file {}/hello"),
        (HOLD_CWD, "", "working directory {}"),
        (HOLD_MAP, "hello", "mapped file {}/hello"),
    ],
)
def test_a_busy_mount_names_its_holders(served: Served, code: str, name: str, what: str) -> None:
    child = served.hold(code, os.path.join(served.target, name))
    with child:
        with pytest.raises(BusyError) as caught:
            mounts.unmount(served.target)
        expected = what.format(served.target)
        assert f"(pid {child.pid}, {expected})" in caught.value.message
        assert caught.value.hint is not None and "--lazy" in caught.value.hint
        command = Path(f"/proc/{child.pid}/comm").read_text().rstrip("\n")
        assert caught.value.details == {"holders": [{"pid": child.pid, "command": command, "what": expected}]}
    mounts.unmount(served.target)


def test_lazy_lets_go_of_a_busy_mount(served: Served) -> None:
    with served.hold(HOLD, f"{served.target}/hello"):
        mounts.unmount(served.target, lazy=True)
        assert mounts.find_mount(served.target) is None
        assert served.server.poll() is None  # it serves until the last file is closed
    assert served.server.wait(10) == 0


@pytest.mark.parametrize(("code", "name"), [(HOLD, "hello"), (HOLD_CWD, ""), (HOLD_MAP, "hello")])
def test_holders_are_found_on_a_mount_that_no_longer_answers(served: Served, code: str, name: str) -> None:
    child = served.hold(code, os.path.join(served.target, name))
    served.server.send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        assert [holder.pid for holder in mounts.holders(served.entry)] == [child.pid]
        assert time.monotonic() - begun < 5
    finally:
        served.server.send_signal(signal.SIGCONT)
        child.communicate(b"")


def test_death_is_seen_without_touching_the_mount(served: Served) -> None:
    read_hello(served.target)
    assert mounts.is_dead(served.entry) is False
    served.kill_server()
    assert mounts.is_dead(served.entry) is False  # we hold the descriptor: silent, not dead
    served.let_go()
    assert mounts.is_dead(served.entry) is True
    with pytest.raises(OSError) as caught:
        os.listdir(served.target)
    assert caught.value.errno == errno.ENOTCONN
    mounts.unmount(served.target)


def until_waiting(served: Served, requests: int) -> None:
    deadline = time.monotonic() + 10
    while mounts.waiting(served.entry) != requests:
        assert time.monotonic() < deadline, f"{mounts.waiting(served.entry)} requests wait, not {requests}"
        time.sleep(0.01)


def test_a_hang_shows_as_waiting_and_abort_ends_it(served: Served) -> None:
    read_hello(served.target)
    until_waiting(served, 0)  # a close is answered after close() has returned
    served.server.send_signal(signal.SIGSTOP)
    with subprocess.Popen(["cat", f"{served.target}/none"], stderr=subprocess.DEVNULL) as reader:
        until_waiting(served, 1)
        assert reader.poll() is None
        entry = served.entry
        mounts.abort(entry)
        assert reader.wait(10) == 1
    assert mounts.is_dead(entry) is True
    mounts.abort(entry)  # again is fine
    mounts.unmount(served.target)
    mounts.abort(entry)  # also when it has gone


def test_the_number_in_fusectl_is_the_device_number(served: Served) -> None:
    read_hello(served.target)
    assert mounts.connection_id(served.entry) == os.stat(served.target).st_dev


def test_statx_from_memory_asks_nobody(served: Served) -> None:
    read_hello(served.target)
    served.server.send_signal(signal.SIGSTOP)
    mode, inode = syscalls.statx_cached(served.target)
    assert (mode & 0o170000, inode) == (0o040000, tiny_fuse.ROOT)


def test_a_detached_mount_is_slipped_beneath_and_readers_do_not_notice(served: Served, mountpoint: str) -> None:
    old_id = served.entry.mount_id
    new_fd, mount_fd = mounts.open_detached(source="new", read_only=True, allow_other=True, default_permissions=True)
    server = tiny_fuse.start(new_fd)
    os.close(new_fd)
    try:
        with served.hold(HOLD, f"{served.target}/hello") as reader:
            mounts.attach(mount_fd, served.target, beneath=True)
            assert served.entry.mount_id == old_id
            mounts.unmount(served.target, lazy=True)
            assert (served.entry.source, served.entry.read_only) == ("new", True)
            assert read_hello(served.target) == tiny_fuse.CONTENT
            assert reader.poll() is None
        assert served.server.wait(10) == 0
    finally:
        os.close(mount_fd)
        lazy_unmount(served.target)
        assert server.wait(10) == 0


def test_a_copy_of_a_mount_can_be_attached_elsewhere(served: Served, sandbox_dir: str) -> None:
    tree_fd = mounts.copy_of(served.target)
    try:
        mounts.attach(tree_fd, sandbox_dir)
        assert read_hello(sandbox_dir) == tiny_fuse.CONTENT
    finally:
        os.close(tree_fd)
        mounts.unmount(sandbox_dir, lazy=True)


@pytest.fixture
def sandbox_dir(mountpoint: str, tmp_path: os.PathLike[str]) -> str:
    return os.fspath(tmp_path)


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOENT, "modprobe fuse"), (errno.EACCES, "chmod 666 /dev/fuse"), (errno.EPERM, "--cap-add SYS_ADMIN")],
)
def test_a_device_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, number: int, hint: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched, pytest.raises(MountFailedError, match="cannot open /dev/fuse: ") as caught:
        patched.setattr(os, "open", refuse)
        mounts.open_dev_fuse()
    assert caught.value.hint is not None and hint in caught.value.hint


def test_a_refused_mount_leaves_no_descriptor(mountpoint: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MountFailedError, match="No such file or directory") as caught:
        mount(f"{mountpoint}/missing")
    assert caught.value.hint == "make the directory first"
    assert len(os.listdir("/proc/self/fd")) == before
