"""From a resolved mount to an open file system whose stores have answered once.

A store that refuses is found here, before anything is mounted: a bad mount is never visible.
"""

from amlmount.config.spec import MountSpec
from amlmount.vfs import open_filesystem
from amlmount.vfs.filesystem import BlobFileSystem


def open_files(spec: MountSpec) -> BlobFileSystem:
    """Open the file system of `spec`; nothing is asked of a store."""
    if spec.read_only:
        return open_filesystem(spec)
    from amlmount.vfs.writing import open_writable

    return open_writable(spec)


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
