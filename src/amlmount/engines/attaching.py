"""Making and taking away the kernel's side of a Python engine's mount, from an event loop: nothing here blocks it.

With CAP_SYS_ADMIN a mount is made where no path leads to, and attached once it answers; else fusermount3 makes it in
its place.
"""

import asyncio
import logging
import os
import re
import select
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from amlmount.config.spec import MountSpec
from amlmount.engines.base import Running
from amlmount.engines.offload import in_thread
from amlmount.errors import AmlmountError, BusyError, MountFailedError, NotFoundError
from amlmount.fuse.negotiate import minor_cap
from amlmount.mounts import connection
from amlmount.mounts.detached import attach as attach_detached
from amlmount.mounts.detached import open_detached
from amlmount.mounts.front import open_front
from amlmount.mounts.fusemount import unmount
from amlmount.mounts.mountinfo import MountEntry, read_mounts
from amlmount.mounts.paths import canonical, find_mount
from amlmount.mounts.syscalls import MNT_DETACH, has_sys_admin, umount2
from amlmount.mounts.target import is_ours
from amlmount.worker.attach import SUBTYPE, attach
from amlmount.worker.estate import beats_of

UNDO_TIMEOUT_S = 5.0
BENEATH_SINCE, BENEATH_SINCE_MINOR = (6, 5), 38  # MOVE_MOUNT_BENEATH: Linux, and the FUSE protocol it came with
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Connection:
    """A mount in the making. `mount_fd` is -1 if it is at its place already. Both descriptors are ours to close."""

    spec: MountSpec
    fuse_fd: int
    mount_fd: int = -1

    @property
    def descriptors(self) -> list[int]:
        """What a worker needs to serve it and to see that it does: see `worker.orders`."""
        return [self.fuse_fd] if self.mount_fd < 0 else [self.fuse_fd, self.mount_fd]

    def close(self) -> None:
        """Close both; a mount that is attached nowhere is gone then."""
        for descriptor in (self.mount_fd, self.fuse_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self.mount_fd = self.fuse_fd = -1


async def open_connection(spec: MountSpec) -> Connection:
    """Make the mount of `spec`. Raises MountFailedError; when it is cancelled, nothing of it stays."""
    job = in_thread(lambda: _open(spec))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        job.add_done_callback(_undo)
        await asyncio.wait([job], timeout=UNDO_TIMEOUT_S)
        raise


def mount_id_of(made: Connection) -> int:
    """Return the mount's id. Raises MountFailedError if somebody has unmounted it already."""
    if made.mount_fd >= 0:
        return _mount_id(made.mount_fd)
    entry = find_mount(made.spec.target)
    if entry is None or entry.subtype != SUBTYPE:
        raise MountFailedError(f"cannot mount '{made.spec.target}': it was unmounted again at once")
    return entry.mount_id


async def raise_front(made: Connection, folder: str) -> None:
    """Put an overlay in front of a mount that answers and is attached nowhere yet; they are one from then on.

    Raises MountFailedError, and the mount is as it was.
    """
    spec, below_fd = made.spec, made.mount_fd
    job = in_thread(lambda: open_front(below_fd, folder, spec.name, spec.description))
    try:
        made.mount_fd = await asyncio.shield(job)
    except asyncio.CancelledError:
        await asyncio.wait([job], timeout=UNDO_TIMEOUT_S)
        if job.done() and job.exception() is None:
            os.close(job.result())
        raise
    os.close(below_fd)


async def put_in_place(made: Connection, *, beneath: bool) -> None:
    """Attach the mount at its target if it is not there yet, `beneath` what is. Raises MountFailedError."""
    target = made.spec.target
    if made.mount_fd < 0:
        return
    job = in_thread(lambda: attach_detached(made.mount_fd, target, beneath=beneath))
    try:
        await asyncio.shield(job)
    except asyncio.CancelledError:
        await asyncio.wait([job], timeout=UNDO_TIMEOUT_S)
        if job.done() and job.exception() is None:
            # By descriptor: by name it would be what lies on top.
            umount2(f"/proc/self/fd/{made.mount_fd}", MNT_DETACH)
        raise
    os.close(made.mount_fd)
    made.mount_fd = -1


def why_not_beneath() -> str | None:
    """Say why a mount cannot be slipped beneath another on this machine, None if it can."""
    if not has_sys_admin():
        return "only root can slip a mount beneath another"
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if release < BENEATH_SINCE or minor_cap() < BENEATH_SINCE_MINOR:
        return "slipping a mount beneath another needs Linux 6.5"
    return None


def mount_of(running: Running) -> MountEntry | None:
    """Return the mount of `running` as the kernel has it now, None when it is gone.

    The id alone would not do: the kernel gives it to the next mount as soon as this one is gone.
    """
    return mount_with_id(running.spec.target, running.mount_id)


def mount_with_id(target: str, mount_id: int) -> MountEntry | None:
    """Return our mount at `target` if it has that id."""
    mounts = read_mounts()
    place = canonical(target, mounts)
    found = (entry for entry in mounts if entry.mount_id == mount_id and entry.mount_point == place)
    return next((entry for entry in found if is_ours(entry)), None)


def is_front(target: str, mount_id: int) -> bool:
    """Say whether our mount with that id is an overlay in front of what is served."""
    entry = mount_with_id(target, mount_id)
    return entry is not None and entry.front_of is not None


async def detach(entry: MountEntry, *, lazy: bool, timeout_s: float) -> None:
    """Unmount `entry`, by abort and lazily if the kernel does not answer in time. Raises BusyError unless `lazy`."""
    top = find_mount(entry.mount_point)
    if top is not None and top.mount_id != entry.mount_id:
        hint = f"unmount that first: sudo umount {entry.mount_point}"
        raise BusyError(f"cannot unmount '{entry.mount_point}': {top.source} is mounted on top of it", hint=hint)
    try:
        async with asyncio.timeout(timeout_s or None):
            await in_thread(lambda: unmount(entry.mount_point, lazy=lazy))
    except NotFoundError:
        return
    except TimeoutError:
        await in_thread(lambda: connection.abort(entry))
        await in_thread(lambda: unmount(entry.mount_point, lazy=True))


async def take_away(spec: MountSpec) -> None:
    """Undo a mount that a worker made by itself: callers get errors."""
    await in_thread(lambda: _unmount_ours(spec))


def close_descriptors(running: Running) -> None:
    """Close what we hold of the mount, once."""
    for descriptor in (running.fuse_fd, running.estate_fd):
        if descriptor >= 0:
            os.close(descriptor)
    running.fuse_fd = running.estate_fd = -1


def is_connected(fuse_fd: int) -> bool:
    """Say whether the connection still is: once it has ended, its number in fusectl may be another's."""
    return fuse_fd >= 0 and not _events(fuse_fd, 0)


def has_unread(fuse_fd: int) -> bool:
    """Say whether requests wait to be read."""
    return fuse_fd >= 0 and bool(_events(fuse_fd, select.POLLIN) & select.POLLIN)


def requests_read(running: Running) -> int | None:
    """Return how many requests its processes have read, None of one that does not leave that to be seen."""
    return beats_of(running.estate_fd) if running.estate_fd >= 0 else None


def with_unread(fuse_fds: Iterable[int]) -> set[int]:
    """Return those of which requests wait to be read, by one system call for all; negative ones are no descriptors."""
    poll = select.poll()
    for fuse_fd in fuse_fds:
        if fuse_fd >= 0:
            poll.register(fuse_fd, select.POLLIN)
    return {fuse_fd for fuse_fd, events in poll.poll(0) if events & select.POLLIN}


def _events(fuse_fd: int, wanted: int) -> int:
    poll = select.poll()
    poll.register(fuse_fd, wanted)
    return next((events for _, events in poll.poll(0)), 0)


def _open(spec: MountSpec) -> Connection:
    if not has_sys_admin():
        return Connection(spec, attach(spec))
    try:
        fuse_fd, mount_fd = open_detached(
            source=spec.description,
            subtype=SUBTYPE,
            read_only=spec.read_only,
            allow_other=spec.allow_other,
            default_permissions=True,  # the kernel checks the bits the mount shows and never asks us (ACCESS)
            max_read_bytes=spec.policy.max_read_bytes,
            uid=os.geteuid(),
            gid=os.getegid(),
        )
    except MountFailedError as error:
        log.info("%s; mounting in place", error.message)  # a container's seccomp filter may refuse fsopen(2)
        return Connection(spec, attach(spec))
    return Connection(spec, fuse_fd, mount_fd)


def _undo(job: "asyncio.Future[Connection]") -> None:
    """Take back a mount whose making nobody waits for any more; one that hangs is taken back whenever it comes."""
    if job.cancelled() or job.exception() is not None:
        return
    made = job.result()
    if made.mount_fd < 0:
        _unmount_ours(made.spec)
    made.close()


def _unmount_ours(spec: MountSpec) -> None:
    entry = find_mount(spec.target)
    if entry is not None and entry.subtype == SUBTYPE and entry.source == spec.description:
        with suppress(AmlmountError):
            connection.abort(entry)
        with suppress(AmlmountError):
            unmount(spec.target, lazy=True)


def _mount_id(mount_fd: int) -> int:
    with open(f"/proc/self/fdinfo/{mount_fd}") as file:
        found = re.search(r"^mnt_id:\s*(\d+)$", file.read(), re.MULTILINE)
    assert found
    return int(found[1])
