"""What an earlier daemon left of a blobfuse2 that it started: its directory, its configuration, its descriptor.

All of it is found by pid and start time, which the directory's record and the mount's agree on.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from amlmount.config.spec import MountSpec
from amlmount.descriptors.base import close_all
from amlmount.descriptors.rescue import rescue
from amlmount.engines.base import Claim
from amlmount.engines.blobfuse2.budget import Granted
from amlmount.engines.blobfuse2.configuring import Prepared, mode_of
from amlmount.engines.blobfuse2.places import Places
from amlmount.errors import AmlmountError
from amlmount.mounts.fusemount import DEV_FUSE
from amlmount.recovery import ASIDE, RUNNING, Folder, find_folders
from amlmount.run import is_same_process


def find_prepared(claim: Claim, places: Places) -> Prepared:
    """Return what the blobfuse2 of `claim` was started with. Raises AmlmountError if its directory is gone."""
    for folder in _folders(claim.spec, places):
        if (folder.instance.pid, folder.instance.pid_start_time) == (claim.pid, claim.pid_start_time):
            runtime_dir = os.path.join(places.runtime_base(claim.spec.name), os.path.basename(folder.path))
            granted = Granted(folder.instance.cache_bytes, folder.instance.memory_bytes)
            found = Prepared(folder, runtime_dir, granted=granted)
            with suppress(OSError), open(found.config_path) as file:
                return replace(found, mode=mode_of(file.read()))
            return found
    raise AmlmountError(f"cannot adopt '{claim.spec.name}': the cache of its blobfuse2 is gone")


def fuse_descriptor(claim: Claim) -> int:
    """Return the connection's descriptor: the one that was kept, else the engine's own. The others are closed.

    Raises AmlmountError if there is none.
    """
    found = dict(claim.descriptors)
    fuse_fd = found.pop("fuse", -1)
    close_all(found.values())
    if fuse_fd < 0:
        fuse_fd = _from_engine(claim.pid, claim.pid_start_time)
    if fuse_fd < 0:
        raise AmlmountError(f"cannot adopt '{claim.spec.name}': its descriptor was not kept")
    return fuse_fd


def _folders(spec: MountSpec, places: Places) -> Iterator[Folder]:
    yield from places.running()
    for base in places.all_bases(spec):
        for prefix in (RUNNING, ASIDE):
            yield from find_folders(base, prefix)


def _from_engine(pid: int, start_time: int) -> int:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    try:
        return rescue(pidfd, pid, {DEV_FUSE: "fuse"}).get("fuse", -1) if is_same_process(pid, start_time) else -1
    finally:
        os.close(pidfd)
