"""Makes room in a cache directory that no process uses: its entries go from the least recently used on.

The format is that of docs/cache.md; pinned entries stay.
"""

import contextlib
import os

from amlmount.cache.places import claim, read_about

ENDINGS = {"packs": (".index", ".pack"), "blobs": (".map", ".data")}


def trim(path: str, wanted_bytes: int) -> int:
    """Remove entries until `wanted_bytes` are free, and return how many are; 0 if a process uses it, or it is not ours.

    Raises OSError.
    """
    from amlmount.vfs.content.directory import entries_on_disk

    if read_about(path) is None or (lock := claim(path)) is None:
        return 0
    freed = 0
    try:
        for entry in entries_on_disk(path):
            if freed >= wanted_bytes:
                break
            if not entry.is_pinned:
                _remove(os.path.join(path, entry.id), ENDINGS[entry.id.partition("/")[0]])
                freed += entry.size_bytes
    finally:
        os.close(lock)
    return freed


def _remove(base: str, endings: tuple[str, str]) -> None:
    """Remove what says where the bytes are first: bytes alone are nothing."""
    for ending in endings:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(base + ending)
