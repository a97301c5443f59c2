"""The Python engine: one worker process a mount, on a `/dev/fuse` descriptor that this side mounts and keeps.

A tied engine is the exception: its worker mounts by itself, keeps the only descriptor, and goes with its caller.
"""

import asyncio
import logging
import os
import select
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

from amlmount.config.spec import MountSpec
from amlmount.engines.base import Running
from amlmount.engines.child import Child
from amlmount.engines.offload import in_thread
from amlmount.errors import AmlmountError, BusyError, MountFailedError, NotFoundError, WaitTimeoutError
from amlmount.mounts import connection
from amlmount.mounts.fusemount import unmount
from amlmount.mounts.mountinfo import MountEntry, read_mounts
from amlmount.mounts.paths import canonical, find_mount
from amlmount.mounts.target import TargetPlan
from amlmount.worker.attach import SUBTYPE, attach
from amlmount.worker.orders import EXIT, NEGOTIATED, READY, SERVE, SERVING, StartOrder

UNDO_TIMEOUT_S = 5.0
ABORTED_GRACE_S = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallerTie:
    """Makes an engine one for a single caller: `plan` is the target to be taken away with the mount."""

    plan: TargetPlan


class PythonEngine:
    """Starts and stops workers. Bound to the event loop it is used in; see `amlmount.engines.base.Engine`.

    `log_dir`: where workers log, one bounded file a mount (None: files without a name, for the last words only).
    """

    name = "python"

    def __init__(self, *, log_dir: str | None = None, tie: CallerTie | None = None, verbose: bool = False) -> None:
        self._log_dir = log_dir
        self._tie = tie
        self._verbose = verbose
        self._children: dict[int, Child] = {}

    async def start(self, spec: MountSpec, *, timeout_s: float) -> Running:
        """See `Engine.start`; a worker that does not answer in `timeout_s` seconds is a WaitTimeoutError."""
        async with AsyncExitStack() as undo:
            child = Child.start(spec.name, self._log_path(spec.name))
            undo.push_async_callback(child.kill)
            try:
                async with asyncio.timeout(timeout_s):
                    running = await self._bring_up(spec, child, undo)
            except TimeoutError:
                raise _too_slow(spec, timeout_s) from None
            undo.pop_all()
        self._children[child.process.pid] = child
        child.exited.add_done_callback(lambda _: self._children.pop(child.process.pid, None))
        return running

    async def stop(self, running: Running, *, lazy: bool, timeout_s: float) -> None:
        """See `Engine.stop`. What is still open `timeout_s` seconds after a lazy stop gets errors from then on.

        A tied worker is asked to end at once instead, whatever is open.
        """
        child = self._children.get(running.pid)
        entry = mount_of(running)
        if child is not None and self._tie and lazy:
            with suppress(AmlmountError):
                await child.tell({"op": EXIT})
        elif entry is not None:
            await detach(entry, lazy=lazy or child is None, timeout_s=timeout_s)
        if child is not None and not await child.ended(timeout_s):
            await _end(child, running, entry)
        if (left := mount_of(running)) is not None:
            await detach(left, lazy=True, timeout_s=timeout_s)
        close_descriptor(running)

    async def ask(self, running: Running, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """See `Askable.ask`."""
        child = self._children.get(running.pid)
        if child is None:
            raise AmlmountError(f"cannot ask '{running.spec.name}': its worker is gone")
        return await child.ask(what, how, timeout_s=timeout_s)

    def leave_all(self) -> None:
        """Let go of all workers without ending them: they serve on when this process ends."""
        for child in list(self._children.values()):
            child.leave()
        self._children.clear()

    def _log_path(self, name: str) -> str | None:
        return os.path.join(self._log_dir, f"{name}.log") if self._log_dir else None

    async def _bring_up(self, spec: MountSpec, child: Child, undo: AsyncExitStack) -> Running:
        await self._order_start(spec, child)
        await child.expect(READY)
        descriptor = -1
        if self._tie:
            undo.push_async_callback(_undo_mount, spec)
            await child.tell({"op": SERVE})
        else:
            descriptor = await _mount(spec, undo)
            await child.tell({"op": SERVE}, [descriptor])
        await child.expect(NEGOTIATED)
        await child.expect(SERVING)
        entry = find_mount(spec.target)
        if entry is None or entry.subtype != SUBTYPE:
            raise MountFailedError(f"cannot mount '{spec.target}': it was unmounted again at once")
        process = child.process
        return Running(spec, self.name, process.pid, process.start_time, descriptor, entry.mount_id, child.exited)

    async def _order_start(self, spec: MountSpec, child: Child) -> None:
        if self._tie is None:
            await child.tell(StartOrder(spec, verbose=self._verbose).to_json())
            return
        pidfd = os.pidfd_open(os.getpid())
        try:
            await child.tell(StartOrder(spec, tied=self._tie.plan, verbose=self._verbose).to_json(), [pidfd])
        finally:
            os.close(pidfd)


def mount_of(running: Running) -> MountEntry | None:
    """Return the mount of `running` as the kernel has it now, None when it is gone.

    The id alone would not do: the kernel gives it to the next mount as soon as this one is gone.
    """
    mounts = read_mounts()
    place = canonical(running.spec.target, mounts)
    found = (entry for entry in mounts if entry.mount_id == running.mount_id and entry.mount_point == place)
    return next((entry for entry in found if entry.subtype == SUBTYPE), None)


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


def close_descriptor(running: Running) -> None:
    """Close our copy of the mount's descriptor, once."""
    if running.fuse_fd >= 0:
        os.close(running.fuse_fd)
        running.fuse_fd = -1


async def _end(child: Child, running: Running, entry: MountEntry | None) -> None:
    """End a worker that does not end by itself: its callers get errors, then it is killed."""
    if entry is not None and _is_connected(running.fuse_fd):
        with suppress(AmlmountError):
            await in_thread(lambda: connection.abort(entry))
        if await child.ended(ABORTED_GRACE_S):
            return
    if not await child.kill():
        log.error("worker %d of '%s' does not end on SIGKILL: it waits in the kernel", running.pid, running.spec.name)


def _is_connected(fuse_fd: int) -> bool:
    """Say whether the connection still is: once it has ended, its number in fusectl may be another's."""
    if fuse_fd < 0:
        return False
    poll = select.poll()
    poll.register(fuse_fd, 0)
    return not poll.poll(0)


async def _mount(spec: MountSpec, undo: AsyncExitStack) -> int:
    job = in_thread(lambda: attach(spec))
    undo.push_async_callback(_undo_attach, spec, job)
    return await asyncio.shield(job)


async def _undo_attach(spec: MountSpec, job: "asyncio.Future[int]") -> None:
    """Take back a mount that may be in the making still; one that hangs is taken back whenever it comes."""

    def close(done: "asyncio.Future[int]") -> None:
        if done.cancelled() or done.exception() is not None:
            return
        _unmount_ours(spec)
        os.close(done.result())

    await asyncio.wait([job], timeout=UNDO_TIMEOUT_S)
    job.add_done_callback(close)
    await asyncio.sleep(0)


async def _undo_mount(spec: MountSpec) -> None:
    await in_thread(lambda: _unmount_ours(spec))


def _unmount_ours(spec: MountSpec) -> None:
    entry = find_mount(spec.target)
    if entry is not None and entry.subtype == SUBTYPE and entry.source == spec.description:
        with suppress(AmlmountError):
            connection.abort(entry)
        with suppress(AmlmountError):
            unmount(spec.target, lazy=True)


def _too_slow(spec: MountSpec, timeout_s: float) -> WaitTimeoutError:
    return WaitTimeoutError(
        f"cannot mount '{spec.name}' within {timeout_s:g} s: its store or the kernel did not answer",
        hint="see that the store can be reached, or give it more time",
    )
