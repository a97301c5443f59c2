"""Gives every mount that needs one its place on disk, and remembers which roots were used, to find what is left there.

Called whenever a configuration is resolved; the same configuration gets the same places.
"""

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from amlmount.cache.disks import Disks
from amlmount.cache.places import make_cache_directory, mount_directory
from amlmount.cache.root import CacheRoot, choose_root
from amlmount.config.locations import Locations
from amlmount.config.models import CacheConfig
from amlmount.config.spec import MountSpec
from amlmount.config.units import Percent
from amlmount.errors import AmlmountError

ROOTS = "cache-roots.json"
MAX_ROOTS = 16
log = logging.getLogger(__name__)


def needs_cache(spec: MountSpec) -> bool:
    """Say whether a mount keeps anything on disk: not if it only shows local folders, or its profile keeps nothing."""
    return spec.policy.cache_on_disk and any(source.store.get("type") != "local" for source in spec.sources)


def assign_caches(
    specs: Sequence[MountSpec], wanted: CacheConfig, places: Locations, *, disks: Disks | None = None
) -> list[MountSpec]:
    """Return the specs with `cache_dir` and what goes with it filled in where a mount needs it.

    Makes the daemon's directory below the chosen root, and nothing at all if no mount needs a cache. Never raises for
    a disk that will not do: mounts then go without, and `cache_note` says so.
    """
    if not any(needs_cache(spec) for spec in specs):
        return list(specs)
    known = used_roots(places)
    root = choose_root(wanted, places, disks=disks, remembered=known[-1] if known else None)
    if root.note:
        log.warning("cache: %s", root.note)
    if root.path is None:
        return [spec.model_copy(update={"cache_note": root.note}) if needs_cache(spec) else spec for spec in specs]
    remember_root(places, root.path)
    most_bytes = _most_bytes(wanted, sum(needs_cache(spec) for spec in specs))

    def with_cache(spec: MountSpec, path: str = root.path) -> MountSpec:
        return _with_cache(spec, root, mount_directory(path, places, spec), most_bytes) if needs_cache(spec) else spec

    return [with_cache(spec) for spec in specs]


def prepare_cache(spec: MountSpec) -> None:
    """Make the cache directory of a mount that has one. What goes wrong is logged: reading works without."""
    if spec.cache_dir is None:
        return
    try:
        make_cache_directory(spec.cache_dir, spec)
    except (AmlmountError, OSError) as error:
        log.warning("%s: cannot prepare its cache: %s", spec.name, error)


def used_roots(places: Locations) -> list[str]:
    """Return the roots this daemon's caches have been under, the latest last."""
    try:
        found = json.loads((places.state_dir / ROOTS).read_text())
    except (OSError, ValueError):
        return []
    return [path for path in found if isinstance(path, str) and os.path.isabs(path)] if isinstance(found, list) else []


def remember_root(places: Locations, root: str) -> None:
    """Note that caches are under `root` from now on."""
    known = used_roots(places)
    if known[-1:] == [root]:
        return
    try:
        places.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(places.state_dir / ROOTS, [*[path for path in known if path != root], root][-MAX_ROOTS:])
    except OSError as error:
        log.warning("cannot remember the cache root in '%s': %s", places.state_dir, error.strerror)


def _replace(path: Path, roots: Iterable[str]) -> None:
    draft = path.with_suffix(".new")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(file, "w") as writer:
        json.dump(list(roots), writer)
    os.replace(draft, path)


def _with_cache(spec: MountSpec, root: CacheRoot, directory: str, most_bytes: int | None) -> MountSpec:
    return spec.model_copy(
        update={
            "cache_dir": directory,
            "cache_max_bytes": most_bytes,
            "cache_is_ephemeral": root.is_ephemeral,
            "cache_note": root.note,
        }
    )


def _most_bytes(wanted: CacheConfig, mounts: int) -> int | None:
    """An equal part of what was written down, for the time before the daemon shares the room out.

    None for a share of the disk: what of it is free differs from one moment to the next, and a spec must not.
    """
    return None if isinstance(wanted.max_size, Percent) else wanted.max_size // mounts
