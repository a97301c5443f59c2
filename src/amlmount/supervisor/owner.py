"""One mount's owner: carries out what its status asks for, and puts new mounts in the place of old ones.

Contract: see `standing`.
"""

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import Any

from amlmount.config.spec import MountSpec
from amlmount.engines.base import Askable, Engine, ExitReason, Replaces, Running, TakesOver
from amlmount.errors import AmlmountError
from amlmount.states import (
    SERVING,
    Action,
    CancelRetry,
    CancelStart,
    CleanUp,
    Exited,
    Failure,
    MountState,
    MountStatus,
    Replaced,
    RetryAfter,
    RetryDue,
    Start,
    StartBegun,
    Started,
    StartFailed,
    Stop,
    StopFailed,
    Stopped,
    TakeOver,
    TakeOverFailed,
    TookOver,
    Unwanted,
    Wanted,
)
from amlmount.supervisor.adoption import adopt, let_go, only, record_of, secure, secure_next
from amlmount.supervisor.changes import difference, needs_new_mount
from amlmount.supervisor.records import MadeTarget, MountRecord, current_boot_id
from amlmount.supervisor.standing import Standing
from amlmount.supervisor.surroundings import Surroundings, clear_leftover, failure_of

log = logging.getLogger(__name__)
NOTHING_MADE = MadeTarget()
HUNG_LOOKS = 3


class MountOwner(Standing):
    """Keeps one mount as it should be.

    `times_stopped`: how often it was unmounted on demand, to tell an unmount that was followed by a new start.
    """

    def __init__(
        self,
        spec: MountSpec,
        around: Surroundings,
        *,
        leftover: MountRecord | None = None,
        kept: dict[str, int] | None = None,
    ) -> None:
        """`leftover` is what an earlier daemon wrote of this mount, `kept` what it put by, by kind (ours now)."""
        self._made = leftover.made if leftover is not None and leftover.target == spec.target else NOTHING_MADE
        super().__init__(MountStatus(**_facts(spec), mount_made_target=bool(self._made.created)), around)
        self.spec = spec
        self.times_stopped = 0
        self._running: Running | None = None
        self._engine: Engine | None = None
        self._engine_why = ""
        self._starting: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._renewal: asyncio.Task[Failure | None] | None = None
        self._next_spec: MountSpec | None = None
        if leftover is not None:
            self._begin(partial(self._recover, leftover, kept or {}))

    async def ask(self, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Return the mount's answer to a question (`worker.controls`). Raises AmlmountError if it cannot be asked."""
        name, engine, running = self.spec.name, self._engine, self._running
        if running is None or engine is None or self.status.state not in SERVING:
            raise AmlmountError(f"cannot ask '{name}': it is not mounted", hint=f"run: amlmount up {name}")
        if not isinstance(engine, Askable):
            raise AmlmountError(
                f"cannot ask '{name}': the {engine.name} engine answers no questions",
                hint="write 'engine: python' for a mount that is to be refreshed at once",
            )
        return await engine.ask(running, what, how, timeout_s=timeout_s)

    def offer(self, spec: MountSpec) -> None:
        """Take over a changed definition: now if nothing is going on or that needs no new mount, else with the next."""
        self._next_spec = spec if spec != self.spec else None
        if self.idle:
            self._adopt_next_spec()
        elif self._next_spec is not None and not needs_new_mount(self.changes):
            self._adopt_next_spec()
            self._around.on_change(self.status)

    @property
    def changes(self) -> list[str]:
        """What a definition that is offered would change, by field."""
        return difference(self.spec, self._next_spec) if self._next_spec is not None else []

    @property
    def idle(self) -> bool:
        """Say whether nothing is mounted and nothing is under way."""
        return self._running is None and self._retry is None and not self.is_at_work

    def _carry_out(self, action: Action) -> None:
        match action:
            case Start():
                self._starting = self._begin(self._start)
            case CancelStart() if self._starting is not None:
                self._starting.cancel()
            case Stop(lazy):
                self._begin(partial(self._stop, lazy))
            case CleanUp():
                self._begin(self._clean_up)
            case TakeOver():
                self._starting = self._begin(self._take_over)
            case RetryAfter(delay_s):
                self._retry = asyncio.get_running_loop().call_later(delay_s, self._retry_is_due)
            case CancelRetry() if self._retry is not None:
                self._retry.cancel()
                self._retry = None

    def _retry_is_due(self) -> None:
        self._retry = None
        self.tell(RetryDue())

    # --- start ---------------------------------------------------------------------------------------------------

    async def _recover(self, leftover: MountRecord, kept: dict[str, int]) -> None:
        """Adopt what an earlier daemon left, or clear it away; whoever wanted it finds it started, or starts it."""
        adopted = await adopt(self._around, leftover, kept)
        if adopted is None:
            keep_target = leftover.target == self.spec.target and self.status.wanted
            await clear_leftover(self._around, leftover, keep_target=keep_target)
            self._made = self._made if keep_target else NOTHING_MADE
            return
        self._engine, why, running = adopted
        self._running, self._engine_why = running, why
        log.info("%s: adopted, with process %d", self.spec.name, running.pid)

    async def _start(self) -> None:
        try:
            async with self._around.starts:
                if self._running is None or self._engine is None:
                    engine, why = await asyncio.to_thread(self._around.select_engine, self.spec)
                    self.tell(StartBegun(engine.name, why))
                    self._engine, self._running = engine, await self._make_mount(engine)
                else:
                    self.tell(StartBegun(self._engine.name, self._engine_why))
                    self._set_secure(self._engine, self._made)
        except Exception as error:
            self.tell(StartFailed(failure_of(error, "mount", self.spec.name)))
            return
        self.tell(Started(self._running.pid, made_target=bool(self._made.created)))
        self._watch(self._running)
        self._running.on_stale = partial(self._make_anew, self._running)

    def _set_secure(self, engine: Engine, made: MadeTarget) -> None:
        if isinstance(engine, TakesOver):
            engine.secure = partial(secure, self._around, engine, made)

    async def _make_mount(self, engine: Engine) -> Running:
        if not self._made.created:
            planned = await asyncio.to_thread(self._around.host.plan_target, self.spec.target)
            self._around.records.save(self._record(engine, planned))
        preparing = asyncio.create_task(asyncio.to_thread(self._around.host.prepare_target, self.spec.target))
        try:
            made = await asyncio.shield(preparing)
            made = self._made if self._made.created else made
            self._around.records.save(self._record(engine, made))
            await asyncio.to_thread(self._around.prepare_cache, self.spec)
            self._set_secure(engine, made)
            running = await engine.start(self.spec, timeout_s=self._around.start_timeout_s)
            self._around.records.save(record_of(running, made))
        except BaseException:
            await self._unmake(preparing)
            raise
        self._made = made
        return running

    async def _unmake(self, preparing: "asyncio.Task[MadeTarget]") -> None:
        # A thread cannot be cancelled: only its end says whether there is a directory to remove.
        await asyncio.wait({preparing})
        if self._made.created:  # it was mounted before: what was made then goes when the mount is taken down
            return
        if preparing.exception() is None:
            await asyncio.to_thread(self._around.host.remove_target, preparing.result())
        self._around.records.delete(self.spec.name)

    def _record(self, engine: Engine, made: MadeTarget) -> MountRecord:
        spec = self.spec
        return MountRecord(spec.name, spec.target, engine.name, made, current_boot_id())

    # --- what serves it ends, hangs, is replaced ---------------------------------------------------------------------

    def _watch(self, running: Running) -> None:
        if running.exited.done():  # adopted, and dead already: nobody may take it for served in between
            self._on_exit(running.exited)
            return
        running.exited.add_done_callback(self._on_exit)
        self._look_whether_hung(running, 0)

    def _look_whether_hung(self, running: Running, times: int) -> None:
        """Look every so often; it has hung when all looks in a row found requests that nobody reads."""
        if running is not self._running or self.status.pid != running.pid or not isinstance(self._engine, TakesOver):
            return
        times = times + 1 if self._engine.is_hung(running) else 0
        if times >= HUNG_LOOKS:
            text = f"cannot serve '{self.spec.name}': its {running.engine} engine (pid {running.pid}) hangs"
            hint = f"its log says where: amlmount logs {self.spec.name}"
            evidence = self._around.host.evidence(running.pid)
            self.tell(Exited(Failure("failed", text, hint, {"evidence": evidence}), can_take_over=True))
            return
        pause_s = self._around.hung_after_s / HUNG_LOOKS
        asyncio.get_running_loop().call_later(pause_s, self._look_whether_hung, running, times)

    async def _take_over(self) -> None:
        running, engine = self._running, self._engine
        if running is None or not isinstance(engine, TakesOver) or not self.status.is_orphaned:
            return
        try:
            successor = self._running = await engine.take_over(running, timeout_s=self._around.start_timeout_s)
        except Exception as error:
            failure = failure_of(error, "go on with", self.spec.name)
            self.tell(TakeOverFailed(failure, engine.can_take_over(running)))
            return
        log.info("%s: process %d goes on in the place of %d", self.spec.name, successor.pid, running.pid)
        self.tell(TookOver(successor.pid))
        self._watch(successor)

    def _on_exit(self, exited: "asyncio.Future[ExitReason]") -> None:
        running = self._running
        if running is None or running.exited is not exited or exited.cancelled():
            return
        text = f"cannot serve '{self.spec.name}': its {running.engine} engine (pid {running.pid}) was "
        reason = exited.result()
        text = text if reason.returncode < 0 else text.removesuffix("was ")
        hint = f"see its log with: amlmount logs {self.spec.name}"
        failure = Failure("failed", text + reason.text, hint, {"returncode": reason.returncode})
        can_take_over = isinstance(self._engine, TakesOver) and self._engine.can_take_over(running)
        self.tell(Exited(failure, can_take_over))

    async def renew(self) -> Failure | None:
        """Put a new mount, by the definition that is offered, in the place of the present one; say why if it stays.

        Without a gap where that can be (`gap`); else it is unmounted if nobody uses it, and mounted again.
        """
        if await self.gap() is not None:
            return await self._renew_with_gap()
        failures: list[Failure] = []
        await asyncio.wait({self._begin(partial(self._renew, failures))})
        return failures[0] if failures else None

    async def gap(self) -> str | None:
        """Say why there must be a moment without a mount when it is renewed, None if there need not. Never raises."""
        spec = self._next_spec or self.spec
        if spec.target != self.spec.target:
            return "its target changes"
        try:
            engine, _ = await asyncio.to_thread(self._around.select_engine, spec)
        except AmlmountError as error:
            return error.message
        old = self._engine or engine
        for one in (engine, old):
            if not isinstance(one, Replaces):
                return f"the {one.name} engine cannot be replaced while it serves"
        assert isinstance(engine, Replaces)
        return engine.why_not_beneath()

    async def _renew_with_gap(self) -> Failure | None:
        stopped_before = self.times_stopped
        self.tell(Unwanted())
        self.tell(Wanted())
        while True:
            if self.times_stopped == stopped_before and self.status.state is not MountState.UNMOUNTING:
                return self.status.last_error
            if self.status.state is MountState.FAILED:
                return self.status.last_error
            if self.times_stopped > stopped_before and self.status.state in SERVING:
                return None
            await self.changed()

    async def _renew(self, failures: list[Failure]) -> None:
        running, old = self._running, self._engine
        if running is None or old is None or self.status.is_orphaned:
            self._adopt_next_spec()  # it is on its way, and comes by the new definition
            return
        try:
            spec = self._next_spec or self.spec
            engine, why = await asyncio.to_thread(self._around.select_engine, spec)
            await asyncio.to_thread(self._around.prepare_cache, spec)
            assert isinstance(engine, Replaces)
            engine.secure = partial(secure_next, self._around, engine, self._made, running)
            successor = await engine.start_beneath(spec, timeout_s=self._around.start_timeout_s)
        except Exception as error:
            failures.append(failure_of(error, "restart", self.spec.name))
            await only(self._around, old, self._made, running)
            return
        self._running, self._engine = successor, engine
        self._set_secure(engine, self._made)
        self._adopt_next_spec()
        await self._retire(old, running)
        await only(self._around, engine, self._made, successor)
        log.info("%s: process %d serves in the place of %d", self.spec.name, successor.pid, running.pid)
        self.tell(Replaced(successor.pid, engine.name, why))
        self._watch(successor)

    async def _retire(self, engine: Engine, running: Running) -> None:
        """Take the old mount off the new one; its process ends with its last open file."""
        try:
            await engine.stop(running, lazy=True, timeout_s=self._around.lazy_stop_timeout_s)
        except Exception as error:
            log.error("%s: %s", self.spec.name, failure_of(error, "detach", self.spec.name).message)

    def _make_anew(self, running: Running, why: str) -> None:
        """Renew it because its engine says so. One that is in use stays as it is if that cannot be without a gap."""
        if running is self._running and self.status.state in SERVING and self.status.wanted:
            log.warning("%s: renewing it: %s", self.spec.name, why)
            self._renewal = asyncio.create_task(self.renew(), name=f"renew {self.spec.name}")

    # --- stop ----------------------------------------------------------------------------------------------------

    async def _stop(self, lazy: bool) -> None:
        running = self._running
        try:
            if running is not None and self._engine is not None:
                around = self._around
                patience_s = around.lazy_stop_timeout_s if lazy else around.stop_timeout_s
                around.records.save(record_of(running, self._made, is_leaving=True))
                await self._engine.stop(running, lazy=lazy, timeout_s=patience_s)
            self._running = None
            await let_go(self._around, self.spec.name)
            await asyncio.to_thread(self._around.host.remove_target, self._made)
            self._made = NOTHING_MADE
            self._around.records.delete(self.spec.name)
        except Exception as error:
            if running is not None and not running.exited.done():
                self._around.records.save(record_of(running, self._made))
            self.tell(StopFailed(failure_of(error, "unmount", self.spec.name)))
            if running is not None and running.exited.done():
                self._on_exit(running.exited)
            return
        self._adopt_next_spec()
        self.times_stopped += 1
        self.tell(Stopped())

    async def _clean_up(self) -> None:
        running, self._running = self._running, None
        if running is None or self._engine is None:
            return
        try:
            await self._engine.stop(running, lazy=True, timeout_s=self._around.lazy_stop_timeout_s)
            await let_go(self._around, self.spec.name)
        except Exception as error:
            failure = failure_of(error, "clear away", self.spec.name)
            log.warning("%s: %s", self.spec.name, failure.message)

    def _adopt_next_spec(self) -> None:
        if self._next_spec is not None:
            self.spec, self._next_spec = self._next_spec, None
            self.status = replace(self.status, **_facts(self.spec))


def _facts(spec: MountSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "target": spec.target,
        "source": spec.description,
        "read_only": spec.read_only,
        "profile": spec.policy.profile,
        "cache_note": spec.cache_note,
        "cache_dir": spec.cache_dir,
    }
