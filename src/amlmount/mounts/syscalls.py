"""The mount system calls that Python's standard library lacks, by ctypes: thin, each raises OSError.

Numbers from include/uapi/linux/mount.h and asm-generic/unistd.h (the same on x86-64 and arm64).
"""

import ctypes
import functools
import os
import struct

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOATIME = 1, 2, 4, 1024
MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 4096, 8192, 16384, 1 << 18
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_BENEATH = 0x4, 0x200
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC = 1, 1
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
STATX_BASIC_STATS, AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT, AT_STATX_DONT_SYNC = 0x7FF, 0x100, 0x800, 0x4000
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_CAP_SYS_ADMIN = 21


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _syscall(number: int, *args: int | bytes | None) -> int:
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return _checked(_libc().syscall(ctypes.c_long(number), *wide))


def has_sys_admin() -> bool:
    """Say whether this process may mount by system call (CAP_SYS_ADMIN in effect)."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def mount(source: str, target: str, fstype: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    strings = (_bytes(source), _bytes(target), _bytes(fstype))
    _checked(_libc().mount(*strings, ctypes.c_ulong(flags), _bytes(data)), target)


def umount2(target: str, flags: int = UMOUNT_NOFOLLOW) -> None:
    """umount2(2); never follows a symlink in the last component unless told to."""
    _checked(_libc().umount2(_bytes(target), flags), target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc().unshare(flags))


def open_tree(path: str, *, clone: bool, dir_fd: int = AT_FDCWD) -> int:
    """open_tree(2), 5.2: a descriptor of the mount at `path`, or of a detached copy of it."""
    flags = OPEN_TREE_CLOEXEC | (OPEN_TREE_CLONE if clone else 0)
    return _syscall(_OPEN_TREE, dir_fd, _bytes(path), flags)


def move_mount(mount_fd: int, target: str, *, beneath: bool = False) -> None:
    """move_mount(2), 5.2: attach the mount behind `mount_fd` at `target`, with `beneath` (6.5) under what is there."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (MOVE_MOUNT_BENEATH if beneath else 0)
    _syscall(_MOVE_MOUNT, mount_fd, b"", AT_FDCWD, _bytes(target), flags)


def fsopen(fstype: str) -> int:
    """fsopen(2), 5.2: begin a new superblock."""
    return _syscall(_FSOPEN, _bytes(fstype), FSOPEN_CLOEXEC)


def fsconfig_string(fs_fd: int, key: str, value: str) -> None:
    """fsconfig(2): set `key=value`."""
    _syscall(_FSCONFIG, fs_fd, FSCONFIG_SET_STRING, _bytes(key), _bytes(value), 0)


def fsconfig_flag(fs_fd: int, key: str) -> None:
    """fsconfig(2): set the option `key`."""
    _syscall(_FSCONFIG, fs_fd, FSCONFIG_SET_FLAG, _bytes(key), None, 0)


def fsconfig_create(fs_fd: int) -> None:
    """fsconfig(2): make the superblock."""
    _syscall(_FSCONFIG, fs_fd, FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(fs_fd: int, attributes: int = 0) -> int:
    """fsmount(2), 5.2: a descriptor of the new mount, attached nowhere; closing it unmounts it."""
    return _syscall(_FSMOUNT, fs_fd, FSMOUNT_CLOEXEC, attributes)


def statx_cached(path: str) -> tuple[int, int]:
    """statx(2) with AT_STATX_DONT_SYNC, no symlink followed: mode and inode; asks no FUSE server about `path`.

    The directories above it are still looked up. A dead mount answers from memory too: use `connection.is_dead`.
    """
    buffer = ctypes.create_string_buffer(256)
    flags = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT | AT_SYMLINK_NOFOLLOW
    _checked(_libc().statx(AT_FDCWD, _bytes(path), flags, STATX_BASIC_STATS, buffer), path)
    mode, inode = struct.unpack_from("<HxxQ", buffer, 28)
    return mode, inode
