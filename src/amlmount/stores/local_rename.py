"""Rename that refuses to replace: renameat2(2) with RENAME_NOREPLACE, or link and unlink where that is not there.

One step for everybody who looks: with link and unlink the new file's change time moves once more.
"""

import ctypes
import errno
import os

_NOREPLACE = 1  # RENAME_NOREPLACE, include/uapi/linux/fs.h
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EPERM}  # EPERM: a seccomp filter that does not know the call
_LIBC = ctypes.CDLL(None, use_errno=True)


def rename_to_new(old: str, new: str, directory_fd: int) -> None:
    """Give a file its final name within one directory. Raises FileExistsError if anything has that name."""
    code = _renameat2(old, new, directory_fd)
    if code in _UNSUPPORTED:
        os.link(old, new, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        os.unlink(old, dir_fd=directory_fd)
    elif code:
        raise OSError(code, os.strerror(code), new)


def _renameat2(old: str, new: str, directory_fd: int) -> int:
    call = getattr(_LIBC, "renameat2", None)
    if call is None:
        return errno.ENOSYS
    done = call(directory_fd, os.fsencode(old), directory_fd, os.fsencode(new), ctypes.c_uint(_NOREPLACE))
    return ctypes.get_errno() if done else 0
