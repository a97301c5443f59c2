"""Parsing the mount table, finding a mount, and resolving a path without asking a FUSE file system."""

import os
import subprocess
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlmount.mounts import MountWatch, canonical, find_mount, mount_containing, read_mounts, topmost
from amlmount.mounts.mountinfo import MountEntry, parse, parse_line
from sandbox import Sandbox

LINE = rb"63 43 0:39 / /media/a\040b\134c\011d rw,nosuid shared:7 master:2 - fuse.amlmount s\043x\040y ro,user_id=0"


def entry(mount_id: int, parent_id: int, point: str, fstype: str = "ext4") -> MountEntry:
    return MountEntry(mount_id, parent_id, 0, 40, "/", point, (), (), fstype, "s", ())


def test_a_line_is_read_with_its_escapes_and_peer_groups() -> None:
    found = parse_line(LINE)
    assert found is not None
    assert (found.mount_id, found.parent_id, found.dev_major, found.dev_minor) == (63, 43, 0, 39)
    assert (found.mount_point, found.source, found.root) == ("/media/a b\\c\td", "s#x y", "/")
    assert (found.options, found.super_options) == (("rw", "nosuid"), ("ro", "user_id=0"))
    assert (found.optional, found.peer_group) == (("shared:7", "master:2"), 7)
    assert found.is_fuse and found.subtype == "amlmount" and found.read_only


def test_a_line_without_optional_fields_and_without_source() -> None:
    found = parse_line(b"1 0 8:1 / / rw - ext4  rw")
    assert found is not None and found.source == "" and found.optional == () and found.peer_group is None
    assert not found.is_fuse


def test_paths_that_are_not_text_survive() -> None:
    (found,) = parse(b"1 0 8:1 / /x\xff\\377 rw - ext4 s rw\n")
    assert os.fsencode(found.mount_point) == b"/x\xff\xff"


@given(st.binary(max_size=200))
def test_garbage_is_left_out(text: bytes) -> None:
    assert len(parse(LINE + b"\n" + text + b"\n" + LINE)) >= 2


@pytest.mark.parametrize("fstype", ["fuse", "fuseblk", "fuse.x", "fuseblk.ntfs"])
def test_fuse_is_recognised(fstype: str) -> None:
    assert entry(1, 0, "/x", fstype).is_fuse and not entry(1, 0, "/x", "fusectl").is_fuse


def test_the_top_of_a_stack_is_found_whatever_the_order() -> None:
    stack = [entry(30, 20, "/x"), entry(20, 10, "/x"), entry(10, 1, "/x"), entry(1, 1, "/")]
    for mounts in (stack, stack[::-1]):
        found = topmost(mounts, "/x")
        assert found is not None and found.mount_id == 30
    assert topmost(stack, "/") == stack[3] and topmost(stack, "/y") is None


def test_this_process_has_a_root_mount() -> None:
    found = find_mount("/")
    assert found is not None and found in read_mounts() and found in read_mounts(os.getpid())
    assert read_mounts(1 << 22) == []


def test_canonical_is_realpath_where_nothing_is_fuse(sandbox: Sandbox) -> None:
    base = sandbox.make_dir("c")
    os.makedirs(f"{base}/real/deep")
    os.symlink("real/deep", f"{base}/link")
    os.symlink(f"{base}/link/../sibling", f"{base}/real/up")
    os.symlink("loop", f"{base}/loop")
    for path in ("real", "link", "link/..", "link/x/y", "real/up/z", "./real//deep/.", "missing/../real", "link/../up"):
        assert canonical(f"{base}/{path}") == os.path.realpath(f"{base}/{path}"), path
    assert canonical(f"{base}/loop/x").startswith(base)
    assert canonical("/") == canonical("/..") == "/"


def test_canonical_is_literal_below_a_fuse_mount(sandbox: Sandbox) -> None:
    base = sandbox.make_dir("c")
    os.symlink("/elsewhere", f"{base}/link")
    mounts = [entry(2, 1, base, "fuse.sshfs"), entry(1, 1, "/")]
    assert canonical(f"{base}/link/x", mounts) == f"{base}/link/x"
    assert canonical(f"{base}/link/x", mounts[1:]) == "/elsewhere/x"


def test_relative_paths_start_at_the_working_directory(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> None:
    base = sandbox.make_dir("c")
    monkeypatch.chdir(base)
    assert canonical("x") == f"{base}/x"


def test_the_containing_mount_is_the_nearest(sandbox: Sandbox) -> None:
    mounts = [entry(1, 1, "/"), entry(2, 1, "/a"), entry(3, 2, "/a/b/c")]
    for path, wanted in {"/a/b/c/d": 3, "/a/b/c": 3, "/a/b": 2, "/ab": 1, "/": 1}.items():
        found = mount_containing(path, mounts)
        assert found is not None and found.mount_id == wanted, path


@pytest.mark.root
def test_the_watch_sees_a_mount_come_and_go(mountpoint: str) -> None:
    watch = MountWatch()
    try:
        before = len(watch.read())
        assert not watch.wait(0.05)
        for command, change in ((["mount", "-t", "tmpfs", "x", mountpoint], 1), (["umount", mountpoint], 0)):
            thread = threading.Thread(target=subprocess.run, args=(command,), kwargs={"check": True})
            thread.start()
            assert watch.wait(10)
            thread.join()
            assert len(watch.read()) == before + change
    finally:
        watch.close()
