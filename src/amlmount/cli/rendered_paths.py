"""Where the blobfuse2 of a mount keeps its files: those of the one that runs, else what the next one would be given.

Only `amlmount render` needs it, and imports it when it is called.
"""

import glob
import os
from contextlib import suppress
from dataclasses import dataclass

from amlmount.cache import choose_root, mount_directory, needs_cache, used_roots
from amlmount.config.locations import Locations
from amlmount.config.models import CacheConfig
from amlmount.config.spec import MountSpec
from amlmount.recovery import RUNNING, Folder, file_name_of, read_folder

NEXT = f"{RUNNING}ID"  # every run has a directory of its own, named when it starts


@dataclass(frozen=True, slots=True)
class Paths:
    """What goes into a configuration. `cache_bytes` and `memory_bytes`: what a running one was granted, else None."""

    cache_dir: str
    work_dir: str
    log_path: str
    cache_bytes: int | None = None
    memory_bytes: int | None = None


def paths_of(spec: MountSpec, places: Locations, cache: CacheConfig) -> Paths:
    """Return the paths of the mount's blobfuse2. Makes nothing."""
    name = file_name_of(spec.name)
    runtime = os.path.join(places.runtime_dir, "blobfuse2", name)
    log_path = os.path.join(places.state_dir, "logs", f"{name}.log")
    for marker in sorted(glob.glob(os.path.join(glob.escape(runtime), "*", "cache")), reverse=True):
        if (folder := _folder(marker)) is not None and folder.instance.alive:
            work_dir = os.path.join(os.path.dirname(marker), "work")
            instance = folder.instance
            return Paths(folder.data, work_dir, log_path, instance.cache_bytes, instance.memory_bytes)
    base = os.path.join(_base(spec, places, cache), NEXT)
    return Paths(os.path.join(base, "data"), os.path.join(runtime, NEXT, "work"), log_path)


def _base(spec: MountSpec, places: Locations, cache: CacheConfig) -> str:
    """Return where the next one's directory would be: on a lasting disk if it can hold what is nowhere else."""
    if not spec.read_only:
        return os.path.join(places.state_dir, "blobfuse2", file_name_of(spec.name))
    if needs_cache(spec):
        known = used_roots(places)
        root = choose_root(cache, places, remembered=known[-1] if known else None, prepare=lambda path: None)
        if root.path is not None:
            return os.path.join(mount_directory(root.path, places, spec), "blobfuse2")
    return os.path.join(places.cache_root, "blobfuse2", file_name_of(spec.name))


def _folder(marker: str) -> Folder | None:
    with suppress(OSError), open(marker) as file:
        return read_folder(file.read())
    return None
