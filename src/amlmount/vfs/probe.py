"""The question asked of a source before it is mounted: is it there, and may we look.

A wrong `path` would otherwise be an empty folder, and the user would look for the fault elsewhere.
"""

from amlmount.errors import NotFoundError
from amlmount.stores.base import ObjectInfo, ObjectStore, Page
from amlmount.vfs.gathering import LONG_PAGE
from amlmount.vfs.listing import is_folder_marker
from amlmount.vfs.nodes import Source


def probe_source(source: Source) -> Page | None:
    """Ask for the first page of a source, and return it if it is the only one and there is something on it.

    Raises the store's errors, and NotFoundError if its `path` is not there.
    """
    store, prefix = source.store, source.prefix
    pages = store.list(prefix, delimiter=True)
    for page in pages:
        names = len(page.objects) + len(page.prefixes)
        if names:
            return page if names < LONG_PAGE and next(pages, None) is None else None
    if not prefix or _is_empty_directory(store, prefix):
        return None
    path = prefix.rstrip("/")
    if (blob := _blob(store, path)) is not None:
        if is_folder_marker(blob) and not blob.size_bytes:
            return None
        raise NotFoundError(
            f"cannot use path {path!r} of store {source.name!r}: it is a single blob, not a folder",
            hint="give the folder as `path:` and the file's name as `glob:`",
        )
    raise NotFoundError(
        f"cannot find path {path!r} in store {source.name!r}",
        hint="check `path:`; mount the store without it to see what is there (read_only: false: to make that folder)",
    )


def _is_empty_directory(store: ObjectStore, prefix: str) -> bool:
    return any(prefix in page.prefixes for page in store.list(prefix[:-1], delimiter=True))


def _blob(store: ObjectStore, path: str) -> ObjectInfo | None:
    found = (info for page in store.list(path, delimiter=True) for info in page.objects)
    return next((info for info in found if info.name == path), None)
