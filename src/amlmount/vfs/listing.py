"""From the pages of a listing to the entries of one directory, by the rule of `names` and the source's glob.

Pages go in as they arrive; nothing here makes an inode.
"""

from collections import Counter
from dataclasses import dataclass, field

from amlmount.stores.base import ObjectInfo, Page
from amlmount.stores.metadata import MTIME, parse_mtime
from amlmount.vfs.globs import Glob
from amlmount.vfs.names import HiddenReason, encode_segment


@dataclass(slots=True)
class Listing:
    """What one directory holds. `directories` maps a name to the time of its marker blob, 0 without one."""

    files: dict[bytes, ObjectInfo] = field(default_factory=dict)
    directories: dict[bytes, int] = field(default_factory=dict)
    hidden: Counter[HiddenReason] = field(default_factory=Counter)


class ListingBuilder:
    """Collects the pages of `list(prefix, delimiter=True)`."""

    def __init__(self, prefix: str, path: str, glob: Glob | None) -> None:
        """`path` is the directory relative to the source: empty, or ending in `/`."""
        self._start = len(prefix)
        self._path = path
        self._glob = glob
        self._listing = Listing()

    def add(self, page: Page) -> None:
        """Take in one page; a name that comes twice counts once, as it came last."""
        for prefix in page.prefixes:
            self._add_directory(prefix[self._start : -1], 0)
        start, glob, files = self._start, self._glob, self._listing.files
        for info in page.objects:
            segment = info.name[start:]
            if info.size_bytes == 0 and (not segment or is_folder_marker(info)):
                self._add_marker(segment, info)
                continue
            name = encode_segment(segment)
            if isinstance(name, HiddenReason):
                self._hide(name, segment)
            elif glob is None or glob.shows_file(self._path + segment):
                files[name] = with_kept_time(info) if info.metadata else info

    def finish(self) -> Listing:
        """Return the entries: where a blob and a directory have one name, the directory wins."""
        listing = self._listing
        for name in listing.files.keys() & listing.directories.keys():
            del listing.files[name]
            listing.hidden[HiddenReason.SHADOWED] += 1
        return listing

    def _add_directory(self, segment: str, mtime_ns: int) -> None:
        name = encode_segment(segment)
        if isinstance(name, HiddenReason):
            self._listing.hidden[name] += 1
        elif self._glob is None or self._glob.shows_directory(self._path + segment):
            known = self._listing.directories.get(name, 0)
            self._listing.directories[name] = max(known, mtime_ns)

    def _add_marker(self, segment: str, info: ObjectInfo) -> None:
        if segment:
            self._add_directory(segment, info.mtime_ns)
        elif self._start == 0:
            self._listing.hidden[HiddenReason.EMPTY_SEGMENT] += 1

    def _hide(self, reason: HiddenReason, segment: str) -> None:
        is_marker = not segment and self._start > 0
        self._listing.hidden[HiddenReason.MARKER_WITH_DATA if is_marker else reason] += 1


def with_kept_time(info: ObjectInfo) -> ObjectInfo:
    """Return a blob with the time of its content that was kept in its metadata, by us or by rclone, if there is one."""
    kept = parse_mtime(info.metadata.get(MTIME, ""))
    return info if kept is None else info._replace(mtime_ns=kept)


def is_folder_marker(info: ObjectInfo) -> bool:
    """Tell whether an empty blob stands for a directory, as ADLS Gen2 and blobfuse2 mark them."""
    return info.metadata.get("hdi_isfolder", "").lower() == "true"
