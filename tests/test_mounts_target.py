"""Where one may mount: made and taken away again, refused with reasons, and never a look into a FUSE mount."""

import os
import stat

import pytest

from amlmount.errors import MountFailedError
from amlmount.mounts import MountEntry, TargetPlan, is_ours, open_and_mount, prepare_target, remove_target, syscalls
from sandbox import Sandbox, lazy_unmount


def mount_fuse(target: str, *, subtype: str = "amlmount") -> int:
    """Mount without a server: whoever looks inside hangs, so a test that passes has not looked."""
    return open_and_mount(
        target, source="s", subtype=subtype, read_only=True, allow_other=False, default_permissions=True
    )


def test_a_missing_target_is_made_and_taken_away_with_its_parents(sandbox: Sandbox) -> None:
    base = sandbox.make_dir("t")
    plan = prepare_target(f"{base}/a/b/c")
    assert plan.created == (f"{base}/a", f"{base}/a/b", f"{base}/a/b/c") and plan.occupant == "nothing"
    assert stat.S_IMODE(os.stat(plan.path).st_mode) == 0o755
    assert remove_target(plan) == [f"{base}/a/b/c", f"{base}/a/b", f"{base}/a"]
    assert os.listdir(base) == []


def test_only_what_is_empty_and_ours_is_taken_away(sandbox: Sandbox) -> None:
    base = sandbox.make_dir("t")
    plan = prepare_target(f"{base}/a/b")
    with open(f"{base}/a/users-file", "w"):
        pass
    assert remove_target(plan) == [f"{base}/a/b"]
    assert remove_target(plan) == []
    assert os.listdir(f"{base}/a") == ["users-file"]
    existing = prepare_target(base + "/a/b", make=False)
    assert existing.created == () and not os.path.exists(f"{base}/a/b")


def test_another_device_is_never_taken_away(sandbox: Sandbox) -> None:
    base = sandbox.make_dir("t")
    plan = prepare_target(f"{base}/a")
    assert remove_target(TargetPlan(plan.path, plan.created, plan.device + 1)) == []
    assert os.path.isdir(f"{base}/a")


def test_an_empty_directory_is_fine_and_stays(sandbox: Sandbox) -> None:
    base = sandbox.make_dir("t")
    plan = prepare_target(base)
    assert plan == TargetPlan(base) and remove_target(plan) == [] and os.path.isdir(base)


def test_symlinks_are_resolved(sandbox: Sandbox) -> None:
    base = sandbox.make_dir("t")
    os.mkdir(f"{base}/real")
    os.symlink("real", f"{base}/link")
    assert prepare_target(f"{base}/link").path == f"{base}/real"
    assert prepare_target(f"{base}/link/x", make=False).path == f"{base}/real/x"


def refusal(target: str) -> MountFailedError:
    with pytest.raises(MountFailedError) as caught:
        prepare_target(target)
    assert caught.value.message.startswith(f"cannot mount at '{target}': ") and caught.value.hint
    return caught.value


def test_a_file_is_refused(sandbox: Sandbox) -> None:
    base = sandbox.make_dir("t")
    with open(f"{base}/file", "w"):
        pass
    assert "it is not a directory" in refusal(f"{base}/file").message
    assert "not a directory" in refusal(f"{base}/file/below").message.lower()


def test_what_is_not_empty_is_refused_with_names(sandbox: Sandbox) -> None:
    base = sandbox.make_dir("t")
    for name in "dcba":
        os.mkdir(f"{base}/{name}")
    assert "it is not empty (has a, b, c, ...)" in refusal(base).message
    assert "it is not empty (has " in refusal(os.path.dirname(base)).message


def test_the_root_is_refused() -> None:
    assert "root of the system" in refusal("/").message


@pytest.mark.root
def test_our_own_mount_is_fine_alive_or_dead(mountpoint: str) -> None:
    fuse_fd = mount_fuse(mountpoint)
    assert prepare_target(mountpoint) == TargetPlan(mountpoint, occupant="ours")
    os.close(fuse_fd)
    assert prepare_target(mountpoint).occupant == "dead"


@pytest.mark.root
def test_somebody_elses_mount_is_refused_by_name(mountpoint: str) -> None:
    fuse_fd = mount_fuse(mountpoint, subtype="sshfs")
    try:
        error = refusal(mountpoint)
        assert "s (fuse.sshfs) is mounted there already" in error.message
        assert prepare_target(mountpoint, our_sources=("s",)).occupant == "ours"
    finally:
        os.close(fuse_fd)


@pytest.mark.root
@pytest.mark.parametrize("below", ["x", "x/y"])
@pytest.mark.parametrize("subtype", ["amlmount", "sshfs"])
def test_inside_another_fuse_mount_is_refused_without_looking(mountpoint: str, below: str, subtype: str) -> None:
    fuse_fd = mount_fuse(mountpoint, subtype=subtype)
    try:
        error = refusal(f"{mountpoint}/{below}")
        assert f"it lies inside another mount, {mountpoint} (fuse.{subtype})" in error.message
    finally:
        os.close(fuse_fd)


@pytest.mark.root
def test_a_mounted_disk_is_a_fine_place(mountpoint: str) -> None:
    syscalls.mount("none", mountpoint, "tmpfs")
    try:
        plan = prepare_target(f"{mountpoint}/x")
        assert plan.created == (f"{mountpoint}/x",) and remove_target(plan) == [f"{mountpoint}/x"]
        assert "none (tmpfs) is mounted there already" in refusal(mountpoint).message
    finally:
        lazy_unmount(mountpoint)


@pytest.mark.root
def test_a_target_that_is_mounted_on_is_not_removed(sandbox: Sandbox) -> None:
    plan = prepare_target(os.path.join(sandbox.make_dir("t"), "x"))
    fuse_fd = mount_fuse(plan.path)
    try:
        assert remove_target(plan) == []
    finally:
        os.close(fuse_fd)
        lazy_unmount(plan.path)
    assert remove_target(plan) == [plan.path]


def test_where_nothing_can_be_made_the_reason_is_given() -> None:
    error = refusal("/proc/amlmount-test/x")
    assert "/proc/amlmount-test" in error.message


def test_ours_is_told_by_subtype_or_known_source() -> None:
    def entry(fstype: str, source: str) -> MountEntry:
        return MountEntry(2, 1, 0, 40, "/", "/x", (), (), fstype, source, ())

    assert is_ours(entry("fuse.amlmount", "anything"))
    assert not is_ours(entry("fuse", "blobfuse2")) and is_ours(entry("fuse", "blobfuse2"), ("blobfuse2",))
    assert not is_ours(entry("ext4", "blobfuse2"), ("blobfuse2",))
