"""Caches that were left behind when `cache.root` became another place: removed once the mount has its cache there.

A cache that still is read from, or in which something is pinned, stays, and so does one that was left because its disk
would not do at the moment.
"""

import contextlib
import logging
import os
from collections.abc import Iterable

from amlmount.cache import remove_cache, used_roots
from amlmount.cache.places import daemon_directory, read_about
from amlmount.config.locations import Locations
from amlmount.config.spec import MountSpec
from amlmount.errors import AmlmountError

log = logging.getLogger(__name__)


def remove_moved(specs: Iterable[MountSpec], places: Locations) -> list[str]:
    """Remove what caches of these mounts are below roots of before, and return which. Blocks; never raises."""
    folders = [daemon_directory(root, places) for root in used_roots(places)]
    removed = []
    for spec in specs:
        if spec.cache_dir is None or spec.cache_note:
            continue
        here, name = os.path.split(spec.cache_dir)
        paths = [os.path.join(folder, name) for folder in folders if not _is_same(folder, here)]
        removed += [path for path in paths if read_about(path) is not None and _remove(path, spec.name)]
    return removed


def _remove(path: str, name: str) -> bool:
    from amlmount.vfs.content.directory import entries_on_disk

    with contextlib.suppress(AmlmountError, OSError):  # in use: the old process ends with its last open file
        if any(entry.is_pinned for entry in entries_on_disk(path)):
            log.debug("%s: the cache %s stays: something in it is pinned", name, path)
            return False
        freed_bytes = remove_cache(path)
        log.info("%s: its cache is elsewhere now; removed %s (%d bytes)", name, path, freed_bytes)
        return True
    return False


def _is_same(one: str, other: str) -> bool:
    """Say whether two names mean one directory: a root may be reached by a link."""
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)
    return one == other
