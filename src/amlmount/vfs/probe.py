"""The question asked of a source before it is mounted: is it there, and may we look.

A wrong `path` would otherwise be an empty folder, and the user would look for the fault elsewhere.
"""

from amlmount.errors import NotFoundError
from amlmount.stores.base import ObjectStore
from amlmount.vfs.nodes import Source


def probe_source(source: Source) -> None:
    """Ask for the first page of a source. Raises the store's errors, and NotFoundError if its `path` is not there."""
    store, prefix = source.store, source.prefix
    if _has_any(store, prefix) or not prefix or _is_empty_directory(store, prefix):
        return
    path = prefix.rstrip("/")
    if _is_blob(store, path):
        raise NotFoundError(
            f"cannot use path {path!r} of store {source.name!r}: it is a single blob, not a folder",
            hint="give the folder as `path:` and the file's name as `glob:`",
        )
    raise NotFoundError(
        f"cannot find path {path!r} in store {source.name!r}",
        hint=f"check `path:`; `amlmount store ls {source.name}` shows what is there",
    )


def _has_any(store: ObjectStore, prefix: str) -> bool:
    pages = store.list(prefix, delimiter=True, page_size=1)
    return any(page.objects or page.prefixes for page in pages)


def _is_empty_directory(store: ObjectStore, prefix: str) -> bool:
    return any(prefix in page.prefixes for page in store.list(prefix[:-1], delimiter=True))


def _is_blob(store: ObjectStore, path: str) -> bool:
    return any(info.name == path for page in store.list(path, delimiter=True) for info in page.objects)
