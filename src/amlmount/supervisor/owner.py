"""One mount's owner: what is asked of a mount beyond its being there; it puts new mounts in the place of old ones.

Contract: see `standing`.
"""

import asyncio
import logging
from functools import partial
from typing import Any

from amlmount.engines.base import Askable, Engine, Replaces, Running
from amlmount.engines.upgrades import newer_program
from amlmount.errors import AmlmountError, from_json
from amlmount.events import kinds
from amlmount.mounts import MountEntry, is_ours
from amlmount.states import (
    SERVING,
    Exited,
    Failure,
    MountState,
    Replaced,
    Unwanted,
    Wanted,
)
from amlmount.supervisor.adoption import only, secure_next
from amlmount.supervisor.serving import ServedMount
from amlmount.supervisor.surroundings import failure_of

log = logging.getLogger(__name__)


class MountOwner(ServedMount):
    """Keeps one mount as it should be."""

    _renewal: "asyncio.Task[Failure | None] | None" = None

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
        if what == "refresh":
            return await self._refresh(engine, running, how, timeout_s)
        return await engine.ask(running, what, how, timeout_s=timeout_s)

    async def _refresh(
        self, engine: Askable, running: Running, how: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        name, events = self.spec.name, self._around.events
        try:
            if running.has_front:
                found = await self._refresh_with_front(engine, running, how, timeout_s)
            else:
                found = await engine.ask(running, "refresh", how, timeout_s=timeout_s)
        except AmlmountError as error:
            events.tell(kinds.REFRESH_FAILED, error.message, mount=name, details={"code": error.code})
            raise
        counts = {kind: found[kind] for kind in ("added", "removed", "changed") if found[kind]}
        if counts:
            text = ", ".join(f"{count} {kind}" for kind, count in counts.items())
            events.tell(kinds.REFRESHED, text, mount=name, details=counts)
        return found

    async def _refresh_with_front(
        self, engine: Askable, running: Running, how: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        """Behind an overlay nothing may change, so what has changed is shown by a new mount in the old one's place."""
        found = await engine.ask(running, "refresh", how | {"quiet": True}, timeout_s=timeout_s)
        if any(found[kind] for kind in ("added", "removed", "changed")):
            failure = await self.renew()
            if failure is not None:
                raise from_json(failure.to_json())
        return found

    def look_at(self, table: list[MountEntry]) -> None:
        """Take in the mount table after a change of it: was our mount taken away by somebody else?"""
        running = self._running
        if running is None or self.status.pid != running.pid or self.status.state not in SERVING or self.is_at_work:
            return
        if not any(entry.mount_id == running.mount_id and is_ours(entry) for entry in table):
            text = f"cannot serve '{self.spec.name}': somebody has unmounted '{self.spec.target}'"
            hint = f"to take it down: amlmount down {self.spec.name}"
            self.tell(Exited(Failure("failed", text, hint), cause="unmounted"))

    async def renew(self) -> Failure | None:
        """Put a new mount, by the definition that is offered, in the place of the present one; say why if it stays.

        Without a gap where that can be (`gap`); else it is unmounted if nobody uses it, and mounted again, provided
        that the stores of the new one are as they must be.
        """
        if await self.gap() is not None:
            return await self._why_not() or await self._renew_with_gap()
        failures: list[Failure] = []
        await asyncio.wait({self._begin(partial(self._renew, failures))})
        return failures[0] if failures else None

    async def newer(self) -> str | None:
        """Say which other program would serve it if it were made anew, None if none would. Raises AmlmountError."""
        running, old = self._running, self._engine
        if running is None or old is None or self.status.state not in SERVING or self.status.is_orphaned:
            return None
        engine, _ = await asyncio.to_thread(self._around.select_engine, self._next_spec or self.spec)
        return await newer_program(old, running, engine)

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

    async def _why_not(self) -> Failure | None:
        """Say why nothing could be mounted by the definition that is offered: then what is mounted had better stay."""
        spec, around = self._next_spec or self.spec, self._around
        if self.status.state not in SERVING:
            return None
        try:
            await asyncio.to_thread(around.select_engine, spec)
            if spec.target != self.spec.target:
                await asyncio.to_thread(around.host.plan_target, spec.target)
            await asyncio.to_thread(around.look_at_stores, spec)
        except Exception as error:
            return failure_of(error, "restart", self.spec.name)
        return None

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
