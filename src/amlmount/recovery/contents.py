"""Comparing a file with a blob, by the store's MD5 where it has one, else byte by byte in pieces; and sending a file.

Nothing here decides what a file is.
"""

import hashlib
import mmap
from collections.abc import Iterator

from amlmount.errors import AmlmountError
from amlmount.stores.base import HasContentMd5, ObjectInfo, ObjectStore

PIECE_BYTES = 8 << 20
PAGE_BYTES = 4096


def is_same(store: ObjectStore, blob: ObjectInfo, path: str) -> bool:
    """Say whether a file of the blob's size has its content. Raises what the store raises."""
    if isinstance(store, HasContentMd5):
        known = store.content_md5(blob.name, if_match=blob.etag)
        if known is not None:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, _md5).digest() == known
    return all(ours == theirs for ours, theirs in _pairs(store, blob, path))


def is_part(store: ObjectStore, blob: ObjectInfo, path: str) -> bool:
    """Say whether a file is the blob with pages missing: each is the blob's, or its beginning and then zeros."""
    return all(_is_begun(ours, theirs) for ours, theirs in _pairs(store, blob, path))


def send(
    store: ObjectStore, name: str, path: str, *, if_match: str | None, metadata: "dict[str, str] | None"
) -> ObjectInfo:
    """Upload a file over the version `if_match`, or where nothing is, and return what the store then says it has.

    Raises PreconditionFailedError if something else is there, AmlmountError if it did not arrive whole.
    """
    with open(path, "rb") as file:
        content = file.read(PIECE_BYTES + 1)
        if len(content) <= PIECE_BYTES:
            sent = store.put(name, content, if_match=if_match, if_none_match=if_match is None, metadata=metadata)
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole, memoryview(whole) as view:
                sent = store.put(
                    name,
                    view,  # type: ignore[arg-type]  # any buffer does
                    if_match=if_match,
                    if_none_match=if_match is None,
                    metadata=metadata,
                )
    there = store.head(name)
    if there.etag != sent.etag or not is_same(store, there, path):
        raise AmlmountError(f"cannot prove that {name!r} is in the store", hint="run amlmount recover again")
    return there


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)


def _pairs(store: ObjectStore, blob: ObjectInfo, path: str) -> Iterator[tuple[bytes, bytes]]:
    with open(path, "rb") as file:
        for start in range(0, blob.size_bytes, PIECE_BYTES):
            ours = file.read(PIECE_BYTES)
            yield ours, store.get(blob.name, start, len(ours), if_match=blob.etag)


def _is_begun(ours: bytes, theirs: bytes) -> bool:
    if ours == theirs:
        return True
    pages = range(0, len(ours), PAGE_BYTES)
    return all(
        theirs[at : at + PAGE_BYTES].startswith(ours[at : at + PAGE_BYTES].rstrip(b"\0"))
        for at in pages
        if ours[at : at + PAGE_BYTES] != theirs[at : at + PAGE_BYTES]
    )
