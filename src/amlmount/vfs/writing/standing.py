"""What of a writable mount is not in the store yet, for people: how much, for how long, what hinders it, what was kept.

Looked at without locks: each number is true of some moment during the look.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from amlmount.vfs.writing.disk import Disk
from amlmount.vfs.writing.keeping import Kept, list_kept
from amlmount.vfs.writing.livefile import LiveFile


@dataclass(frozen=True, slots=True)
class WritingStats:
    """What is not in the store yet: files, bytes, age of the oldest in seconds, what hinders it; and what was kept.

    `refused`: why the store lets nothing be written at present.
    """

    dirty_files: int
    dirty_bytes: int
    oldest_s: float
    trouble: str
    kept: list[Kept]
    refused: str = ""


def look_at(files: Iterable[LiveFile], disk: Disk, refused: str = "") -> WritingStats:
    """Sum up the live files and the state directory. Raises OSError if the latter cannot be read."""
    dirty = [file for file in files if file.is_dirty]
    troubles = [str(file.trouble) for file in dirty if file.trouble is not None]
    now = time.time()
    oldest = min((file.dirty_since for file in dirty), default=now)
    dirty_bytes = sum(file.state.dirty.size_bytes for file in dirty)
    return WritingStats(
        len(dirty), dirty_bytes, max(now - oldest, 0.0), troubles[0] if troubles else "", list_kept(disk), refused
    )


class Backlog:
    """Whether more may be promised than the store has by now, without adding up all that was at every close."""

    def __init__(self, files: Mapping[int, LiveFile], max_bytes: int) -> None:
        """`files` are all live ones, as they are whenever this is asked."""
        self._files, self._max_bytes = files, max_bytes
        self._at_most = math.inf  # not less than there is, but for a file that was added at the same moment as another

    def takes(self, size_bytes: int) -> bool:
        """Say whether so much more may be promised: not if more than the limit is waiting to be sent already."""
        if self._at_most > self._max_bytes:
            pending = [file for file in list(self._files.values()) if file.is_pending]
            self._at_most = sum(file.state.dirty.size_bytes for file in pending)
        if self._at_most > self._max_bytes:
            return False
        self._at_most += size_bytes
        return True
