"""The mount that blobfuse2 is handed: made by us, so that it outlives the blobfuse2 that serves it.

With CAP_SYS_ADMIN it is attached nowhere until it has answered, and appears at its target whole or not at all.
Otherwise fusermount3 mounts it at the target at once, and whoever looks waits for the first answer.
"""

import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from amlmount import mounts
from amlmount.config.spec import MountSpec
from amlmount.errors import AmlmountError, MountFailedError
from amlmount.mounts import MountEntry
from amlmount.mounts.syscalls import MNT_DETACH, umount2
from amlmount.probes import ProbeResult, probe_detached, probe_mounted

log = logging.getLogger(__name__)
# What blobfuse2 itself calls its mounts: `blobfuse2 mount list` and findmnt go by it.
SOURCE = "blobfuse2"
SUBTYPE = "amlmount"
# The kernel takes it from the mount, blobfuse2 passes it to libfuse: both must say the same.
MAX_READ_BYTES = 1 << 20
ON_TOP_PATIENCE_S = 0.5
How = Literal["alone", "beneath", "on_top"]


@dataclass(slots=True)
class Opened:
    """A mount in the making. `mount_fd` is -1 when it is at its target already. Close both, once."""

    fuse_fd: int
    mount_fd: int

    def close_mount(self) -> None:
        """Give up our hold; a mount that was not attached goes with it."""
        if self.mount_fd >= 0:
            os.close(self.mount_fd)
            self.mount_fd = -1

    def close_fuse(self) -> None:
        """Close the connection's descriptor: with the last one it is dead."""
        if self.fuse_fd >= 0:
            os.close(self.fuse_fd)
            self.fuse_fd = -1


def open_mount(spec: MountSpec) -> Opened:
    """Make the mount. Raises MountFailedError."""
    options = {
        "source": SOURCE,
        "subtype": SUBTYPE,
        "read_only": spec.read_only,
        "allow_other": spec.allow_other,
        "default_permissions": checks_permissions(spec),
        "max_read_bytes": MAX_READ_BYTES,
    }
    if mounts.has_sys_admin():
        try:
            return Opened(*mounts.open_detached(**options))  # type: ignore[arg-type]
        except MountFailedError as error:
            log.info("%s: %s; mounting at the target instead", spec.name, error.message)
    return Opened(mounts.open_and_mount(spec.target, **options), -1)  # type: ignore[arg-type]


def checks_permissions(spec: MountSpec) -> bool:
    """Say whether the kernel is to enforce the bits that are shown; blobfuse2 by itself never lets it.

    Its top directory always belongs to root (a constant of its source), so that anybody else as owner of a writable
    mount could create nothing in it: there the kernel leaves the bits alone, as with blobfuse2 alone.
    """
    return spec.read_only or spec.ownership.uid == 0


def probe(opened: Opened, target: str, timeout_s: float) -> ProbeResult:
    """Ask the mount for its root and wait for the answer. Blocks: call it in a thread."""
    return probe_detached(opened.mount_fd, timeout_s) if opened.mount_fd >= 0 else probe_mounted(target, timeout_s)


def mount_id_of(opened: Opened, target: str) -> int:
    """Return the mount's id, attached or not. Raises MountFailedError if somebody has unmounted it already."""
    if opened.mount_fd < 0:
        return _shown(target).mount_id
    with open(f"/proc/self/fdinfo/{opened.mount_fd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def show(opened: Opened, target: str, how: How = "alone") -> None:
    """Put the mount at its target: `alone`, `beneath` what is there, or `on_top` of it. Raises MountFailedError.

    Our hold of it stays, so that it can be taken back.
    """
    if opened.mount_fd < 0:
        return
    place = mounts.canonical(target)
    if how == "alone" and (other := mounts.find_mount(place)) is not None and other.is_fuse:
        raise MountFailedError(f"cannot mount at '{target}': {other.source} was mounted there in the meantime")
    mounts.attach(opened.mount_fd, place, beneath=how == "beneath")


def supersede(opened: Opened, target: str, silent_id: int, how: How) -> None:
    """Show the new mount in the place of a silent one, whose open files go on. Raises MountFailedError.

    On top of it that waits for whoever looks a name up in its root, which holds the lock of that directory. After a
    moment they get an error, and so do the open files: nobody else could end that wait.
    """
    silent = mount_of(target, silent_id)
    timer = threading.Timer(ON_TOP_PATIENCE_S, _abort, [silent])
    if how == "on_top":
        timer.start()
    try:
        show(opened, target, how)
    finally:
        timer.cancel()
    if how == "beneath":
        uncover(target, [silent_id])


def _abort(silent: MountEntry | None) -> None:
    if silent is None:
        return
    log.warning("%s: ending the old connection: somebody waits in its root", silent.mount_point)
    with suppress(AmlmountError):
        mounts.abort(silent)


def _shown(target: str) -> MountEntry:
    entry = mounts.find_mount(target)
    if entry is None or not is_ours(entry):
        raise MountFailedError(f"cannot mount '{target}': it was unmounted again at once")
    return entry


def is_ours(entry: MountEntry) -> bool:
    """Say whether this is a mount of our making that a blobfuse2 serves."""
    return entry.source == SOURCE and entry.subtype == SUBTYPE


def take_back(spec: MountSpec, opened: Opened) -> None:
    """Undo `open_mount` and `show`."""
    if opened.mount_fd < 0:
        unmount_all(spec.target)
    else:
        with suppress(OSError):  # by descriptor: by name it would be what lies on top; EINVAL: attached nowhere
            umount2(f"/proc/self/fd/{opened.mount_fd}", MNT_DETACH)
    opened.close_mount()
    opened.close_fuse()


def unmount_all(target: str) -> None:
    """Let go of every mount of ours at a target: they can be stacked."""
    while (entry := mounts.find_mount(target)) is not None and is_ours(entry):
        try:
            mounts.unmount(target, lazy=True)
        except AmlmountError as error:
            log.error("%s", error.message)
            return


def uncover(target: str, mount_ids: Sequence[int]) -> None:
    """Let go of these mounts of ours at a target, as long as one of them is the topmost; open files go on."""
    while (entry := mounts.find_mount(target)) is not None and entry.mount_id in mount_ids and is_ours(entry):
        mounts.unmount(target, lazy=True)


def mount_of(target: str, mount_id: int) -> MountEntry | None:
    """Return the mount with this id at this target, None when it is gone: the kernel gives ids to others again."""
    table = mounts.read_mounts()
    place = mounts.canonical(target, table)
    found = (entry for entry in table if entry.mount_id == mount_id and entry.mount_point == place)
    return next((entry for entry in found if is_ours(entry)), None)


def holders_error(entry: MountEntry) -> AmlmountError | None:
    """Return the error that names who uses a mount, None if nobody is found."""
    with suppress(AmlmountError):
        if found := mounts.holders(entry):
            return mounts.busy_error(f"cannot unmount '{entry.mount_point}'", found)
    return None
