"""Mounts that are attached nowhere yet, and slipping one under another: how a mount is replaced without a gap.

Needs CAP_SYS_ADMIN; `fsopen` and `move_mount` are in Linux 5.2, MOVE_MOUNT_BENEATH in 6.5.
"""

import errno
import os

from amlmount.errors import MountFailedError
from amlmount.mounts import syscalls
from amlmount.mounts.fusemount import open_dev_fuse


def open_detached(
    *,
    source: str,
    subtype: str = "amlmount",
    read_only: bool,
    allow_other: bool,
    default_permissions: bool,
    max_read_bytes: int = 1 << 20,
    uid: int = 0,
    gid: int = 0,
) -> tuple[int, int]:
    """Make a FUSE mount that no path leads to; return `(fuse_fd, mount_fd)`, both close-on-exec.

    Closing `mount_fd` unmounts it unless it was attached before. Options as `open_and_mount`. Raises MountFailedError.
    """
    fuse_fd = open_dev_fuse()
    strings = {"source": source, "subtype": subtype, "fd": str(fuse_fd), "rootmode": "40000"}
    strings |= {"user_id": str(uid), "group_id": str(gid), "max_read": str(max_read_bytes)}
    wanted = {"ro": read_only, "allow_other": allow_other, "default_permissions": default_permissions}
    try:
        return fuse_fd, _fsmount(strings, [name for name, on in wanted.items() if on])
    except OSError as error:
        os.close(fuse_fd)
        raise MountFailedError(f"cannot make a detached mount of '{source}': {error.strerror}") from error


def attach(mount_fd: int, target: str, *, beneath: bool = False) -> None:
    """Attach a detached (or move a mounted) mount at `target`; `beneath` puts it under the one that is there.

    Raises MountFailedError; with `beneath` on a kernel below 6.5 it says so.
    """
    try:
        syscalls.move_mount(mount_fd, target, beneath=beneath)
    except OSError as error:
        old = beneath and error.errno == errno.EINVAL
        hint = "mounting beneath needs Linux 6.5 and something mounted at the target" if old else None
        raise MountFailedError(f"cannot mount '{target}': {error.strerror}", hint=hint) from error


def copy_of(path: str) -> int:
    """Return a descriptor of a detached copy of the mount at `path` (open_tree with OPEN_TREE_CLONE)."""
    try:
        return syscalls.open_tree(path, clone=True)
    except OSError as error:
        raise MountFailedError(f"cannot copy the mount at '{path}': {error.strerror}") from error


def _fsmount(strings: dict[str, str], flags: list[str]) -> int:
    fs_fd = syscalls.fsopen("fuse")
    try:
        for key, value in strings.items():
            syscalls.fsconfig_string(fs_fd, key, value)
        for key in flags:
            syscalls.fsconfig_flag(fs_fd, key)
        syscalls.fsconfig_create(fs_fd)
        read_only = syscalls.MOUNT_ATTR_RDONLY if "ro" in flags else 0
        return syscalls.fsmount(fs_fd, read_only | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
    finally:
        os.close(fs_fd)
