"""The blobfuse2 engine: starts it on a mount of ours, stops it by unmounting, and sees that nothing it held is lost.

Bound to the event loop it is used in; see `amlmount.engines.base.Engine`.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

from amlmount import mounts
from amlmount.config.spec import MountSpec, SourceSpec
from amlmount.engines.attaching import has_unread, is_connected, why_not_beneath
from amlmount.engines.base import Claim, ExitReason, Running
from amlmount.engines.blobfuse2 import adopting, caches, mounting, salvaging
from amlmount.engines.blobfuse2.binary import Binary
from amlmount.engines.blobfuse2.configuring import Prepared, prepare, render
from amlmount.engines.blobfuse2.environment import scrubbed
from amlmount.engines.blobfuse2.failures import start_failed
from amlmount.engines.blobfuse2.mounting import How, Opened
from amlmount.engines.blobfuse2.places import Places
from amlmount.engines.blobfuse2.preflight import preflight
from amlmount.engines.blobfuse2.rotation import Watched, follow_secrets
from amlmount.engines.blobfuse2.runs import Run, is_stopped
from amlmount.engines.blobfuse2.served import Served
from amlmount.engines.blobfuse2.succession import Heir, take_stock
from amlmount.engines.blobfuse2.undoing import made, settled
from amlmount.engines.offload import in_thread
from amlmount.errors import AmlmountError, ConfigError, MountFailedError, NotFoundError, WaitTimeoutError
from amlmount.mounts import MountEntry

LAZY_PATIENCE_S = 1.0
HEIR_PATIENCE_S = 3.0
LAST_WORDS_S = 0.5  # for a hung one to write down where it hangs
log = logging.getLogger(__name__)


class Blobfuse2Engine:
    """Starts and stops blobfuse2 processes; one on each mount."""

    name = "blobfuse2"

    def __init__(self, binary: Binary, places: Places) -> None:
        self._binary = binary
        self._places = places
        self._runs: dict[int, Run] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self.secure: Callable[[Running], Awaitable[None]] = _secure_nothing

    async def start(self, spec: MountSpec, *, timeout_s: float) -> Running:
        """See `Engine.start`; what an earlier run left is set aside first, and salvaged once the mount is there."""
        return await self._start(spec, "alone", timeout_s)

    def why_not_beneath(self) -> str | None:
        """See Replaces."""
        return why_not_beneath()

    async def start_beneath(self, spec: MountSpec, *, timeout_s: float) -> Running:
        """See Replaces."""
        return await self._start(spec, "beneath", timeout_s)

    async def _start(self, spec: MountSpec, how: How, timeout_s: float) -> Running:
        async with AsyncExitStack() as undo:
            try:
                async with asyncio.timeout(timeout_s):
                    running = await self._bring_up(spec, how, undo)
            except TimeoutError:
                raise _too_slow(spec, timeout_s) from None
            undo.pop_all()
        return running

    async def stop(self, running: Running, *, lazy: bool, timeout_s: float) -> None:
        """See `Engine.stop`. One that still works after a lazy stop is never ended: it goes with its last user."""
        run, entry = self._runs.get(running.pid), mounting.mount_of(running.spec.target, running.mount_id)
        dead = run is None or run.served.exited.done()
        if run is not None and not dead:
            run.kept = await in_thread(lambda: caches.keep_unsent(run.folder)) or run.kept
        await self._unmount(running, lazy=lazy or dead, timeout_s=timeout_s)
        patience_s = min(timeout_s, LAZY_PATIENCE_S) if lazy else timeout_s
        if run is not None and not await run.served.ended(patience_s) and not lazy:
            log.warning("%s: unmounted; blobfuse2 %d is still at work", running.spec.name, running.pid)
        if run is not None and (lazy or not dead):
            run.keep_connection(running, entry)
        _close_descriptor(running)
        if run is not None:
            await in_thread(lambda: mounting.uncover(running.spec.target, run.folder.instance.covers))
            await self._see_off(run, timeout_s)

    async def abandon(self, running: Running, *, timeout_s: float) -> None:
        """See Replaces. It is killed first: one that lives would wipe its cache when its connection is ended."""
        run, entry = self._runs.get(running.pid), mounting.mount_of(running.spec.target, running.mount_id)
        if run is not None and entry is None:  # somebody has unmounted it: it stores what it has, and ends
            run.keep_connection(running, None)
        elif run is not None:
            await run.served.kill()
        if entry is not None and is_connected(running.fuse_fd) and (run is None or run.served.exited.done()):
            with suppress(AmlmountError):
                await in_thread(lambda: mounts.abort(entry))
        _close_descriptor(running)
        if run is not None:
            await self._see_off(run, timeout_s)

    # --- see TakesOver -----------------------------------------------------------------------------------------------

    def can_take_over(self, running: Running) -> bool:
        """See TakesOver."""
        return running.pid in self._runs and mounts.has_sys_admin() and is_connected(running.fuse_fd)

    async def take_over(self, running: Running, *, timeout_s: float) -> Running:
        """See TakesOver. A new mount takes the place of the silent one, beneath it or (before Linux 6.5) on top.

        What is open in the old one goes on by an heir; the new one's id is another.
        """
        run, spec = self._runs.get(running.pid), running.spec
        entry = mounting.mount_of(spec.target, running.mount_id)
        if run is None or entry is None or not self.can_take_over(running):
            raise AmlmountError(f"cannot go on with '{spec.name}': its mount or its cache is gone")
        await self._put_to_rest(run, spec)
        run.plan = await in_thread(lambda: take_stock(entry, run.plan))
        run.folder = await in_thread(run.folder.set_aside)
        async with AsyncExitStack() as undo:
            try:
                async with asyncio.timeout(timeout_s):
                    how: How = "beneath" if why_not_beneath() is None else "on_top"
                    successor = await self._bring_up(spec, how, undo, run, running)
            except TimeoutError:
                raise _too_slow(spec, timeout_s) from None
            undo.pop_all()
        self._runs.pop(running.pid, None)
        run.end_watch()
        run.prepared.remove_runtime()
        _close_descriptor(running)
        if run.heir is not None:
            await run.heir.serving(HEIR_PATIENCE_S)
        return successor

    async def _put_to_rest(self, run: Run, spec: MountSpec) -> None:
        if run.served.exited.done():
            return
        run.served.process.send_signal(signal.SIGABRT)
        if not await run.served.ended(LAST_WORDS_S):
            await run.served.kill()
        if not run.served.exited.done():
            pid = run.served.process.pid
            raise AmlmountError(f"cannot end blobfuse2 {pid} of '{spec.name}': it waits in the kernel")

    def descriptors(self, running: Running) -> dict[str, int]:
        """See TakesOver."""
        return {"fuse": running.fuse_fd}

    def adopt(self, claim: Claim) -> Running:
        """See TakesOver."""
        spec, pid = claim.spec, claim.pid
        fuse_fd = adopting.fuse_descriptor(claim)
        try:
            prepared = adopting.find_prepared(claim, self._places)
        except AmlmountError:
            os.close(fuse_fd)
            raise
        output, own_log = self._places.output_path(spec.name), self._places.log_path(spec.name)
        served = Served.adopt(pid, claim.pid_start_time, output, own_log)
        running = Running(spec, self.name, pid, claim.pid_start_time, fuse_fd, claim.mount_id, served.exited)
        run = self._runs[pid] = Run(served, prepared, prepared.folder)
        self._begin(self._salvage_leftovers(spec, prepared.folder.path))
        if not served.exited.done():
            run.watch = self._begin(self._follow_secrets(running, _only_source(spec), prepared))
        return running

    def is_hung(self, running: Running) -> bool:
        """See TakesOver: requests are unread and it is stopped. One that only waits for its store reads none either."""
        return has_unread(running.fuse_fd) and is_stopped(running.pid)

    # --- start ---------------------------------------------------------------------------------------------------

    async def _bring_up(
        self,
        spec: MountSpec,
        how: How,
        undo: AsyncExitStack,
        dead: Run | None = None,
        silent: Running | None = None,
    ) -> Running:
        """Mount and serve `spec`; with `dead`, in the place of its mount `silent`."""
        source = _only_source(spec)
        heir = None
        if dead is not None and silent is not None:
            heir = self._start_heir(dead, silent.fuse_fd)
            undo.push_async_callback(heir.kill)
        await in_thread(lambda: preflight(source))
        waiting = await in_thread(lambda: caches.put_leftovers_aside(self._places.all_bases(spec)))
        await in_thread(lambda: self._places.tidy(spec.name))
        prepared = await made(lambda: prepare(spec, source, self._places), _discard, undo)
        opened = await made(lambda: mounting.open_mount(spec), lambda opened: mounting.take_back(spec, opened), undo)
        try:
            served = self._spawn(spec, prepared, opened)
        finally:
            prepared.let_go()
        undo.push_async_callback(served.kill)
        pid, start_time = served.process.pid, served.process.start_time
        folder = prepared.folder.note(pid=pid, pid_start_time=start_time)
        await self._wait_for_answer(spec, served, opened)
        mount_id = await in_thread(lambda: mounting.mount_id_of(opened, spec.target))
        run = self._runs[pid] = Run(served, prepared, folder)
        undo.callback(self._runs.pop, pid, None)
        running = Running(spec, self.name, pid, start_time, opened.fuse_fd, mount_id, served.exited)
        await self.secure(running)
        if dead is None or silent is None or heir is None:
            await settled(lambda: mounting.show(opened, spec.target, how))
        else:
            await heir.ready()
            run.folder = await in_thread(lambda: folder.note(covers=_covered(dead, silent, how)))
            await settled(lambda: mounting.supersede(opened, spec.target, silent.mount_id, how))
            dead.heir = heir
            self._begin(self._see_heir_off(heir))
            waiting = [folder for folder in waiting if folder.path != dead.folder.path]
        opened.close_mount()
        self._begin(salvaging.salvage_now(waiting))
        run.watch = self._begin(self._follow_secrets(running, source, prepared))
        return running

    async def _follow_secrets(self, running: Running, source: SourceSpec, prepared: Prepared) -> None:
        spec = running.spec
        watched = Watched(
            spec.name, spec.target, source, prepared, partial(render, spec, source, self._places, prepared)
        )
        await follow_secrets(watched, lambda why: running.on_stale(why))

    async def _salvage_leftovers(self, spec: MountSpec, but: str) -> None:
        waiting = await in_thread(lambda: caches.put_leftovers_aside(self._places.all_bases(spec), but))
        await salvaging.salvage_now(waiting)

    def _spawn(self, spec: MountSpec, prepared: Prepared, opened: Opened) -> Served:
        argv = [
            self._binary.path,
            "mount",
            f"/dev/fd/{opened.fuse_fd}",
            f"--config-file={prepared.config_path}",
            "--foreground",
            "--disable-version-check=true",
            "-o",
            "nonempty",  # it takes the directory /dev/fd/N for its target and finds it full
        ]
        env = scrubbed(prepared.mode, prepared.work_dir)
        output, own_log = self._places.output_path(spec.name), self._places.log_path(spec.name)
        passed = [fd for fd in (opened.fuse_fd, prepared.lock_fd) if fd >= 0]
        return Served.start(argv, env, passed, output, own_log)

    async def _wait_for_answer(self, spec: MountSpec, served: Served, opened: Opened) -> None:
        patience_s = 3600.0  # whoever called `start` has set the deadline
        answer = in_thread(lambda: mounting.probe(opened, spec.target, patience_s))
        either: set[asyncio.Future[Any]] = {answer, served.exited}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if served.exited.done():
            raise start_failed(spec.target, served.exited.result())
        if not answer.result().ok:
            raise MountFailedError(
                f"cannot mount '{spec.target}': blobfuse2 does not serve it: {answer.result().text}",
                details={"log": served.last_words()},
            )

    # --- stop ----------------------------------------------------------------------------------------------------

    async def _unmount(self, running: Running, *, lazy: bool, timeout_s: float) -> None:
        entry = mounting.mount_of(running.spec.target, running.mount_id)
        if entry is None:
            return
        top = mounts.find_mount(entry.mount_point)
        if top is not None and top.mount_id != entry.mount_id:
            raise MountFailedError(
                f"cannot unmount '{entry.mount_point}': {top.source} is mounted on top of it",
                hint=f"unmount that first: sudo umount {entry.mount_point}",
            )
        try:
            async with asyncio.timeout(timeout_s or None):
                await in_thread(lambda: mounts.unmount(entry.mount_point, lazy=lazy))
        except NotFoundError:
            return
        except TimeoutError:
            raise WaitTimeoutError(
                f"cannot unmount '{entry.mount_point}' within {timeout_s:g} s: blobfuse2 is busy with its store",
                hint="wait, or let go of it with --lazy: it then ends by itself",
            ) from None

    async def _see_off(self, run: Run, timeout_s: float) -> None:
        """Put the cache away when the process has ended, whenever that is, and salvage what may be unsent."""
        self._runs.pop(run.served.process.pid, None)
        run.end_watch()
        farewell = self._begin(self._put_away(run))
        if run.served.exited.done():
            await asyncio.wait({farewell}, timeout=timeout_s)

    async def _put_away(self, run: Run) -> None:
        await run.served.exited
        run.prepared.remove_runtime()
        if run.entry is not None and mounts.has_sys_admin() and is_connected(run.fuse_fd):
            await self._hand_over(run, run.entry)
            return
        run.close_connection()
        left = await in_thread(lambda: caches.put_away(run.folder))
        folders = [folder for folder in (left, run.kept) if folder is not None]
        if folders and not await salvaging.salvage_once(folders):
            self._begin(salvaging.salvage_later(folders))

    async def _hand_over(self, run: Run, entry: MountEntry) -> None:
        """Have an heir serve what is open in a mount that was detached when its blobfuse2 died."""
        try:
            run.plan = await in_thread(lambda: take_stock(entry, run.plan, detached=True))
            run.folder = await in_thread(run.folder.set_aside)
            heir = self._start_heir(run, run.fuse_fd)
        finally:
            run.close_connection()
        await self._see_heir_off(heir)
        if run.kept is not None and not await salvaging.salvage_once([run.kept]):
            self._begin(salvaging.salvage_later([run.kept]))

    def _start_heir(self, run: Run, fuse_fd: int) -> Heir:
        assert run.plan is not None
        log_path = self._places.afterlife_log_path(run.folder.instance.mount)
        return Heir.start(run.folder, run.plan, fuse_fd, log_path)

    async def _see_heir_off(self, heir: Heir) -> None:
        """Salvage what it could not send, when it has ended."""
        await heir.ended
        if not await salvaging.salvage_once([heir.folder]):
            self._begin(salvaging.salvage_later([heir.folder]))

    def _begin(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        chore = asyncio.create_task(work)
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)
        return chore


def _only_source(spec: MountSpec) -> SourceSpec:
    if len(spec.sources) == 1:
        return spec.sources[0]
    raise ConfigError(
        f"cannot mount '{spec.name}' with blobfuse2: it has {len(spec.sources)} sources",
        hint="write engine: auto or engine: python, or a mount for each",
    )


async def _secure_nothing(running: Running) -> None:
    """Nobody comes after us."""


def _covered(dead: Run, silent: Running, how: How) -> tuple[int, ...]:
    """Return the ids of the mounts that lie below a new one."""
    return (*dead.folder.instance.covers, *([silent.mount_id] if how == "on_top" else []))


def _discard(prepared: Prepared) -> None:
    prepared.remove_runtime()
    caches.put_away(prepared.folder)


def _close_descriptor(running: Running) -> None:
    if running.fuse_fd >= 0:
        with suppress(OSError):
            os.close(running.fuse_fd)
        running.fuse_fd = -1


def _too_slow(spec: MountSpec, timeout_s: float) -> AmlmountError:
    return WaitTimeoutError(
        f"cannot mount '{spec.name}' within {timeout_s:g} s: its store or blobfuse2 did not answer",
        hint="see that the store can be reached (amlmount store test), or give it more time",
    )


__all__ = ["Blobfuse2Engine", "ExitReason"]
