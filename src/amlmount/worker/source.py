"""From a resolved mount to an open file system whose stores have answered once.

A store that refuses is found here, before anything is mounted: a bad mount is never visible.
"""

import time

from amlmount.config.spec import MountSpec
from amlmount.errors import BusyError, WaitTimeoutError
from amlmount.vfs import open_filesystem
from amlmount.vfs.filesystem import BlobFileSystem

LET_GO_S = 6.0  # what the one before may take to end what it was sending
LOOK_AGAIN_S = 0.1


def open_files(spec: MountSpec) -> BlobFileSystem:
    """Open the file system of `spec`; nothing is asked of a store.

    Raises WaitTimeoutError if another process still writes through its state directory: it passes, so the supervisor
    tries again.
    """
    if spec.read_only:
        return open_filesystem(spec)
    from amlmount.vfs.writing import open_writable

    deadline = time.monotonic() + LET_GO_S
    while True:
        try:
            return open_writable(spec)
        except BusyError as error:
            if time.monotonic() > deadline:
                hint = "a mount that was taken down lives on while programs use it: end them, and this one comes"
                raise WaitTimeoutError(error.message, hint=hint) from None
        time.sleep(LOOK_AGAIN_S)


def open_checked(spec: MountSpec) -> BlobFileSystem:
    """Open the file system of `spec` and ask every source for its first entries; an empty container is fine.

    Raises ContainerNotFoundError, AccessDeniedError, NetworkError and whatever else the store says.
    """
    files = open_files(spec)
    try:
        files.probe()
    except BaseException:
        files.close()
        raise
    return files
