"""Where caches on disk lie, how much room each has, what is left of mounts that are no more.

What is inside a cache directory is the business of whoever fills it (`docs/cache.md`).
"""

from amlmount.cache.assign import assign_caches, needs_cache, prepare_cache, used_roots
from amlmount.cache.budget import Demand, allot
from amlmount.cache.disks import Disks, DiskUsage
from amlmount.cache.leftovers import (
    CacheInfo,
    disk_bytes,
    find_caches,
    remove_cache,
    remove_session_cache,
)
from amlmount.cache.places import make_cache_directory, mount_directory, session_directory
from amlmount.cache.root import CacheRoot, budget_bytes, choose_root, is_named_root, temporary_roots
from amlmount.cache.state import assign_state, why_not_lasting

__all__ = [
    "CacheInfo",
    "CacheRoot",
    "Demand",
    "DiskUsage",
    "Disks",
    "allot",
    "assign_caches",
    "assign_state",
    "budget_bytes",
    "choose_root",
    "disk_bytes",
    "find_caches",
    "is_named_root",
    "make_cache_directory",
    "mount_directory",
    "needs_cache",
    "prepare_cache",
    "remove_cache",
    "remove_session_cache",
    "session_directory",
    "temporary_roots",
    "used_roots",
    "why_not_lasting",
]
