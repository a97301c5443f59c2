"""A read-only overlay in front of a FUSE mount: the kernel then answers by itself what CPython's open() asks each time.

The FUSE mount below is attached at a private place only while the overlay is being made; the overlay keeps a clone of
its own, so both are one from then on: they are swapped, judged busy and taken down together.
"""

import contextlib
import os

from amlmount.errors import MountFailedError
from amlmount.mounts import syscalls
from amlmount.mounts.mountinfo import FRONT_FOLDER, read_mounts

EMPTY = "empty"
UNUSABLE = frozenset(":,\\")  # in a path they would be syntax of the option lowerdir


def open_front(below_fd: int, folder: str, name: str, source: str) -> int:
    """Return the descriptor of a detached overlay over the mount behind `below_fd`, which answers and is detached too.

    `folder` is a private directory of ours, `name` that of the mount. Raises MountFailedError.
    """
    try:
        # The kernel's device number names the connection below: nothing else tells which one it is afterwards.
        minor = os.minor(os.fstat(below_fd).st_dev)
        place = os.path.join(folder, FRONT_FOLDER, f"{name.replace('/', '_')}.{minor}")
        empty = os.path.join(folder, FRONT_FOLDER, EMPTY)
        if UNUSABLE & set(place):
            raise MountFailedError(f"cannot make a front for '{name}': the path {place} has a character it cannot have")
        for path in (place, empty):
            os.makedirs(path, mode=0o700, exist_ok=True)
        try:
            syscalls.move_mount(below_fd, place)
            try:
                return _fsmount(source, f"{place}:{empty}")
            finally:
                syscalls.umount2(place, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)
        finally:
            os.rmdir(place)
    except OSError as error:
        raise MountFailedError(f"cannot make a front for '{name}': {error.strerror}") from error


def clear_fronts(folder: str) -> None:
    """Take away what a process that was killed while it made a front left, and all of it if there are no fronts."""
    top = os.path.join(folder, FRONT_FOLDER)
    ours = f":{top}/{EMPTY}"  # another daemon's fronts, in a folder of its own, are no concern of this one
    is_used = any(option.endswith(ours) for entry in read_mounts() for option in entry.super_options)
    with contextlib.suppress(OSError):
        for name in os.listdir(top):
            if name == EMPTY and is_used:
                continue
            place = os.path.join(top, name)
            with contextlib.suppress(OSError):
                syscalls.umount2(place, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)
            os.rmdir(place)
        os.rmdir(top)


def _fsmount(source: str, lower: str) -> int:
    fs_fd = syscalls.fsopen("overlay")
    try:
        syscalls.fsconfig_string(fs_fd, "source", source)
        syscalls.fsconfig_string(fs_fd, "lowerdir", lower)
        syscalls.fsconfig_flag(fs_fd, "ro")
        syscalls.fsconfig_create(fs_fd)
        return syscalls.fsmount(fs_fd, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
    finally:
        os.close(fs_fd)
