"""Where a writable mount keeps what was promised and is not in the store yet: never the cache, never a passing disk.

The directory is the mount's for as long as its name and sources are the same: the next start finds there what is left.
"""

import os
import re
from collections.abc import Sequence
from hashlib import blake2b

from amlmount.cache.disks import LOCAL_TYPES, MEMORY_TYPES, Disks
from amlmount.cache.root import TEMPORARY_DISKS
from amlmount.config.locations import Locations
from amlmount.config.spec import MountSpec

NAME = "writing"
_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


def assign_state(specs: Sequence[MountSpec], places: Locations) -> list[MountSpec]:
    """Return the specs with `state_dir` filled in where a mount can be written and names none."""
    return [spec if spec.read_only or spec.state_dir else _with_state(spec, places) for spec in specs]


def container_state(account: MountSpec, spec: MountSpec) -> str | None:
    """Return where a mount of one container of an account keeps it: each for itself, as only one can write there."""
    if account.state_dir is None:
        return None
    base = account.state_dir if account.state_dir_is_named else os.path.dirname(account.state_dir)
    return os.path.join(base, _own_name(spec))


def why_not_lasting(path: str, *, disks: Disks | None = None) -> str | None:
    """Return what keeps a directory from outliving a stop of the machine, None if nothing is known to."""
    machine = disks or Disks()
    entry = machine.holding(path)
    if entry is None or entry.fstype in MEMORY_TYPES:
        return "is in memory, which a stop of the machine empties"
    if entry.mount_point in TEMPORARY_DISKS and not machine.is_system_disk(entry):
        return "is on the temporary disk, which a stop of the machine empties"
    if entry.fstype not in LOCAL_TYPES:
        return f"is on {entry.fstype}, which is no local disk"
    return None


def _with_state(spec: MountSpec, places: Locations) -> MountSpec:
    return spec.model_copy(update={"state_dir": os.path.join(str(places.state_dir), NAME, _own_name(spec))})


def _own_name(spec: MountSpec) -> str:
    digest = blake2b(spec.name.encode(), digest_size=4).hexdigest()
    return f"{_PLAIN.sub('_', spec.name)[:64]}-{digest}"
