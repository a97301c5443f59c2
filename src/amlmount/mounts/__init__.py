"""Everything about the kernel's mount table and mount system calls; nothing in here touches a path inside a FUSE mount.

Other packages import from here, not from the modules.
"""

from amlmount.mounts.connection import abort, connection_id, fusectl_mounted, is_dead, waiting
from amlmount.mounts.detached import attach, copy_of, open_detached
from amlmount.mounts.front import clear_fronts, open_front
from amlmount.mounts.fusemount import busy_error, open_and_mount, open_dev_fuse, unmount
from amlmount.mounts.holders import Holder, holders
from amlmount.mounts.mountinfo import MountEntry, MountWatch, read_mounts, topmost
from amlmount.mounts.paths import canonical, find_mount, mount_containing
from amlmount.mounts.syscalls import has_sys_admin
from amlmount.mounts.target import TargetPlan, is_ours, prepare_target, remove_target

__all__ = [
    "Holder",
    "MountEntry",
    "MountWatch",
    "TargetPlan",
    "abort",
    "attach",
    "busy_error",
    "canonical",
    "clear_fronts",
    "connection_id",
    "copy_of",
    "find_mount",
    "fusectl_mounted",
    "has_sys_admin",
    "holders",
    "is_dead",
    "is_ours",
    "mount_containing",
    "open_and_mount",
    "open_detached",
    "open_dev_fuse",
    "open_front",
    "prepare_target",
    "read_mounts",
    "remove_target",
    "topmost",
    "unmount",
    "waiting",
]
