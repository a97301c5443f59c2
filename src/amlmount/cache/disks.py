"""What is asked of disks: how large, how full, which one is the operating system's, which one is local.

Nothing here decides; `Disks` is handed in so that tests can have any machine.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from amlmount.mounts import MountEntry, mount_containing, read_mounts, topmost

# The rest is a network's or FUSE: slow, shared, or served by somebody who may hang.
LOCAL_TYPES = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "jfs", "reiserfs", "tmpfs", "ramfs", "overlay"}
)
MEMORY_TYPES = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """A disk's size and what of it is free for us, in bytes."""

    total_bytes: int
    free_bytes: int


def disk_usage(path: str) -> DiskUsage:
    """Ask the disk that holds `path`, or will hold it. Raises OSError."""
    while not os.path.lexists(path) and path != "/":
        path = os.path.dirname(path)
    found = os.statvfs(path)
    return DiskUsage(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


@dataclass(frozen=True)
class Disks:
    """This machine's disks; tests replace its parts. Nothing of it touches a FUSE mount."""

    mounts: Callable[[], list[MountEntry]] = read_mounts
    usage: Callable[[str], DiskUsage] = disk_usage

    def holding(self, path: str) -> MountEntry | None:
        """Return the mount that `path` lies in."""
        return mount_containing(path, self.mounts())

    def at(self, path: str) -> MountEntry | None:
        """Return the mount at exactly `path`."""
        return topmost(self.mounts(), path)

    def is_system_disk(self, entry: MountEntry) -> bool:
        """Say whether it is the disk that the root of the file system is on."""
        root = self.at("/")
        return root is not None and (root.dev_major, root.dev_minor) == (entry.dev_major, entry.dev_minor)
