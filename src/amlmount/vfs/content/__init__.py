"""The bytes of blobs that are not on this machine: fetched in parallel, ahead of readers, cached on disk.

`open_reader` makes the one of a mount. The disk format is docs/cache.md; nothing here knows of FUSE.
"""

from amlmount.vfs.content.reader import ContentReader, OpenContent, open_late, open_reader
from amlmount.vfs.content.small import Download

__all__ = ["ContentReader", "Download", "OpenContent", "open_late", "open_reader"]
