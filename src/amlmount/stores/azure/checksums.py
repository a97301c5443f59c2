"""The MD5 of blobs that were listed lately, so that a small blob read whole can be held against it.

Costs 2 us a blob of 700 bytes and no request. What is not remembered is not checked: length, etag and TLS remain.
"""

import hashlib
import threading

from amlmount.stores.base import ObjectInfo

# Hashing 8 MiB takes about 12 ms of a core; larger blobs are read in ranges, which this cannot check anyway.
MAX_CHECKED_BYTES = 8 * 1024 * 1024
MAX_REMEMBERED = 50_000  # about 12 MB


class Checksums:
    """Remembers (etag, size, MD5) by name; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, int, bytes]] = {}
        self._lock = threading.Lock()

    def remember(self, infos: list[ObjectInfo], digests: dict[str, bytes]) -> None:
        """Take over what a listing or a HEAD said."""
        wanted = {
            info.name: (info.etag, info.size_bytes, digests[info.name])
            for info in infos[-MAX_REMEMBERED:]
            if info.size_bytes <= MAX_CHECKED_BYTES and info.name in digests
        }
        with self._lock:
            self._known.update(wanted)
            for name in list(self._known)[: max(len(self._known) - MAX_REMEMBERED, 0)]:
                del self._known[name]

    def knows(self, name: str) -> bool:
        """Say whether a blob of this name can be checked at all."""
        return name in self._known

    def contradicts(self, name: str, etag: str, data: memoryview | bytes) -> bool:
        """Say whether `data`, as long as this version of the blob and from its beginning, is not its content."""
        known = self._known.get(name)
        if known is None or known[:2] != (etag, len(data)):
            return False
        return hashlib.md5(data, usedforsecurity=False).digest() != known[2]
