"""What could not be put on disk, kept in memory up to a limit: pieces of blobs, the oldest of which go first."""

import threading
from collections import OrderedDict

from amlmount.vfs.content.checksum import Buffer

Key = tuple[bytes, int]  # blob, first block


class RecentPieces:
    """Pieces by blob and first block; a small blob is one piece at block 0. Any thread may use it."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._pieces: OrderedDict[Key, tuple[Buffer, int]] = OrderedDict()
        self._block_at: dict[Key, int] = {}  # (blob, block) -> first block of the piece that has it
        self.used_bytes = 0

    def put(self, key: bytes, first: int, data: Buffer, blocks: int = 1) -> None:
        """Keep a piece of `blocks` blocks."""
        with self._lock:
            self._remove((key, first))
            self._pieces[key, first] = data, blocks
            for block in range(first, first + blocks):
                self._block_at[key, block] = first
            self.used_bytes += len(data)
            while self.used_bytes > self._limit_bytes and self._pieces:
                self._remove(next(iter(self._pieces)))

    def get(self, key: bytes, block: int) -> tuple[int, Buffer] | None:
        """Return (first block, bytes) of the piece a block is in."""
        first = self._block_at.get((key, block))
        found = None if first is None else self._pieces.get((key, first))
        return None if first is None or found is None else (first, found[0])

    def __contains__(self, where: Key) -> bool:
        return where in self._block_at

    def _remove(self, where: Key) -> None:
        found = self._pieces.pop(where, None)
        if found is None:
            return
        data, blocks = found
        self.used_bytes -= len(data)
        for block in range(where[1], where[1] + blocks):
            if self._block_at.get((where[0], block)) == where[1]:
                del self._block_at[where[0], block]
