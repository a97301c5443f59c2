"""FUSE connections seen from outside, through the fusectl file system: requests waiting, dead or alive, abort.

None of it touches the mount, so all of it works on one that is dead or hung. With CAP_SYS_ADMIN fusectl need not be
mounted anywhere: a detached instance of our own serves.
"""

import contextlib
import functools
import os

from amlmount.errors import MountFailedError
from amlmount.mounts import syscalls
from amlmount.mounts.mountinfo import MountEntry, read_mounts

FUSECTL = "/sys/fs/fuse/connections"
# fs/fuse/dev.c, fuse_abort_conn: it sets max_background to UINT_MAX, a value INIT (16 bits) can never give.
_ABORTED = (1 << 32) - 1


def connection_id(mount: MountEntry) -> int:
    """Return the number of the connection in fusectl: the device number of the mount (its minor, as major is 0),
    for a front of ours that of the mount below."""
    return (mount.dev_major << 20) | mount.dev_minor if mount.front_of is None else mount.front_of


def fusectl_mounted() -> bool:
    """Say whether fusectl is at its usual place."""
    return any(entry.fstype == "fusectl" and entry.mount_point == FUSECTL for entry in read_mounts())


def is_dead(mount: MountEntry) -> bool | None:
    """Say whether the connection was aborted or its last server is gone (any use gives ENOTCONN); None if unknowable.

    Unknowable: an ordinary user where fusectl is not mounted, or somebody else's mount. A hung one is not dead.
    """
    value = _read_number(mount, "max_background")
    return None if value is None else value == _ABORTED


def waiting(mount: MountEntry) -> int | None:
    """Return how many requests of the connection are not answered yet, None if unknowable (see `is_dead`)."""
    return _read_number(mount, "waiting")


def abort(mount: MountEntry) -> None:
    """End the connection at once: whoever waits gets an error, the mount is dead.

    Raises MountFailedError if we may not.
    """
    try:
        fd = _open(f"{connection_id(mount)}/abort", os.O_WRONLY)
    except FileNotFoundError as error:
        if fusectl_mounted() or _own_fusectl() is not None:
            return  # the connection has gone already
        hint = f"mount it: sudo mount -t fusectl none {FUSECTL}"
        raise MountFailedError(f"cannot abort '{mount.mount_point}': fusectl is not mounted", hint=hint) from error
    except OSError as error:
        raise MountFailedError(f"cannot abort '{mount.mount_point}': {error.strerror}", hint="use sudo") from error
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def _read_number(mount: MountEntry, name: str) -> int | None:
    try:
        fd = _open(f"{connection_id(mount)}/{name}", os.O_RDONLY)
    except OSError:
        return None
    try:
        return int(os.read(fd, 64))
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def _open(relative: str, flags: int) -> int:
    own = _own_fusectl()
    if own is not None:
        return os.open(relative, flags | os.O_CLOEXEC, dir_fd=own)
    return os.open(f"{FUSECTL}/{relative}", flags | os.O_CLOEXEC)


@functools.cache
def _own_fusectl() -> int | None:
    """A descriptor on a fusectl that is mounted nowhere, kept for the life of the process; None without the rights."""
    with contextlib.suppress(OSError):
        fs_fd = syscalls.fsopen("fusectl")
        try:
            syscalls.fsconfig_create(fs_fd)
            return syscalls.fsmount(fs_fd)
        finally:
            os.close(fs_fd)
    return None
