"""The Python engine: one worker process a mount, on a `/dev/fuse` descriptor that this side mounts and keeps.

A tied engine is the exception: its worker mounts by itself, keeps the only descriptor, and goes with its caller.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

from amlmount.config.spec import MountSpec
from amlmount.descriptors.base import close_all
from amlmount.descriptors.rescue import rescue
from amlmount.engines.attaching import (
    Connection,
    close_descriptors,
    detach,
    has_unread,
    is_connected,
    is_front,
    mount_id_of,
    mount_of,
    open_connection,
    put_in_place,
    raise_front,
    take_away,
    why_not_beneath,
)
from amlmount.engines.base import Claim, Running
from amlmount.engines.child import Child
from amlmount.engines.forkserver import ForkServer
from amlmount.engines.fronting import why_no_front
from amlmount.engines.offload import in_thread
from amlmount.errors import AmlmountError, MountFailedError, WaitTimeoutError
from amlmount.mounts import connection
from amlmount.mounts.fusemount import DEV_FUSE
from amlmount.mounts.mountinfo import MountEntry
from amlmount.mounts.paths import find_mount
from amlmount.mounts.target import TargetPlan
from amlmount.run import is_same_process
from amlmount.worker.attach import SUBTYPE
from amlmount.worker.channel import pair
from amlmount.worker.estate import NAME, beats_of, make_estate, owner_of
from amlmount.worker.orders import EXIT, NEGOTIATED, READY, SERVE, SERVING, StartOrder

ABORTED_GRACE_S = 1.0
LAST_WORDS_S = 0.5  # for a hung worker to write down where it hangs
ANSWERS_WITHIN_S, ENDS_WITHIN_S = 0.1, 2.0
WRITER_ENDS_WITHIN_S = 6.0  # it waits some seconds for what it is sending; nobody else may write before that
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallerTie:
    """Makes an engine one for a single caller: `plan` is the target to be taken away with the mount."""

    plan: TargetPlan


class PythonEngine:
    """Starts and stops workers. Bound to the event loop it is used in; see `amlmount.engines.base.Engine`.

    `log_dir`: where workers log, one bounded file a mount (None: files without a name, for the last words only).
    `forks` makes them quickly; without it each loads its code anew. `front_dir`: where overlays in front are made.
    """

    name = "python"

    def __init__(
        self,
        *,
        log_dir: str | None = None,
        tie: CallerTie | None = None,
        verbose: bool = False,
        forks: ForkServer | None = None,
        front_dir: str | None = None,
    ) -> None:
        self._log_dir = log_dir
        self._tie = tie
        self._verbose = verbose
        self._forks = forks
        self._front_dir = front_dir
        self._children: dict[int, Child] = {}
        self._unread_at: dict[int, int] = {}
        self.secure: Callable[[Running], Awaitable[None]] = _secure_nothing
        self.on_news: Callable[[dict[str, Any]], None] = lambda body: None

    async def start(self, spec: MountSpec, *, timeout_s: float) -> Running:
        """See `Engine.start`; a worker that does not answer in `timeout_s` seconds is a WaitTimeoutError."""
        return await self._start(spec, beneath=False, timeout_s=timeout_s)

    def why_not_beneath(self) -> str | None:
        """See Replaces."""
        return why_not_beneath()

    async def start_beneath(self, spec: MountSpec, *, timeout_s: float) -> Running:
        """See Replaces."""
        return await self._start(spec, beneath=True, timeout_s=timeout_s)

    async def _start(self, spec: MountSpec, *, beneath: bool, timeout_s: float) -> Running:
        async with AsyncExitStack() as undo:
            child = await self._start_child(spec, undo)
            try:
                async with asyncio.timeout(timeout_s):
                    running = await self._bring_up(spec, child, undo, beneath=beneath)
            except TimeoutError:
                raise _too_slow(spec, timeout_s) from None
            undo.pop_all()
        self._keep(child)
        return running

    async def stop(self, running: Running, *, lazy: bool, timeout_s: float) -> None:
        """See `Engine.stop`. After a lazy stop a worker that answers goes on with what is open, and ends with it.

        A tied worker is asked to end at once instead, whatever is open.
        """
        child = self._children.get(running.pid)
        entry = mount_of(running)
        if child is not None and self._tie and lazy:
            with suppress(AmlmountError):
                await child.tell({"op": EXIT})
        elif entry is not None:
            await detach(entry, lazy=lazy or child is None, timeout_s=timeout_s)
        if child is not None and not await self._ended_or_let_go(child, running, lazy=lazy, timeout_s=timeout_s):
            await _end(child, running, entry)
        if (left := mount_of(running)) is not None:
            await detach(left, lazy=True, timeout_s=timeout_s)
        close_descriptors(running)

    async def ask(self, running: Running, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """See `Askable.ask`."""
        child = self._children.get(running.pid)
        if child is None:
            raise AmlmountError(f"cannot ask '{running.spec.name}': its worker is gone")
        return await child.ask(what, how, timeout_s=timeout_s)

    async def abandon(self, running: Running, *, timeout_s: float) -> None:
        """See Replaces. A worker whose mount was taken away by somebody else goes on with what is open."""
        child, entry = self._children.get(running.pid), mount_of(running)
        if child is not None and entry is None:
            child.let_go()
        elif child is not None:
            await _end(child, running, entry)
        elif entry is not None and is_connected(running.fuse_fd):
            with suppress(AmlmountError):
                await in_thread(lambda: connection.abort(entry))
        close_descriptors(running)

    # --- see TakesOver -----------------------------------------------------------------------------------------------

    def can_take_over(self, running: Running) -> bool:
        """See TakesOver."""
        return running.negotiated is not None and running.estate_fd >= 0 and is_connected(running.fuse_fd)

    async def take_over(self, running: Running, *, timeout_s: float) -> Running:
        """See TakesOver. A hung worker is made to log where it hangs before it is killed."""
        await self._put_to_rest(running)
        async with AsyncExitStack() as undo:
            child = await self._start_child(running.spec, undo)
            try:
                async with asyncio.timeout(timeout_s):
                    await child.tell(StartOrder(running.spec, running.negotiated, verbose=self._verbose).to_json())
                    await child.expect(READY)
                    process = child.process
                    successor = replace(
                        running, pid=process.pid, pid_start_time=process.start_time, exited=child.exited
                    )
                    self._children[successor.pid] = child
                    undo.callback(self._children.pop, successor.pid, None)
                    await self.secure(successor)  # before it serves: two must never serve one mount
                    await child.tell({"op": SERVE}, [running.fuse_fd, running.estate_fd])
                    await child.expect(SERVING)
            except TimeoutError:
                raise _too_slow(running.spec, timeout_s) from None
            undo.pop_all()
        self._keep(child)
        running.fuse_fd = running.estate_fd = -1
        return successor

    def descriptors(self, running: Running) -> dict[str, int]:
        """See TakesOver."""
        child = self._children.get(running.pid)
        own = {"fuse": running.fuse_fd, "estate": running.estate_fd}
        return own | ({"channel": child.channel_fd} if child is not None else {})

    def adopt(self, claim: Claim) -> Running:
        """See TakesOver."""
        descriptors = self._complete(claim)
        fuse_fd, estate_fd, channel_fd = (descriptors[kind] for kind in ("fuse", "estate", "channel"))
        child = Child.adopt(claim.pid, claim.pid_start_time, channel_fd, self._log_path(claim.spec.name))
        if not child.exited.done():
            self._keep(child)
            if owner_of(estate_fd) != claim.pid or "channel" not in claim.descriptors:
                # It was about to serve when its daemon died, and never will; or nobody can talk to it any more.
                child.process.send_signal(signal.SIGKILL)
        return Running(
            claim.spec,
            self.name,
            claim.pid,
            claim.pid_start_time,
            fuse_fd,
            claim.mount_id,
            child.exited,
            estate_fd=estate_fd,
            negotiated=claim.negotiated,
            has_front=is_front(claim.spec.target, claim.mount_id),
        )

    def _complete(self, claim: Claim) -> dict[str, int]:
        """Return all descriptors; what was not kept comes from the worker itself, or this raises AmlmountError."""
        found = dict(claim.descriptors)
        if claim.negotiated is not None and not {"fuse", "estate"} <= found.keys():
            close_all(found.values())
            found = _from_worker(claim)
        if claim.negotiated is None or not {"fuse", "estate"} <= found.keys():
            close_all(found.values())
            raise AmlmountError(f"cannot adopt '{claim.spec.name}': its descriptors were not kept")
        if "channel" not in found:
            ours, theirs = pair()
            theirs.close()
            found["channel"] = ours.detach()
        return found

    def is_hung(self, running: Running) -> bool:
        """See TakesOver: something is unread, and the worker has read nothing since the last time it was so."""
        before = self._unread_at.pop(running.pid, None)
        if not has_unread(running.fuse_fd):
            return False
        self._unread_at[running.pid] = now = beats_of(running.estate_fd)
        return before == now

    def leave_all(self) -> None:
        """Let go of all workers without ending them: they serve on when this process ends."""
        for child in list(self._children.values()):
            child.leave()
        self._children.clear()

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _start_child(self, spec: MountSpec, undo: AsyncExitStack) -> Child:
        path = self._log_path(spec.name)
        if self._forks is None:
            child = Child.start(spec.name, path)
        else:
            child = await Child.fork(self._forks, spec.name, path, [str(s.store.get("type")) for s in spec.sources])
        undo.push_async_callback(child.kill)
        return child

    def _log_path(self, name: str) -> str | None:
        return os.path.join(self._log_dir, f"{name.replace('/', ':')}.log") if self._log_dir else None

    def _keep(self, child: Child) -> None:
        child.listen(lambda body: self.on_news(body))
        pid = child.process.pid
        self._children[pid] = child

        def forget(_: object) -> None:
            self._children.pop(pid, None)
            self._unread_at.pop(pid, None)

        child.exited.add_done_callback(forget)

    async def _bring_up(self, spec: MountSpec, child: Child, undo: AsyncExitStack, *, beneath: bool) -> Running:
        await self._order_start(spec, child)
        await child.expect(READY)
        if self._tie:
            return await self._bring_up_tied(spec, child, undo)
        made = await _open(spec, undo)
        estate_fd = make_estate()
        undo.callback(os.close, estate_fd)
        await child.tell({"op": SERVE}, [made.fuse_fd, estate_fd, *made.descriptors[1:]])
        negotiated = (await child.expect(NEGOTIATED)).body["negotiated"]
        await child.expect(SERVING)
        has_front = await self._raise_front(made)
        running = replace(
            self._running(spec, child, mount_id_of(made)),
            has_front=has_front,
            fuse_fd=made.fuse_fd,
            estate_fd=estate_fd,
            negotiated=negotiated,
        )
        self._children[running.pid] = child
        undo.callback(self._children.pop, running.pid, None)
        await self.secure(running)
        await put_in_place(made, beneath=beneath)
        return running

    async def _raise_front(self, made: Connection) -> bool:
        spec, why = made.spec, why_no_front(made.spec, self._front_dir)
        if made.mount_fd < 0:
            why = why or "this machine cannot make mounts that are attached nowhere"
        if why is None and self._front_dir is not None:
            try:
                await raise_front(made, self._front_dir)
                return True
            except MountFailedError as error:
                why = error.message
        if spec.front == "overlay":
            raise MountFailedError(f"cannot mount '{spec.name}' with a front: {why}", hint="write front: auto")
        log.debug("%s: no front: %s", spec.name, why)
        return False

    async def _bring_up_tied(self, spec: MountSpec, child: Child, undo: AsyncExitStack) -> Running:
        undo.push_async_callback(take_away, spec)
        await child.tell({"op": SERVE})
        await child.expect(NEGOTIATED)
        await child.expect(SERVING)
        entry = find_mount(spec.target)
        if entry is None or entry.subtype != SUBTYPE:
            raise MountFailedError(f"cannot mount '{spec.target}': it was unmounted again at once")
        return self._running(spec, child, entry.mount_id)

    def _running(self, spec: MountSpec, child: Child, mount_id: int) -> Running:
        process = child.process
        return Running(spec, self.name, process.pid, process.start_time, -1, mount_id, child.exited)

    async def _order_start(self, spec: MountSpec, child: Child) -> None:
        if self._tie is None:
            await child.tell(StartOrder(spec, verbose=self._verbose).to_json())
            return
        pidfd = os.pidfd_open(os.getpid())
        try:
            await child.tell(StartOrder(spec, tied=self._tie.plan, verbose=self._verbose).to_json(), [pidfd])
        finally:
            os.close(pidfd)

    async def _put_to_rest(self, running: Running) -> None:
        child = self._children.get(running.pid)
        if child is None or child.exited.done():
            return
        child.process.send_signal(signal.SIGABRT)
        if not await child.ended(LAST_WORDS_S) and not await child.kill():
            raise AmlmountError(f"cannot end worker {running.pid} of '{running.spec.name}': it waits in the kernel")

    async def _ended_or_let_go(self, child: Child, running: Running, *, lazy: bool, timeout_s: float) -> bool:
        """Wait for the end of an unmounted worker. One that reads its requests need not end: files are open after a
        lazy unmount, or another mount namespace (a container's) has a copy of the mount."""
        if self._tie:
            return await child.ended(timeout_s)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        ends_within_s = ENDS_WITHIN_S if running.spec.read_only else WRITER_ENDS_WITHIN_S
        if await child.ended(min(timeout_s, ANSWERS_WITHIN_S if lazy else ends_within_s)):
            return True
        while has_unread(running.fuse_fd):
            if loop.time() > deadline:
                return False
            if await child.ended(ANSWERS_WITHIN_S):
                return True
        return await child.let_go_alive()  # it may hang with a request it has read


def _from_worker(claim: Claim) -> dict[str, int]:
    """Take the descriptors back from the worker that has them."""
    try:
        pidfd = os.pidfd_open(claim.pid)
    except ProcessLookupError:
        return {}
    try:
        if not is_same_process(claim.pid, claim.pid_start_time):
            return {}
        return rescue(pidfd, claim.pid, {DEV_FUSE: "fuse", f"/memfd:{NAME} (deleted)": "estate"})
    finally:
        os.close(pidfd)


async def _secure_nothing(running: Running) -> None:
    """Nobody comes after us."""


async def _open(spec: MountSpec, undo: AsyncExitStack) -> Connection:
    made = await open_connection(spec)
    undo.callback(made.close)
    if made.mount_fd < 0:
        undo.push_async_callback(take_away, spec)
    return made


async def _end(child: Child, running: Running, entry: MountEntry | None) -> None:
    """End a worker that does not end by itself: its callers get errors, then it is killed."""
    if entry is not None and is_connected(running.fuse_fd):
        with suppress(AmlmountError):
            await in_thread(lambda: connection.abort(entry))
        if await child.ended(ABORTED_GRACE_S):
            return
    if not await child.kill():
        log.error("worker %d of '%s' does not end on SIGKILL: it waits in the kernel", running.pid, running.spec.name)


def _too_slow(spec: MountSpec, timeout_s: float) -> WaitTimeoutError:
    return WaitTimeoutError(
        f"cannot mount '{spec.name}' within {timeout_s:g} s: its store or the kernel did not answer",
        hint="see that the store can be reached, or give it more time",
    )
