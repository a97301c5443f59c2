"""What all blobfuse2 mounts together may take: memory for blocks, disk for caches, files, inotify instances.

blobfuse2's own defaults are shares of the whole machine for each mount; here each gets a number, and a start that
does not fit is refused in so many words.
"""

import contextlib
import os
import resource
import shutil
from collections.abc import Iterable
from dataclasses import dataclass

from amlmount.config.units import rough_size
from amlmount.errors import BusyError
from amlmount.recovery import Instance

MIB, GIB = 1 << 20, 1 << 30
DEFAULT_CACHE_BYTES = 4 * GIB
LEAST_CACHE_BYTES = 64 * MIB
DISK_SHARE = 0.8
KEEP_FREE_BYTES = 256 * MIB
DEFAULT_MEMORY_BYTES = 512 * MIB
LEAST_MEMORY_BYTES = 64 * MIB
MEMORY_SHARE = 0.6
LEAST_OPEN_FILES = 1024
FILES_RESERVE = 1024
INOTIFY_LIMIT = "/proc/sys/fs/inotify/max_user_instances"
FILE_NR = "/proc/sys/fs/file-nr"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a mount needs, in bytes; None: what is reasonable, for the cache up to `cache_most_bytes`."""

    mount: str
    base: str
    cache_bytes: int | None
    cache_most_bytes: int
    memory_bytes: int | None
    needs_disk: bool
    needs_memory: bool


@dataclass(frozen=True, slots=True)
class Granted:
    """What a mount may take, in bytes."""

    cache_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is, in bytes; a seam for tests."""

    memory_bytes: int
    free_disk_bytes: int
    inotify_limit: int
    inotify_used: int
    open_files_limit: int
    system_files_left: int


def grant(asked: Asked, running: Iterable[Instance], machine: Machine) -> Granted:
    """Return what the mount may take beside those that run. Raises BusyError that says what is short, and numbers."""
    others = [instance for instance in running if instance.alive]
    _check_descriptors(asked, machine)
    memory = _memory(asked, sum(other.memory_bytes for other in others), machine) if asked.needs_memory else 0
    disk = _disk(asked, sum(other.cache_bytes for other in others), machine) if asked.needs_disk else LEAST_CACHE_BYTES
    return Granted(disk, memory)


def look_at_machine(base: str) -> Machine:
    """Return what this machine has; `base` is where the cache goes (or its nearest directory upwards)."""
    while not os.path.isdir(base):
        base = os.path.dirname(base)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    used, _, most = (int(number) for number in _read(FILE_NR, "0 0 9223372036854775807").split())
    return Machine(
        memory_bytes=_memory_limit(),
        free_disk_bytes=shutil.disk_usage(base).free,
        inotify_limit=int(_read(INOTIFY_LIMIT, "128")),
        inotify_used=_inotify_instances(os.geteuid()),
        open_files_limit=limit,
        system_files_left=most - used,
    )


def _check_descriptors(asked: Asked, machine: Machine) -> None:
    if machine.inotify_used >= machine.inotify_limit:
        raise _refused(
            asked,
            f"this user's {machine.inotify_limit} inotify instances are in use, and blobfuse2 needs one",
            "sudo sysctl fs.inotify.max_user_instances=1024",
        )
    if machine.open_files_limit < LEAST_OPEN_FILES:
        raise _refused(
            asked,
            f"only {machine.open_files_limit} open files are allowed, and blobfuse2 needs {LEAST_OPEN_FILES}",
            "raise it: ulimit -n 16384, or LimitNOFILE= in the unit",
        )
    if machine.system_files_left < FILES_RESERVE:
        raise _refused(asked, "the machine is out of open files", "see /proc/sys/fs/file-nr")


def _memory(asked: Asked, taken: int, machine: Machine) -> int:
    left = int(machine.memory_bytes * MEMORY_SHARE) - taken
    wanted = asked.memory_bytes or min(DEFAULT_MEMORY_BYTES, max(left, LEAST_MEMORY_BYTES))
    if wanted > left:
        raise _refused(
            asked,
            f"its blocks want {rough_size(wanted)} of memory, {rough_size(max(left, 0))} are left of "
            f"{rough_size(int(machine.memory_bytes * MEMORY_SHARE))} for all mounts ({rough_size(taken)} taken)",
            "take another mount down, or write `blobfuse2: {block_cache: {mem-size-mb: ...}}`",
        )
    return wanted


def _disk(asked: Asked, taken: int, machine: Machine) -> int:
    left = int(machine.free_disk_bytes * DISK_SHARE) - KEEP_FREE_BYTES - taken
    wanted = asked.cache_bytes or min(asked.cache_most_bytes, max(left, LEAST_CACHE_BYTES))
    if wanted > left:
        raise _refused(
            asked,
            f"its cache wants {rough_size(wanted)} in {asked.base}, {rough_size(max(left, 0))} are left there "
            f"({rough_size(taken)} promised to other mounts)",
            "free some space, set cache.root to a larger disk, or give it less with max-size-mb",
        )
    return wanted


def _refused(asked: Asked, why: str, hint: str) -> BusyError:
    return BusyError(f"cannot mount '{asked.mount}': {why}", hint=hint)


def _memory_limit() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max", "max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _inotify_instances(uid: int) -> int:
    """Count them over the processes of a user: the kernel shows the limit, not the use."""
    count = 0
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == uid:
                count += sum(_is_inotify(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd"))
    return count


def _is_inotify(link: str) -> bool:
    try:
        return os.readlink(link) == "anon_inode:inotify"
    except OSError:
        return False


def _read(path: str, default: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return default
