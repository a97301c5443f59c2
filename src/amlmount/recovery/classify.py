"""What a file that a dead blobfuse2 left in its cache is: a copy, a torn download, or data that is nowhere else.

After what was seen with 2.5.6 at kill -9; never by time alone: an unfinished download looks newer than its blob.
"""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from amlmount.stores.base import ObjectInfo

SECOND_NS = 10**9


class Verdict(StrEnum):
    """What a file is."""

    CLEAN = "clean"
    STALE = "stale"
    UNFINISHED = "unfinished"
    STORED = "stored"
    LOST = "lost"
    CONFLICT = "conflict"
    NEW = "new"
    CHANGED = "changed"


MEANINGS = {
    Verdict.CLEAN: "a copy of the blob",
    Verdict.STALE: "an old copy of a blob that has changed or gone since",
    Verdict.UNFINISHED: "an unfinished download",
    Verdict.STORED: "written here, and in the store",
    Verdict.LOST: "was open when blobfuse2 died, its content was never written down",
    Verdict.CONFLICT: "written here, but the blob was changed elsewhere since",
    Verdict.NEW: "written here, not in the store",
    Verdict.CHANGED: "written here, the store has an older version",
}


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A regular file of the cache. `name` is its path below it, which is the blob's name below the mounted prefix."""

    name: str
    path: str
    size_bytes: int
    mtime_ns: int
    mode: int


@dataclass(frozen=True, slots=True)
class Rules:
    """How to read the marks. `whole_seconds`: the store's times are (Azure's), so a copy's time is one, ours is not.

    `unfinished_mode` is the mode of a file until its download is complete.
    """

    whole_seconds: bool
    unfinished_mode: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Asks for contents only when the marks do not decide: both may read the whole blob."""

    is_same: Callable[[], bool]
    is_part: Callable[[], bool]


def local_files(data: str) -> Iterator[LocalFile]:
    """Yield the regular files below a cache directory; links are not followed."""
    for top, _, names in os.walk(data):
        for name in names:
            path = os.path.join(top, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                where = os.path.relpath(path, data)
                yield LocalFile(where, path, status.st_size, status.st_mtime_ns, stat.S_IMODE(status.st_mode))


def classify(file: LocalFile, blob: ObjectInfo | None, rules: Rules, compare: Comparison) -> Verdict:
    """Return what `file` is, `blob` being what the store has under its name now."""
    if _is_copy(file, blob, rules):
        return Verdict.CLEAN if blob is not None and _matches(file, blob) else Verdict.STALE
    if blob is None:
        return Verdict.NEW if file.size_bytes else Verdict.LOST
    if file.size_bytes == blob.size_bytes:
        if compare.is_same():
            return Verdict.STORED
        # The mark alone is not enough: a chmod through the mount gives it to any file.
        if file.mode == rules.unfinished_mode and compare.is_part():
            return Verdict.UNFINISHED
    blob_s, file_s = blob.mtime_ns // SECOND_NS, file.mtime_ns // SECOND_NS
    if not file.size_bytes:
        # Made just before the end, and made again and written by its successor; nothing is in it.
        return Verdict.STALE if blob_s > file_s else Verdict.LOST
    return Verdict.CONFLICT if blob_s > file_s else Verdict.CHANGED


def _is_copy(file: LocalFile, blob: ObjectInfo | None, rules: Rules) -> bool:
    if rules.whole_seconds:
        return file.mtime_ns % SECOND_NS == 0
    return blob is not None and _matches(file, blob)


def _matches(file: LocalFile, blob: ObjectInfo) -> bool:
    return (blob.size_bytes, blob.mtime_ns) == (file.size_bytes, file.mtime_ns)
