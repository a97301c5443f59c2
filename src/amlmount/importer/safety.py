"""What is dangerous about where an imported file and its cache lie: who can read it, which disk it is on.

Modes mean nothing on a share: an Azure ML compute instance mounts `cloudfiles` for the whole workspace, by CIFS.
"""

import os
import stat
from pathlib import Path

from amlmount.importer.finding import Finding
from amlmount.mounts.paths import mount_containing

_SHARED_TYPES = ("cifs", "smb3", "smbfs", "nfs", "nfs4", "9p", "drvfs")
_SHARED_NAMES = ("cloudfiles",)
_TEMPORARY = ("/tmp", "/var/tmp")


def secret_findings(path: Path, where: str, what: str) -> list[Finding]:
    """Return what is wrong with a secret in clear in `path`: at least that it is there."""
    change = "the configuration only refers to it; remove it from this file"
    if is_shared(path):
        reason = "lies on a shared folder, which everybody in the workspace reads whatever chmod says: renew it"
    elif others_can_read(path):
        reason = "can be read by every user of this machine"
    else:
        reason = "goes wherever this file is copied"
    return [Finding(where, f"{what} in clear {reason}", change)]


def is_shared(path: Path) -> bool:
    """Tell whether a file lies on a share, by its file system or by the folder's name on a compute instance."""
    absolute = os.path.realpath(path)
    mount = mount_containing(absolute)
    by_type = mount is not None and mount.fstype in _SHARED_TYPES
    return by_type or any(name in Path(absolute).parts for name in _SHARED_NAMES)


def others_can_read(path: Path) -> bool:
    """Tell whether group or others may read a file."""
    try:
        return bool(os.stat(path).st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False


def cache_finding(where: str, directory: str) -> Finding | None:
    """Return what is wrong with a cache directory; None when it may stay where it is."""
    change = "amlmount chooses a private directory, on the temporary disk if there is one"
    if not directory.startswith("/"):
        return Finding(where, f"the cache {directory} depends on who starts blobfuse2, and where", change)
    if os.path.normpath(directory).startswith(tuple(f"{folder}/" for folder in _TEMPORARY)):
        return Finding(where, f"the cache {directory} is in a folder of everybody's, and its files are 0755", change)
    if _disk_of(directory) in (None, _disk_of("/")):
        return Finding(where, f"the cache {directory} is on the disk of the operating system, and fills it", change)
    return None


def _disk_of(path: str) -> int | None:
    """Return the device of a path, or of what is there of it; a dead mount on the way is not touched."""
    mount = mount_containing(os.path.normpath(path))
    return None if mount is None or mount.is_fuse else os.makedev(mount.dev_major, mount.dev_minor)
