"""What cache directories there are on disk, whose they are, and removing one without touching anything else.

Removal follows no symlink, leaves the disk it began on to nobody, and refuses what does not look like ours.
"""

import logging
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from amlmount.cache.places import About, claim, daemon_directory, is_session, is_used, read_about
from amlmount.config.locations import Locations
from amlmount.errors import AmlmountError, BusyError
from amlmount.mounts import read_mounts

log = logging.getLogger(__name__)
DOOMED = ".removed"
CacheState = Literal["used", "kept", "left"]


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """One cache directory. `used`: a process holds it; `kept`: for a mount that is configured; `left`: for none.

    `size_bytes` is what it takes on disk, `last_used_s` when anything in it changed last, seconds since 1970.
    """

    path: str
    name: str
    source: str
    state: CacheState
    size_bytes: int
    last_used_s: float

    def to_json(self) -> dict[str, Any]:
        """Return one object of `cache ls -o json`."""
        return {"schema_version": 1, **asdict(self)}


def find_caches(
    roots: Iterable[str], places: Locations, wanted: Iterable[str], used: Iterable[str] = ()
) -> list[CacheInfo]:
    """Return the caches of this daemon below `roots`.

    `wanted` are the directories of configured mounts, `used` those that are in use whatever their lock says: an engine
    that is not ours takes none.
    """
    keep, taken = set(wanted), set(used)
    found = [path for root in dict.fromkeys(roots) for path in _below(daemon_directory(root, places))]
    abouts = [(path, about) for path in found if (about := _about(path)) is not None]
    return [_info(path, about, _state(path, keep, taken)) for path, about in abouts]


def disk_bytes(path: str) -> int:
    """Return what a directory takes on disk, by the blocks of its files; what cannot be read counts nothing."""
    return sum(found.st_blocks * 512 for found in _walk(path))


def remove_cache(path: str, *, dry_run: bool = False) -> int:
    """Remove a cache directory that nobody uses and return the bytes it took.

    Raises AmlmountError if it does not look like a cache of ours or something is mounted in it, BusyError if it is
    used, OSError.
    """
    if _about(path) is None:
        raise AmlmountError(
            f"cannot remove '{path}': it does not look like a cache of ours", hint="remove it by hand if you know it is"
        )
    _refuse_mounts(path)
    if is_used(path):
        raise _used(path)
    size_bytes = disk_bytes(path)
    if not dry_run:
        _remove_claimed(path)
    return size_bytes


def remove_session_cache(path: str | None) -> None:
    """Remove the cache of a mount that belonged to a process, if it had one and nobody uses it; never raises."""
    if path is None or not is_session(path):
        return
    for place in (path, path + DOOMED):  # the second: whoever began before us was ended in the middle of it
        try:
            if os.path.lexists(place):
                remove_cache(place)
        except (AmlmountError, OSError) as error:
            log.warning("the cache %s stays (`amlmount cache prune` removes it): %s", place, error)


def _remove_claimed(path: str) -> None:
    lock = claim(path)
    if lock is None:
        raise _used(path)
    try:
        # Renamed first: what is half removed is nobody's cache, and a worker that starts now begins a new one.
        doomed = path.removesuffix(DOOMED) + DOOMED
        if doomed != path:
            if os.path.lexists(doomed):
                _remove_tree(doomed)
            os.rename(path, doomed)
        _remove_tree(doomed)
    finally:
        os.close(lock)


def _remove_tree(path: str) -> None:
    # By descriptor and without following symlinks where the platform can, and Linux can.
    assert shutil.rmtree.avoids_symlink_attacks
    device = os.lstat(path).st_dev
    for found in _walk(path):
        if found.st_dev != device:
            raise AmlmountError(f"cannot remove '{path}': another disk is mounted in it", hint="unmount that first")
    shutil.rmtree(path)


def _about(path: str) -> About | None:
    """What a directory says of itself; of one whose removal was cut short, only its name can speak."""
    about = read_about(path)
    if about is None and path.endswith(DOOMED):
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            return About(os.path.basename(path).removesuffix(DOOMED), "half removed")
    return about


def _refuse_mounts(path: str) -> None:
    inside = [entry.mount_point for entry in read_mounts() if f"{entry.mount_point}/".startswith(f"{path}/")]
    if inside:
        raise AmlmountError(
            f"cannot remove '{path}': something is mounted at '{inside[0]}'",
            hint=f"unmount it first: umount {inside[0]}",
        )


def _used(path: str) -> BusyError:
    return BusyError(f"cannot remove '{path}': a mount uses it", hint="take the mount down first: amlmount down NAME")


def _below(folder: str) -> list[str]:
    try:
        return sorted(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _state(path: str, wanted: set[str], used: set[str]) -> CacheState:
    if path in used or is_used(path):
        return "used"
    return "kept" if path in wanted else "left"


def _info(path: str, about: About, state: CacheState) -> CacheInfo:
    name = f"{about.mount} (session)" if is_session(path) else about.mount
    files = list(_walk(path))
    size_bytes = sum(found.st_blocks * 512 for found in files)
    last_used_s = max((found.st_mtime for found in files), default=0.0)
    return CacheInfo(path, name, about.source, state, size_bytes, last_used_s)


def _walk(path: str) -> Iterator[os.stat_result]:
    """Yield what lstat says of everything below `path`; a mount below it is not entered."""
    try:
        device = os.lstat(path).st_dev
        entries = list(os.scandir(path))
    except OSError:
        return
    for entry in entries:
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        yield found
        if stat.S_ISDIR(found.st_mode) and found.st_dev == device:
            yield from _walk(entry.path)
