"""All mounts of one daemon: picks them by name, brings them up and down, waits for what comes of it.

Contract: everything runs in the event loop's thread; concurrent calls are welcome, each mount's owner sorts them out.
"""

import asyncio
import difflib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from amlmount.config.spec import MountSpec
from amlmount.engines.base import Running
from amlmount.errors import NotFoundError
from amlmount.events import EventHub, kinds
from amlmount.mounts import MountEntry
from amlmount.states import (
    COMING,
    SERVING,
    Change,
    Condition,
    Failure,
    MountState,
    MountStatus,
    Observed,
    Outcome,
    Plan,
    Unwanted,
    Wanted,
)
from amlmount.supervisor.adoption import close, grouped, let_go, spec_in
from amlmount.supervisor.owner import MountOwner
from amlmount.supervisor.planning import plan_for, restart_of
from amlmount.supervisor.surroundings import Surroundings, clear_leftover

log = logging.getLogger(__name__)
Progress = Callable[[MountStatus], None]
SETTLE_S = 10.0


class Supervisor:
    """The owners of all mounts, by name, in the order of the configuration."""

    def __init__(self, around: Surroundings, specs: Iterable[MountSpec] = ()) -> None:
        self._around = replace(around, on_change=self._tell_listeners)
        self._owners: dict[str, MountOwner] = {}
        self._listeners: list[Progress] = []
        self._chores: set[asyncio.Task[None]] = set()
        self._specs: dict[str, MountSpec] = {}
        self.update(specs)
        self._seen = set(self._specs)  # what the last `reload` (or the start) knew: the rest is new

    def update(self, specs: Iterable[MountSpec]) -> None:
        """Take over a configuration. What is mounted stays as it is: a changed definition waits for its next `up`."""
        self._specs = {spec.name: spec for spec in specs}
        for name, spec in self._specs.items():
            if name in self._owners:
                self._owners[name].offer(spec)
            else:
                self._owners[name] = MountOwner(spec, self._around)
        self._drop_forgotten()

    def recover(self, kept: Mapping[str, int] | None = None) -> None:
        """Begin to deal with what an earlier daemon left: adopt it, or clear it away and mount what is wanted again.

        `kept` are the descriptors it put by, by name; they are ours.
        """
        groups = grouped(kept or {})
        for record in self._around.records.load():
            descriptors, spec = groups.pop(record.name, {}), self._specs.get(record.name)
            mounted = spec_in(record) or spec
            if mounted is None or record.is_leaving:
                close(descriptors.values())
                self._do(clear_leftover(self._around, record, keep_target=False))
                continue
            owner = MountOwner(mounted, self._around, leftover=record, kept=descriptors)
            self._owners[record.name] = owner
            owner.tell(Wanted())
            if spec is not None:
                owner.offer(spec)
        for name, descriptors in groups.items():
            close(descriptors.values())
            self._do(let_go(self._around, name))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        chore = asyncio.create_task(work)
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)

    def status(self, names: Sequence[str] | None = None) -> list[MountStatus]:
        """Return the status of the named mounts, or of all. Raises NotFoundError."""
        return [owner.status for owner in self._pick(names)]

    @property
    def events(self) -> EventHub:
        """What the events of all mounts pass through."""
        return self._around.events

    @property
    def needed(self) -> bool:
        """Say whether a daemon must stay for these mounts: something is up, coming, going, or failed unheard."""
        return bool(self._chores) or any(
            owner.status.state is not MountState.UNMOUNTED
            and not (owner.status.state is MountState.FAILED and owner.failure_told)
            for owner in self._owners.values()
        )

    def listen(self, listener: Progress) -> None:
        """Call `listener` with the new status at every change of any mount, from now on."""
        self._listeners.append(listener)

    def look_at(self, table: list[MountEntry]) -> None:
        """Take in the mount table after a change of it."""
        for owner in list(self._owners.values()):
            owner.look_at(table)

    async def plan(self, names: Sequence[str] | None) -> list[Plan]:
        """Say what `up` would do, and do nothing. Raises NotFoundError."""
        return [await asyncio.to_thread(plan_for, owner, self._around) for owner in self._pick(names)]

    async def up(
        self,
        names: Sequence[str] | None,
        *,
        wait: bool,
        timeout_s: float,
        progress: Progress = lambda _: None,
    ) -> Outcome:
        """Ask for the named mounts (None: all) and, with `wait`, wait for each to be mounted or to fail.

        Cancelled while waiting: mounts that only such a call wanted and that are still on their way are undone.
        Raises NotFoundError before anything is done.
        """
        owners = self._pick(names)
        with _Listening(self._listeners, owners, progress):
            for owner in owners:
                idle = owner.status.state in (MountState.UNMOUNTED, MountState.FAILED)
                owner.started_for_waiters = wait and (idle or owner.started_for_waiters)
                owner.tell(Wanted())
            if not wait:
                return Outcome([owner.status for owner in owners])
            return await self._wait_for_all(owners, timeout_s)

    async def down(
        self,
        names: Sequence[str] | None,
        *,
        lazy: bool,
        timeout_s: float,
        progress: Progress = lambda _: None,
    ) -> Outcome:
        """Take the named mounts (None: all) down and wait for it. Busy ones stay and are among the errors."""
        owners = self._pick(names)
        with _Listening(self._listeners, owners, progress):
            errors = await _within(timeout_s, {o.spec.name: _take_down(o, lazy) for o in owners}, "unmount")
        self._drop_forgotten()
        return Outcome([owner.status for owner in owners], errors)

    async def ask(self, name: str, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Return a mount's answer to a question (`worker.controls`). Raises NotFoundError, AmlmountError."""
        [owner] = self._pick([name])
        return await owner.ask(what, how, timeout_s=timeout_s)

    def running(self) -> list[Running]:
        """Return what is being served, as its engine describes it."""
        found = [(owner.status, owner.running) for owner in self._owners.values()]
        return [one for status, one in found if one is not None and status.state in SERVING and status.pid == one.pid]

    def observe(self, name: str, found: Iterable[Condition]) -> None:
        """Take in what was found out about a mount; nothing happens if it is not known any more."""
        if name in self._owners:
            self._owners[name].tell(Observed(tuple(found)))

    def mounted(self) -> list[MountSpec]:
        """Return the specs of the mounts that are being served."""
        return [owner.spec for owner in self._owners.values() if owner.status.state in SERVING]

    def known(self) -> list[MountSpec]:
        """Return the specs of all mounts: as mounted, else as configured."""
        return [owner.spec for owner in self._owners.values()]

    async def changes(self) -> list[Change]:
        """Say what `reload` would do by the configuration that was taken over last, and do nothing."""
        found = [await self._change(owner) for owner in self._owners.values()]
        return [change for change in found if change is not None]

    async def reload(self, *, timeout_s: float, progress: Progress = lambda _: None) -> Outcome:
        """Make what is mounted as the configuration says: mount what is new in it, take down what has left it, renew
        what has changed. What was taken down stays down. Waits for it; what does not work out is among the errors."""
        changes = await self.changes()
        self._seen = set(self._specs)
        owners = {change.name: self._owners[change.name] for change in changes}
        jobs: dict[str, Coroutine[Any, Any, Failure | None]] = {}
        for change in changes:
            owner = owners[change.name]
            if change.action == "add":
                owner.tell(Wanted())
                jobs[change.name] = _wait_until_up(owner)
            elif change.action == "remove":
                jobs[change.name] = _take_down(owner, lazy=True)
            else:
                jobs[change.name] = owner.renew()
        outcome = await self._carry_through(list(owners.values()), jobs, timeout_s, "change", progress)
        self._tell_of_reload(changes, outcome)
        return outcome

    async def restart(
        self, names: Sequence[str] | None, *, timeout_s: float, progress: Progress = lambda _: None
    ) -> Outcome:
        """Put new mounts in the place of the named ones (None: all that are up), by the definitions of now.

        Raises NotFoundError before anything is done. One that is named and not mounted is brought up.
        """
        owners = [o for o in self._pick(names) if names is not None or o.status.state is not MountState.UNMOUNTED]
        jobs: dict[str, Coroutine[Any, Any, Failure | None]] = {}
        for owner in owners:
            if owner.status.state in SERVING and not owner.status.is_orphaned:
                jobs[owner.spec.name] = owner.renew()
            else:
                owner.tell(Wanted())
                jobs[owner.spec.name] = _wait_until_up(owner)
        return await self._carry_through(owners, jobs, timeout_s, "restart", progress)

    async def restarts(self, names: Sequence[str] | None, *, only_newer: bool) -> list[Change]:
        """Say what `restart` would do with those that are up (`planning.restart_of`). Raises NotFoundError."""
        owners = self._pick(names)
        if coming := [asyncio.create_task(o.settled()) for o in owners if o.status.state in COMING]:
            await asyncio.wait(coming, timeout=SETTLE_S)  # a daemon that has just begun adopts them
        up = [owner for owner in owners if owner.status.state in SERVING]
        found = [await restart_of(owner, only_newer=only_newer) for owner in up]
        return [change for change in found if change is not None]

    async def leave(self, *, timeout_s: float) -> None:
        """Let everything be, for the daemon that comes next: wait for what is under way, then touch nothing."""
        jobs = [asyncio.create_task(owner.settled()) for owner in self._owners.values()]
        jobs += self._chores
        if jobs:
            await asyncio.wait(jobs, timeout=timeout_s)

    async def close(self, *, timeout_s: float) -> None:
        """Take everything down for good: politely first, then lazily, and return within about `timeout_s` seconds."""
        outcome = await self.down(None, lazy=False, timeout_s=timeout_s * 0.6)
        for name, failure in outcome.errors.items():
            log.warning("%s: %s; letting go of it lazily", name, failure.message)
        if outcome.errors:
            await self.down(list(outcome.errors), lazy=True, timeout_s=timeout_s * 0.4)
        if self._chores:
            await asyncio.wait(set(self._chores), timeout=timeout_s * 0.4)

    # --- inside ----------------------------------------------------------------------------------------------------

    async def _change(self, owner: MountOwner) -> Change | None:
        name, state = owner.spec.name, owner.status.state
        if name not in self._specs:
            return None if state is MountState.UNMOUNTED else Change(name, "remove", owner.spec.target)
        if state is MountState.UNMOUNTED:
            return None if name in self._seen else Change(name, "add", owner.spec.target)
        if not owner.changes:
            return None
        return Change(name, "replace", owner.spec.target, tuple(owner.changes), await owner.gap())

    def _tell_of_reload(self, changes: list[Change], outcome: Outcome) -> None:
        done = [f"{change.action} {change.name}" for change in changes if change.name not in outcome.errors]
        text = f"done: {', '.join(done) or 'nothing'}" if changes else "nothing had changed"
        self.events.tell(kinds.RELOADED, text)
        for name, failure in outcome.errors.items():
            self.events.tell(kinds.RELOAD_FAILED, failure.message, mount=name)

    async def _carry_through(
        self,
        owners: list[MountOwner],
        jobs: dict[str, Coroutine[Any, Any, Failure | None]],
        timeout_s: float,
        verb: str,
        progress: Progress,
    ) -> Outcome:
        with _Listening(self._listeners, owners, progress):
            errors = await _within(timeout_s, jobs, verb)
        for owner in owners:
            owner.failure_told |= owner.spec.name in errors
        self._drop_forgotten()
        return Outcome([owner.status for owner in owners], errors)

    async def _wait_for_all(self, owners: list[MountOwner], timeout_s: float) -> Outcome:
        for owner in owners:
            owner.waiters += 1
        try:
            errors = await _within(timeout_s, {o.spec.name: _wait_until_up(o) for o in owners}, "mount")
        except asyncio.CancelledError:
            _abandon(owners)
            raise
        finally:
            for owner in owners:
                owner.waiters -= 1
        for owner in owners:
            owner.failure_told |= owner.spec.name in errors
        return Outcome([owner.status for owner in owners], errors)

    def _pick(self, names: Sequence[str] | None) -> list[MountOwner]:
        if names is None:
            return list(self._owners.values())
        for name in names:
            if name not in self._owners:
                raise _unknown(name, list(self._owners))
        return [self._owners[name] for name in dict.fromkeys(names)]

    def _drop_forgotten(self) -> None:
        for name in list(self._owners):
            owner = self._owners[name]
            if name not in self._specs and owner.status.state is MountState.UNMOUNTED and owner.idle:
                del self._owners[name]

    def _tell_listeners(self, status: MountStatus) -> None:
        for listener in list(self._listeners):
            listener(status)


class _Listening:
    """Passes changes of these owners on to `progress` while the block runs."""

    def __init__(self, listeners: list[Progress], owners: list[MountOwner], progress: Progress) -> None:
        names = {owner.spec.name for owner in owners}
        self._listeners = listeners
        self._listener: Progress = lambda status: progress(status) if status.name in names else None

    def __enter__(self) -> None:
        self._listeners.append(self._listener)

    def __exit__(self, *_: object) -> None:
        self._listeners.remove(self._listener)


async def _within(
    timeout_s: float, jobs: dict[str, Coroutine[Any, Any, Failure | None]], verb: str
) -> dict[str, Failure]:
    """Run all jobs at once; a job that is not done in time counts as failed by timeout."""
    tasks = {name: asyncio.create_task(job) for name, job in jobs.items()}
    try:
        if tasks:
            await asyncio.wait(tasks.values(), timeout=timeout_s)
    finally:
        for task in tasks.values():
            task.cancel()
    late = Failure("timeout", "", "it goes on in the background: see amlmount ps")
    found = {name: task.result() if task.done() else late for name, task in tasks.items()}
    message = "cannot {verb} '{name}' within {timeout_s:g} s"
    return {
        name: replace(failure, message=message.format(verb=verb, name=name, timeout_s=timeout_s))
        if failure is late
        else failure
        for name, failure in found.items()
        if failure is not None
    }


async def _wait_until_up(owner: MountOwner) -> Failure | None:
    while True:
        status = owner.status
        if status.state in SERVING and not status.is_orphaned:
            return None
        if status.state is MountState.FAILED:
            return status.last_error or Failure("failed", f"cannot mount '{status.name}'")
        if not status.wanted:
            return Failure("failed", f"cannot mount '{status.name}': it was taken down in the meantime")
        await owner.changed()


async def _take_down(owner: MountOwner, lazy: bool) -> Failure | None:
    # An unmount that somebody else began may fail for want of `lazy`: it is joined, and then ours is tried.
    ours = owner.status.state is not MountState.UNMOUNTING
    stopped_before = owner.times_stopped
    owner.tell(Unwanted(lazy))
    while owner.status.state is not MountState.UNMOUNTED and owner.times_stopped == stopped_before:
        if owner.status.state is not MountState.UNMOUNTING:
            if ours:
                return owner.status.last_error or Failure("failed", f"cannot unmount '{owner.status.name}'")
            ours = True
            owner.tell(Unwanted(lazy))
        await owner.changed()
    return None


def _abandon(owners: list[MountOwner]) -> None:
    for owner in owners:
        if owner.waiters == 1 and owner.started_for_waiters and owner.status.state in COMING:
            log.info("%s: whoever asked for it has gone", owner.spec.name)
            owner.tell(Unwanted())


def _unknown(name: str, known: list[str]) -> NotFoundError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else "the configuration has: " + (", ".join(known) or "no mounts")
    return NotFoundError(f"cannot find a mount named '{name}'", hint=hint, details={"name": name})
