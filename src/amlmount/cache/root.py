"""Chooses the directory below which all caches of a daemon lie: a named one, else on a temporary disk, else the usual.

A candidate that will not do is passed over and said so; with none left, mounts work without a cache on disk.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from amlmount.cache.disks import LOCAL_TYPES, MEMORY_TYPES, Disks, DiskUsage
from amlmount.cache.places import daemon_directory, make_daemon_directory
from amlmount.config.locations import Locations
from amlmount.config.models import CacheConfig
from amlmount.config.units import Percent, rough_size
from amlmount.errors import AmlmountError
from amlmount.mounts import MountEntry

# Where Azure's images mount the temporary disk, Ubuntu's first (facts of cloud-init and waagent). The raw NVMe disks
# of v6 sizes have no file system, so they are no mount and no candidate.
TEMPORARY_DISKS = ("/mnt", "/mnt/resource")
BELOW_TEMPORARY = "amlmount/cache"
# A compute instance whose system disk is full cannot be stopped or started any more.
SYSTEM_DISK_FLOOR_BYTES = 10 * 10**9
SMALLEST_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class CacheRoot:
    """The choice. `path` None: nowhere. `note` says what was passed over and why, empty if nothing was.

    `is_ephemeral`: emptied when the machine stops, so nothing may be there that exists nowhere else.
    """

    path: str | None
    is_ephemeral: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Candidate:
    path: str
    is_named: bool = False
    is_temporary: bool = False


def choose_root(
    wanted: CacheConfig,
    places: Locations,
    *,
    disks: Disks | None = None,
    remembered: str | None = None,
    prepare: Callable[[str], None] = make_daemon_directory,
    env: Mapping[str, str] = os.environ,
) -> CacheRoot:
    """Return the first candidate that has room and can be written. `remembered` is what it was last time.

    `prepare` makes the daemon's directory below a root and raises AmlmountError or OSError if that cannot be.
    """
    machine = disks or Disks()
    passed_over: list[str] = []
    for candidate in _candidates(wanted, places, machine, remembered, env):
        why = _objection(candidate, wanted, machine) or _cannot_prepare(candidate, places, prepare)
        if why is None:
            return CacheRoot(candidate.path, _is_ephemeral(candidate, machine), _note(passed_over))
        passed_over.append(f"'{candidate.path}' {why}")
    return CacheRoot(None, note=_note([*passed_over, "so nothing is cached on disk"]))


def keep_free_bytes(wanted: CacheConfig, disk: DiskUsage, *, is_system_disk: bool, is_named: bool) -> int:
    """Return how much of a disk stays free in any case."""
    asked = _share(wanted.keep_free, disk)
    return max(asked, SYSTEM_DISK_FLOOR_BYTES) if is_system_disk and not is_named else asked


def budget_bytes(wanted: CacheConfig, root: str, *, used_bytes: int, is_named: bool, disks: Disks | None = None) -> int:
    """Return what all caches below `root` may take together, `used_bytes` of which they take already.

    Raises OSError.
    """
    machine = disks or Disks()
    disk, entry = machine.usage(root), machine.holding(root)
    on_system_disk = entry is not None and machine.is_system_disk(entry)
    floor = keep_free_bytes(wanted, disk, is_system_disk=on_system_disk, is_named=is_named)
    return max(0, min(_share(wanted.max_size, disk), used_bytes + disk.free_bytes - floor))


def is_named_root(wanted: CacheConfig, env: Mapping[str, str] = os.environ) -> bool:
    """Say whether somebody said where the cache goes, so that we need not be careful for them."""
    return bool(wanted.root or env.get("AMLMOUNT_CACHE_ROOT"))


def temporary_roots(disks: Disks | None = None) -> list[str]:
    """Return where caches are on the temporary disks of this machine."""
    return [candidate.path for candidate in _temporary(disks or Disks(), None)]


def _share(size: int | Percent, disk: DiskUsage) -> int:
    return size.of(disk.total_bytes) if isinstance(size, Percent) else size


def _candidates(
    wanted: CacheConfig, places: Locations, disks: Disks, remembered: str | None, env: Mapping[str, str]
) -> list[_Candidate]:
    usual = str(places.cache_root)
    found = [_Candidate(wanted.root, is_named=True)] if wanted.root else []
    if env.get("AMLMOUNT_CACHE_ROOT"):
        return [*found, _Candidate(usual, is_named=True)]
    return [*found, *_temporary(disks, remembered), _Candidate(usual)]


def _temporary(disks: Disks, remembered: str | None) -> list[_Candidate]:
    """Temporary disks, that of last time first, then the one with most room."""
    found = []
    for point in TEMPORARY_DISKS:
        entry = disks.at(point)
        if entry is not None and entry.fstype in LOCAL_TYPES - MEMORY_TYPES and not disks.is_system_disk(entry):
            path = os.path.join(point, BELOW_TEMPORARY)
            found.append((path != remembered, -_free(disks, point), path))
    return [_Candidate(path, is_temporary=True) for _, _, path in sorted(found)]


def _free(disks: Disks, path: str) -> int:
    try:
        return disks.usage(path).free_bytes
    except OSError:
        return 0


def _objection(candidate: _Candidate, wanted: CacheConfig, disks: Disks) -> str | None:
    entry = disks.holding(candidate.path)
    if entry is None or entry.fstype not in LOCAL_TYPES:
        return f"is on {entry.fstype if entry else 'nothing'}, which is no local disk"
    if entry.read_only:
        return "is read-only"
    try:
        disk = disks.usage(candidate.path)
    except OSError as error:
        return f"does not answer ({(error.strerror or 'error').lower()})"
    on_system_disk = disks.is_system_disk(entry)
    floor = keep_free_bytes(wanted, disk, is_system_disk=on_system_disk, is_named=candidate.is_named)
    if disk.free_bytes - floor < SMALLEST_CACHE_BYTES:
        where = "the system disk" if on_system_disk else "its disk"
        free, kept = rough_size(disk.free_bytes), rough_size(floor)
        return f"has no room: {free} are free on {where}, and {kept} are to stay free"
    return None


def _cannot_prepare(candidate: _Candidate, places: Locations, prepare: Callable[[str], None]) -> str | None:
    try:
        prepare(daemon_directory(candidate.path, places))
    except AmlmountError as error:
        return f"cannot be used ({error.message})"
    except OSError as error:
        return f"cannot be written ({(error.strerror or 'error').lower()})"
    return None


def _is_ephemeral(candidate: _Candidate, disks: Disks) -> bool:
    entry: MountEntry | None = disks.holding(candidate.path)
    on_temporary = entry is not None and entry.mount_point in TEMPORARY_DISKS and not disks.is_system_disk(entry)
    return candidate.is_temporary or on_temporary or (entry is not None and entry.fstype in MEMORY_TYPES)


def _note(passed_over: list[str]) -> str:
    return "; ".join(passed_over)
