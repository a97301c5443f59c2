"""The cache of a mount while it is served: kept within its allowance, least recently used first; what is asked of it.

Nothing that is open or pinned is dropped (`CacheDirectory.drop`), and nothing here decides how large the allowance is.
"""

import logging
import threading
from typing import Any

from amlmount.vfs.content.directory import CacheDirectory

SLACK = 0.02  # of the allowance: freed beyond what is missing, so that not every write has to make room
log = logging.getLogger(__name__)


class CacheKeeper:
    """Evicts from an open cache directory. Methods may be called from any thread."""

    def __init__(self, directory: CacheDirectory) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        directory.make_room = self.make_room

    def make_room(self, missing_bytes: int) -> bool:
        """Free at least `missing_bytes`, or find that somebody just has, and say whether that could be done."""
        with self._lock:
            limit_bytes = self._directory.limit_bytes
            if limit_bytes is None:
                return True
            slack_bytes = int(limit_bytes * SLACK)
            if missing_bytes <= slack_bytes and self._directory.used_bytes <= limit_bytes - slack_bytes:
                return True
            return self._evict(missing_bytes + slack_bytes) >= missing_bytes

    def usage(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The question `cache`: take over a new allowance if there is one, and say how much is used."""
        if "limit_bytes" in asked:
            self._directory.limit_bytes = asked["limit_bytes"]
        limit = self._directory.limit_bytes
        with self._lock:
            if limit is not None and self._directory.used_bytes > limit:
                self._evict(self._directory.used_bytes - limit)
        return {"used_bytes": self._directory.used_bytes, "limit_bytes": limit}

    def clear(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The question `cache_clear`: drop everything that is neither open nor pinned."""
        with self._lock:
            freed = self._evict(1 << 62)
        return {"freed_bytes": freed, "used_bytes": self._directory.used_bytes}

    def _evict(self, wanted_bytes: int) -> int:
        freed = 0
        for entry in self._directory.entries():
            if freed >= wanted_bytes:
                break
            if entry.is_open or entry.is_pinned:
                continue
            try:
                freed += self._directory.drop(entry.id)
            except OSError as error:
                log.warning("cannot drop %s from the cache: %s", entry.id, error)
        return freed
