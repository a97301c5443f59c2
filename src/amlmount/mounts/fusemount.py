"""Opening `/dev/fuse` and mounting it, and taking mounts down: by system call with CAP_SYS_ADMIN, else by fusermount3.

Both ways end with the same thing: a descriptor on which the kernel's INIT request waits to be read.
"""

import errno
import os

from amlmount.errors import AmlmountError, BusyError, MountFailedError, NotFoundError
from amlmount.mounts import syscalls
from amlmount.mounts.fusermount import escape_option, mount_by_helper, unmount_by_helper
from amlmount.mounts.holders import Holder, holders
from amlmount.mounts.paths import canonical, find_mount

DEV_FUSE = "/dev/fuse"
_CONTAINER_HINT = (
    "in a container: start it with --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor:unconfined"
)
_DEVICE_HINTS = {
    errno.ENOENT: f"load the kernel module: sudo modprobe fuse; {_CONTAINER_HINT}",
    errno.ENODEV: "load the kernel module: sudo modprobe fuse",
    errno.ENXIO: "load the kernel module: sudo modprobe fuse",
    errno.EACCES: "/dev/fuse must be open to all: sudo chmod 666 /dev/fuse",
    errno.EPERM: _CONTAINER_HINT,
}
_MOUNT_HINTS = {
    errno.EPERM: _CONTAINER_HINT,
    errno.EACCES: "the directory cannot be reached with these rights: see namei -l",
    errno.ENOENT: "make the directory first",
    errno.ENOTDIR: "the target must be a directory",
    errno.ENODEV: "the kernel has no FUSE: sudo modprobe fuse",
    errno.ENOSPC: "too many mounts: see /proc/sys/fs/mount-max",
}


def open_dev_fuse() -> int:
    """Open `/dev/fuse`, close-on-exec. Raises MountFailedError with what to do."""
    try:
        return os.open(DEV_FUSE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = _DEVICE_HINTS.get(error.errno or 0)
        raise MountFailedError(f"cannot open {DEV_FUSE}: {error.strerror}", hint=hint) from error


def open_and_mount(
    target: str,
    *,
    source: str,
    subtype: str = "amlmount",
    read_only: bool,
    allow_other: bool,
    default_permissions: bool,
    max_read_bytes: int = 1 << 20,
    uid: int | None = None,
    gid: int | None = None,
) -> int:
    """Mount a FUSE file system at `target` (an existing directory) and return its `/dev/fuse` descriptor.

    Always nosuid and nodev. `source` is the SOURCE column of `findmnt`. `uid` and `gid` own the mount (default: who
    runs this; an ordinary user cannot choose). Until INIT is answered on the descriptor, whoever looks at `target`
    waits. Raises MountFailedError with a hint.
    """
    options = [f"max_read={max_read_bytes}"]
    options += ["allow_other"] if allow_other else []
    options += ["default_permissions"] if default_permissions else []
    if not syscalls.has_sys_admin() and os.geteuid() != 0:
        names = [f"fsname={escape_option(source)}", f"subtype={escape_option(subtype)}", "nosuid", "nodev"]
        return mount_by_helper(target, [*names, "ro" if read_only else "rw", *options])
    owner = [
        f"user_id={os.geteuid() if uid is None else uid}",
        f"group_id={os.getegid() if gid is None else gid}",
    ]
    return _mount_by_syscall(target, source, subtype, read_only, [*owner, *options])


def unmount(target: str, *, lazy: bool = False) -> None:
    """Unmount what is mounted at exactly `target`; `lazy` lets go of it even while it is in use.

    Raises NotFoundError if nothing is mounted there, BusyError (naming the holders) if it is in use and not `lazy`,
    MountFailedError if we may not. It blocks while the kernel writes back dirty pages: call it from a thread.
    """
    place = canonical(target)
    entry = find_mount(place)
    if entry is None:
        raise NotFoundError(f"cannot unmount '{target}': nothing is mounted there")
    try:
        if syscalls.has_sys_admin() or not entry.is_fuse:
            syscalls.umount2(place, syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0))
        else:
            unmount_by_helper(place, lazy=lazy)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise busy_error(f"cannot unmount '{target}'", holders(entry)) from error
        if error.errno == errno.EINVAL and find_mount(place) is None:
            raise NotFoundError(f"cannot unmount '{target}': nothing is mounted there") from error
        hint = "it belongs to another user: use sudo" if error.errno == errno.EPERM else None
        raise MountFailedError(f"cannot unmount '{target}': {error.strerror}", hint=hint) from error


def busy_error(what: str, found: list[Holder]) -> BusyError:
    """Make the error that names who holds a mount; `what` is its beginning, `cannot unmount '/x'`."""
    shown = ", ".join(str(holder) for holder in found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    mine = "" if os.geteuid() == 0 else " that this user can see (others may hold it too)"
    message = f"{what}: in use by {shown}" if found else f"{what}: in use, by no process{mine}"
    details = {"holders": [holder.to_json() for holder in found]}
    return BusyError(
        message, hint="close what is open there or leave the directory, or let go of it with --lazy", details=details
    )


def _mount_by_syscall(target: str, source: str, subtype: str, read_only: bool, options: list[str]) -> int:
    fuse_fd = open_dev_fuse()
    # MS_RDONLY in mount(2) makes the superblock read-only too: only then the kernel keeps atime out of it.
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | (syscalls.MS_RDONLY if read_only else 0)
    data = ",".join([f"fd={fuse_fd}", "rootmode=40000", *options])
    try:
        syscalls.mount(source, target, f"fuse.{subtype}" if subtype else "fuse", flags, data)
    except BaseException as error:
        os.close(fuse_fd)
        if isinstance(error, OSError):
            raise _mount_refused(target, error) from error
        raise
    return fuse_fd


def _mount_refused(target: str, error: OSError) -> AmlmountError:
    hint = _MOUNT_HINTS.get(error.errno or 0)
    return MountFailedError(f"cannot mount '{target}': {error.strerror}", hint=hint)
