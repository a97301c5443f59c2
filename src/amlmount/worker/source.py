"""From a resolved mount to an open file system whose stores have answered once.

A store that refuses is found here, before anything is mounted: a bad mount is never visible.
"""

from amlmount.config.spec import MountSpec, SourceSpec
from amlmount.stores import open_store
from amlmount.vfs import open_filesystem
from amlmount.vfs.base import FileSystem


def open_checked(spec: MountSpec) -> FileSystem:
    """Open the file system of `spec` after one cheap listing of every source.

    Raises ContainerNotFoundError, AccessDeniedError, NetworkError and whatever else the store says.
    """
    for source in spec.sources:
        check(source)
    return open_filesystem(spec)


def check(source: SourceSpec) -> None:
    """List one entry of a source; an empty container is fine. Raises what `ObjectStore.list` raises."""
    store = open_store(source.store)
    try:
        next(iter(store.list(source.path, delimiter=True, page_size=1)), None)
    finally:
        store.close()
