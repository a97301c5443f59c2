"""One mount being served: started, adopted, watched, taken over, stopped, as its status asks for.

Contract: see `standing`.
"""

import asyncio
import contextlib
import logging
from dataclasses import replace
from functools import partial
from typing import Any

from amlmount.config.spec import MountSpec
from amlmount.engines.base import Engine, ExitReason, Replaces, Running, TakesOver, TellsNews
from amlmount.errors import AmlmountError, BusyError
from amlmount.events import KINDS
from amlmount.states import (
    Action,
    CancelRetry,
    CancelStart,
    CleanUp,
    Exited,
    Failure,
    MountStatus,
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
)
from amlmount.supervisor.adoption import adopt, let_go, only, record_of, secure, secure_successor, take_off_dead
from amlmount.supervisor.changes import difference, needs_new_mount
from amlmount.supervisor.hanging import Watched
from amlmount.supervisor.records import MadeTarget, MountRecord, current_boot_id
from amlmount.supervisor.standing import Standing
from amlmount.supervisor.surroundings import Surroundings, clear_leftover, failure_of

log = logging.getLogger(__name__)
NOTHING_MADE = MadeTarget()


class ServedMount(Standing):
    """Carries out what `transition` asks for.

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
        self._next_spec: MountSpec | None = None
        if leftover is not None:
            self._begin(partial(self._recover, leftover, kept or {}))

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
    def running(self) -> Running | None:
        """What serves it, or did last."""
        return self._running

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
            keep_dead = keep_target and await self._will_cover_dead()
            await clear_leftover(self._around, leftover, keep_target=keep_target, keep_dead=keep_dead)
            self._made = self._made if keep_target else NOTHING_MADE
            return
        self._engine, why, running = adopted
        self._running, self._engine_why = running, why
        log.info("%s: adopted, with process %d", self.spec.name, running.pid)

    async def _start(self) -> None:
        is_adopted = self._running is not None and self._engine is not None
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
        self.tell(Started(self._running.pid, made_target=bool(self._made.created), is_adopted=is_adopted))
        self._watch(self._running)

    def _hear(self, body: dict[str, Any]) -> None:
        """Take in what the engine says of its own accord."""
        if (kind := KINDS.get(body["kind"])) is not None:
            self._around.events.tell(kind, body["message"], mount=self.spec.name, details=body["details"])

    def _set_secure(self, engine: Engine, made: MadeTarget) -> None:
        if isinstance(engine, TellsNews):
            engine.on_news = self._hear
        if isinstance(engine, TakesOver):
            engine.secure = partial(secure, self._around, engine, made)

    async def _make_mount(self, engine: Engine) -> Running:
        if not self._made.created:
            planned = await asyncio.to_thread(self._around.host.plan_target, self.spec.target)
            self._around.records.save(self._record(engine, planned))
        prepare = partial(self._around.host.prepare_target, self.spec.target, keep_dead=self._covers_dead(engine))
        preparing = asyncio.create_task(asyncio.to_thread(prepare))
        try:
            made = await asyncio.shield(preparing)
            made = self._made if self._made.created else made
            self._around.records.save(self._record(engine, made))
            await asyncio.to_thread(self._around.prepare_cache, self.spec)
            self._set_secure(engine, made)
            running = await self._start_engine(engine)
            self._around.records.save(record_of(running, made))
        except BaseException:
            await self._unmake(preparing)
            raise
        self._made = made
        return running

    async def _start_engine(self, engine: Engine) -> Running:
        """Start it; beneath a dead mount, if one lies there, so that nobody sees the bare directory."""
        timeout_s = self._around.start_timeout_s
        if (
            not self._covers_dead(engine)
            or await asyncio.to_thread(self._around.host.dead_mount, self.spec.target) is None
        ):
            return await engine.start(self.spec, timeout_s=timeout_s)
        assert isinstance(engine, Replaces)
        running = await engine.start_beneath(self.spec, timeout_s=timeout_s)
        await take_off_dead(self._around, self.spec.target)
        return running

    @staticmethod
    def _covers_dead(engine: Engine) -> bool:
        """Say whether a dead mount of this engine can stay where it is until the next one is beneath it."""
        return isinstance(engine, Replaces) and engine.why_not_beneath() is None

    async def _will_cover_dead(self) -> bool:
        with contextlib.suppress(AmlmountError):
            engine, _ = await asyncio.to_thread(self._around.select_engine, self.spec)
            return self._covers_dead(engine)
        return False

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
        running.on_stale = partial(self._make_anew, running)
        running.exited.add_done_callback(self._on_exit)
        if isinstance(engine := self._engine, TakesOver):
            is_current, on_hung = partial(self._is_served_by, running), partial(self._on_hung, running, engine)
            watched = Watched(running, engine, is_current, on_hung)
            self._around.hangs.add(watched, hung_after_s=self._around.hung_after_s)

    def _is_served_by(self, running: Running) -> bool:
        return running is self._running and self.status.pid == running.pid

    def _on_hung(self, running: Running, engine: TakesOver) -> None:
        if not self._is_served_by(running):
            return
        text = f"cannot serve '{self.spec.name}': its {running.engine} engine (pid {running.pid}) hangs"
        hint = f"its log says where: amlmount logs {self.spec.name}"
        evidence, can_take_over = self._around.host.evidence(running.pid), engine.can_take_over(running)
        self.tell(Exited(Failure("failed", text, hint, {"evidence": evidence}), can_take_over, cause="hung"))

    async def _take_over(self) -> None:
        running, engine = self._running, self._engine
        if running is None or not isinstance(engine, TakesOver) or not self.status.is_orphaned:
            return
        engine.secure = partial(secure_successor, self._around, engine, self._made, running)
        try:
            successor = self._running = await engine.take_over(running, timeout_s=self._around.start_timeout_s)
            if successor.mount_id != running.mount_id:
                await only(self._around, engine, self._made, successor)
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

    def _make_anew(self, running: Running, why: str) -> None:
        """Renew it because its engine says so."""
        raise NotImplementedError

    # --- stop ----------------------------------------------------------------------------------------------------

    async def _stop(self, lazy: bool) -> None:
        running = self._running
        try:
            if running is not None and self._engine is not None:
                self._around.records.save(record_of(running, self._made, is_leaving=True))
                await self._stop_engine(self._engine, running, lazy)
            self._running = None
            await take_off_dead(self._around, self.spec.target)
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

    async def _stop_engine(self, engine: Engine, running: Running, lazy: bool) -> None:
        around = self._around
        patience_s = around.lazy_stop_timeout_s if lazy else around.stop_timeout_s
        try:
            await engine.stop(running, lazy=lazy, timeout_s=patience_s)
        except BusyError as error:
            is_silent = any(condition.reason == "Silent" for condition in self.status.conditions)
            if lazy or error.details.get("holders") or not is_silent:
                raise
            # Nobody has anything open there: what keeps it busy is our own question whether it answers.
            await engine.stop(running, lazy=True, timeout_s=around.lazy_stop_timeout_s)

    async def _clean_up(self) -> None:
        running, self._running = self._running, None
        if running is None or self._engine is None:
            return
        try:
            if isinstance(self._engine, Replaces) and self._covers_dead(self._engine):
                await self._engine.abandon(running, timeout_s=self._around.lazy_stop_timeout_s)
            else:
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
