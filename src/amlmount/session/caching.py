"""The cache of a mount that belongs to one process: a directory of its own, private, gone with it."""

import logging
import os
from pathlib import Path

from amlmount.cache import (
    CacheRoot,
    budget_bytes,
    choose_root,
    disk_bytes,
    is_named_root,
    make_cache_directory,
    needs_cache,
    session_directory,
)
from amlmount.config.load import config_files, load_config
from amlmount.config.locations import Locations, find_locations
from amlmount.config.models import CacheConfig
from amlmount.config.spec import MountSpec
from amlmount.errors import AmlmountError

log = logging.getLogger(__name__)


def with_session_cache(spec: MountSpec, config_path: Path | None) -> MountSpec:
    """Return the spec with a new cache directory, made, if it needs one; without if there is no place for one."""
    if not needs_cache(spec):
        return spec
    try:
        places, wanted = find_locations(), _wanted(config_path)
        root = choose_root(wanted, places)
        return spec if root.path is None else _made(spec, root, root.path, wanted, places)
    except (AmlmountError, OSError) as error:
        log.warning("nothing is cached on disk: %s", error)
        return spec


def _wanted(config_path: Path | None) -> CacheConfig:
    try:
        return load_config(config_files(config_path)).cache
    except AmlmountError:
        return CacheConfig()


def _made(spec: MountSpec, root: CacheRoot, path: str, wanted: CacheConfig, places: Locations) -> MountSpec:
    directory = session_directory(path, places)
    make_cache_directory(directory, spec)
    used = disk_bytes(os.path.dirname(directory))
    most = budget_bytes(wanted, path, used_bytes=used, is_named=is_named_root(wanted)) - used
    made = {"cache_dir": directory, "cache_max_bytes": max(0, most), "cache_is_ephemeral": root.is_ephemeral}
    return spec.model_copy(update=made)
