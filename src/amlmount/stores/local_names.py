"""Which names a directory can hold as blobs, and which of its paths lie inside it: pure decisions, and errno to error.

Nothing here opens a file; `local` does.
"""

import errno
import os

from amlmount.errors import (
    AccessDeniedError,
    AmlmountError,
    BlobNotFoundError,
    BusyError,
    ContainerNotFoundError,
    NetworkError,
    PreconditionFailedError,
    UsageError,
)

TEMP_PREFIX = ".amlmount-put-"
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EISDIR}
_DENIED = {errno.EACCES, errno.EPERM}
_UNREACHABLE = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EREMOTEIO,
}


def is_plain(name: str) -> bool:
    """Tell whether a name is a relative path that stays below where it starts and is not one of our temporary files."""
    parts = name.split("/")
    if "\0" in name or "" in parts or "." in parts or ".." in parts or parts[-1].startswith(TEMP_PREFIX):
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def contains(directory: str, path: str) -> bool:
    """Tell whether an absolute path is `directory` or below it; both without symlinks."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def not_found(verb: str, name: str) -> BlobNotFoundError:
    """Make the error for a blob that is not there."""
    return BlobNotFoundError(f"cannot {verb} blob {name!r}: it is not there")


def changed(verb: str, name: str) -> PreconditionFailedError:
    """Make the error for a blob that is another version."""
    return PreconditionFailedError(f"cannot {verb} blob {name!r}: it is not the version asked for")


def container_error(root: str) -> AmlmountError | None:
    """Return what is wrong with the root directory, or None if it is there."""
    try:
        os.close(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            what = "it is not a directory" if error.errno == errno.ENOTDIR else "it does not exist"
            return ContainerNotFoundError(f"cannot use directory {root!r}: {what}", hint="check `path:` of the store")
        return store_error(error, "use directory", root)
    return None


def blob_error(error: OSError, verb: str, name: str, root: str) -> AmlmountError:
    """Translate what the system said about a blob; a root that is gone is told apart from a blob that is."""
    if error.errno in _ABSENT:
        return container_error(root) or not_found(verb, name)
    return store_error(error, f"{verb} blob", name)


def write_error(error: OSError, name: str, root: str) -> AmlmountError:
    """Translate what the system said when a blob was to be written."""
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
        why = {errno.EISDIR: "there is a directory", errno.ENOTDIR: "one of its directories is a file"}
        reason = why.get(error.errno, os.strerror(error.errno).lower())
        return UsageError(f"cannot write blob {name!r}: {reason}", hint="choose another name")
    return blob_error(error, "write", name, root)


def directory_error(error: OSError, path: str, root: str) -> AmlmountError | None:
    """Translate what the system said when a directory was to be removed; None if it is not there, as it should be."""
    if error.errno == errno.ENOENT:
        return container_error(root)
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return BusyError(f"cannot remove directory {path!r}: it is not empty")
    return store_error(error, "remove directory", path)


def store_error(error: OSError, doing: str, name: str) -> AmlmountError:
    """Translate an error that does not mean "not there"."""
    text = f"cannot {doing} {name!r}: {os.strerror(error.errno or errno.EIO).lower()}"
    if error.errno in _DENIED:
        return AccessDeniedError(text, hint="give the user that runs amlmount the right to it")
    if error.errno in _UNREACHABLE:
        return NetworkError(text, hint="check the disk or the network share it lies on (`dmesg` may say more)")
    return AmlmountError(text)
