"""The blobfuse2 engine: starts it on a mount of ours, stops it by unmounting, and sees that nothing it held is lost.

Bound to the event loop it is used in; see `amlmount.engines.base.Engine`.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from amlmount import mounts
from amlmount.config.spec import MountSpec, SourceSpec
from amlmount.engines.base import ExitReason, Running
from amlmount.engines.blobfuse2 import caches, mounting, salvaging
from amlmount.engines.blobfuse2.binary import Binary
from amlmount.engines.blobfuse2.configuring import Prepared, prepare, render
from amlmount.engines.blobfuse2.environment import scrubbed
from amlmount.engines.blobfuse2.failures import start_failed
from amlmount.engines.blobfuse2.mounting import Opened
from amlmount.engines.blobfuse2.places import Places
from amlmount.engines.blobfuse2.preflight import preflight
from amlmount.engines.blobfuse2.rotation import Watched, follow_secrets
from amlmount.engines.blobfuse2.served import Served
from amlmount.engines.offload import in_thread
from amlmount.errors import AmlmountError, ConfigError, MountFailedError, NotFoundError, WaitTimeoutError
from amlmount.recovery import Folder

UNDO_TIMEOUT_S = 5.0
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class _Run:
    """One blobfuse2 with all that belongs to it."""

    served: Served
    prepared: Prepared
    folder: Folder
    kept: Folder | None = None
    watch: "asyncio.Task[None] | None" = None


class Blobfuse2Engine:
    """Starts and stops blobfuse2 processes; one on each mount."""

    name = "blobfuse2"

    def __init__(self, binary: Binary, places: Places) -> None:
        self._binary = binary
        self._places = places
        self._runs: dict[int, _Run] = {}
        self._chores: set[asyncio.Task[None]] = set()

    async def start(self, spec: MountSpec, *, timeout_s: float) -> Running:
        """See `Engine.start`; what an earlier run left is set aside first, and salvaged once the mount is there."""
        source = _only_source(spec)
        async with AsyncExitStack() as undo:
            try:
                async with asyncio.timeout(timeout_s):
                    running = await self._bring_up(spec, source, undo)
            except TimeoutError:
                raise _too_slow(spec, timeout_s) from None
            undo.pop_all()
        return running

    async def stop(self, running: Running, *, lazy: bool, timeout_s: float) -> None:
        """See `Engine.stop`. One that still works after a lazy stop is never ended: it goes with its last user."""
        run = self._runs.get(running.pid)
        dead = run is None or run.served.exited.done()
        if run is not None and not dead:
            run.kept = await in_thread(lambda: caches.keep_unsent(run.folder)) or run.kept
        await self._unmount(running, lazy=lazy or dead, timeout_s=timeout_s)
        if run is not None and not await run.served.ended(timeout_s) and not lazy:
            log.warning("%s: unmounted; blobfuse2 %d is still at work", running.spec.name, running.pid)
        _close_descriptor(running)
        if dead:
            await in_thread(lambda: mounting.unmount_all(running.spec.target))
        if run is not None:
            await self._see_off(run, timeout_s)

    # --- start ---------------------------------------------------------------------------------------------------

    async def _bring_up(self, spec: MountSpec, source: SourceSpec, undo: AsyncExitStack) -> Running:
        await in_thread(lambda: preflight(source))
        bases = [self._places.lasting_base(spec.name), self._places.passing_base(spec.name)]
        bases += self._places.cache_bases(spec)
        waiting = await in_thread(lambda: caches.put_leftovers_aside(list(dict.fromkeys(bases))))
        await in_thread(lambda: self._places.tidy(spec.name))
        prepared = await _made(lambda: prepare(spec, source, self._places), _discard, undo)
        opened = await _made(lambda: mounting.open_mount(spec), lambda opened: mounting.take_back(spec, opened), undo)
        try:
            served = self._spawn(spec, prepared, opened)
        finally:
            prepared.let_go()
        undo.push_async_callback(served.kill)
        folder = prepared.folder.note(pid=served.process.pid, pid_start_time=served.process.start_time)
        await self._wait_for_answer(spec, served, opened)
        entry = await in_thread(lambda: mounting.show(opened, spec.target))
        run = self._runs[served.process.pid] = _Run(served, prepared, folder)
        self._begin(salvaging.salvage_now(waiting))
        pid, start_time = served.process.pid, served.process.start_time
        running = Running(spec, self.name, pid, start_time, opened.fuse_fd, entry.mount_id, served.exited)
        run.watch = self._begin(self._follow_secrets(running, source, prepared))
        return running

    async def _follow_secrets(self, running: Running, source: SourceSpec, prepared: Prepared) -> None:
        spec = running.spec
        watched = Watched(
            spec.name, spec.target, source, prepared, lambda: render(spec, source, self._places, prepared)
        )
        await follow_secrets(watched, lambda why: running.on_stale(why))

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

    async def _see_off(self, run: _Run, timeout_s: float) -> None:
        """Put the cache away when the process has ended, whenever that is, and salvage what may be unsent."""
        self._runs.pop(run.served.process.pid, None)
        if run.watch is not None:
            run.watch.cancel()
        farewell = self._begin(self._put_away(run))
        if run.served.exited.done():
            await asyncio.wait({farewell}, timeout=timeout_s)

    async def _put_away(self, run: _Run) -> None:
        await run.served.exited
        run.prepared.remove_runtime()
        left = await in_thread(lambda: caches.put_away(run.folder))
        folders = [folder for folder in (left, run.kept) if folder is not None]
        if folders and not await salvaging.salvage_once(folders):
            self._begin(salvaging.salvage_later(folders))

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


async def _made(make: Callable[[], T], take_back: Callable[[T], None], undo: AsyncExitStack) -> T:
    """Run `make` in a thread; what it has made is taken back by `undo`, even if it comes after we have given up."""
    job = in_thread(make)

    def settle(done: "asyncio.Future[T]") -> None:
        if not done.cancelled() and done.exception() is None:
            take_back(done.result())

    async def give_up() -> None:
        await asyncio.wait([job], timeout=UNDO_TIMEOUT_S)
        if job.done():
            await in_thread(lambda: settle(job))
        else:
            job.add_done_callback(settle)

    undo.push_async_callback(give_up)
    return await asyncio.shield(job)


def _discard(prepared: Prepared) -> None:
    prepared.remove_runtime()
    caches.put_away(prepared.folder)


def _close_descriptor(running: Running) -> None:
    if running.fuse_fd >= 0:
        import os

        with suppress(OSError):
            os.close(running.fuse_fd)
        running.fuse_fd = -1


def _too_slow(spec: MountSpec, timeout_s: float) -> AmlmountError:
    return WaitTimeoutError(
        f"cannot mount '{spec.name}' within {timeout_s:g} s: its store or blobfuse2 did not answer",
        hint="see that the store can be reached (amlmount store test), or give it more time",
    )


__all__ = ["Blobfuse2Engine", "ExitReason"]
