"""Keeps the conditions of all mounts up to date: one timer for the mounts, one for the stores, and the mount table.

Whether the process lives and the mount is in its place is known by events; the rest is asked, each question once, with
one deadline, of somebody who can be abandoned. The supervisor is told what was found; what follows is its affair.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from amlmount import mounts
from amlmount.config.models import HealthConfig
from amlmount.config.spec import MountSpec
from amlmount.engines.attaching import requests_read
from amlmount.engines.base import Running
from amlmount.errors import AmlmountError
from amlmount.health import (
    FEW_REQUESTS,
    EngineTally,
    Prober,
    StoreKey,
    StoreWatch,
    judge_answer,
    judge_clock,
    judge_credential,
    judge_disks,
    judge_errors,
    judge_place,
    judge_process,
    judge_store,
    judge_uploads,
    keys_of,
)
from amlmount.mounts.hiding import Paths
from amlmount.states import SERVING, Condition, MountState, MountStatus
from amlmount.supervisor.supervise import Supervisor

SOON_S = 0.05
FIRST_STORE_LOOK_S = 3.0
SECOND_LOOK_S = 2.0  # a store that was silent once is asked again before anybody is told
JITTER = 0.1
AT_ONCE = 8  # so many are asked before anybody else has a turn, such as who asks for the status
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Known:
    """What is remembered of a mount between two looks. `read`: requests read when `tally` was asked for."""

    pid: int | None = None
    tally: EngineTally | None = None
    read: int | None = None
    are_errors_rare: bool = False
    spec: MountSpec | None = None
    stores: Sequence[StoreKey] = ()


class HealthKeeper:
    """Call `on_change` at every change of a mount, `look_at` at every change of the mount table."""

    def __init__(self, supervisor: Supervisor, config: Callable[[], HealthConfig]) -> None:
        self._supervisor = supervisor
        self._config = config
        self._prober = Prober()
        self._stores: dict[StoreKey, StoreWatch] = {}
        self._known: dict[str, _Known] = {}
        self._serving: dict[str, int | None] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_closed = False

    def begin(self) -> None:
        """Look at what is there already: mounts may have been adopted before anybody listened."""
        self._arm("events", SOON_S, self._see_to_events)
        self._arm("mounts", SOON_S, self._look_at_mounts)
        self._arm("new stores", FIRST_STORE_LOOK_S * random.random(), self._look_at_new_stores)

    def on_change(self, status: MountStatus) -> None:
        """Take in that a mount came, went or changed: what is known by events is seen to at once.

        It is asked only if another process serves it: what is found is a change too.
        """
        self._arm("events", SOON_S, self._see_to_events)
        before = self._serving.get(status.name)
        self._serving[status.name] = now = status.pid if status.state in SERVING else None
        if now is not None and now != before:
            self._arm("mounts", SOON_S, self._look_at_mounts)
            self._arm("new stores", FIRST_STORE_LOOK_S * random.random(), self._look_at_new_stores)

    def look_at(self, table: list[mounts.MountEntry]) -> None:
        """Take in a new mount table."""
        self._see_to(table)

    async def check(self, names: Sequence[str] | None, *, rw: bool, timeout_s: float) -> list[MountStatus]:
        """Look at everything of the named mounts (None: all that are wanted) now, and return what is known then.

        `rw`: write a file through each writable one too, read it and remove it; the condition `Writable` says how that
        went, and is not kept. Raises NotFoundError.
        """
        meant = [status.name for status in self._supervisor.status(names) if status.wanted or names]
        running = [one for one in self._supervisor.running() if one.spec.name in meant]
        stores = {key for one in running for key in self._keys_of(one)}
        limit_s = min(timeout_s, self._config().store_timeout)
        await asyncio.gather(*(self._watch(key).look(limit_s) for key in stores))
        self._tell_of_stores(running)
        self._see_to(table := mounts.read_mounts())
        paths, mount_s = Paths(table), min(timeout_s, self._config().timeout)
        for one in running:
            self._known_of(one).read = None
        await asyncio.gather(*(self._look(one, paths, mount_s) for one in running))
        tried = await asyncio.gather(*(self._try_writing(one, timeout_s) for one in running if rw))
        writable = {one.spec.name: found for one, found in zip(running, tried, strict=False)}
        found = self._supervisor.status(meant)
        return [
            replace(status, conditions=(*(status.conditions or _absent(status)), *writable.get(status.name, ())))
            for status in found
        ]

    def close(self) -> None:
        """Look at nothing any more; mounts that go on changing are none of its affair then."""
        self._is_closed = True
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks.values():
            task.cancel()
        self._prober.close()

    # --- when --------------------------------------------------------------------------------------------------------

    def _arm(self, name: str, delay_s: float, begin: Callable[[], None]) -> None:
        """Have `begin` called after a pause, or earlier if that has been asked for already."""
        timer, loop = self._timers.get(name), asyncio.get_running_loop()
        if self._is_closed:
            return
        if timer is not None:
            if timer.when() <= loop.time() + delay_s:
                return
            timer.cancel()

        def ring() -> None:
            del self._timers[name]
            begin()

        self._timers[name] = loop.call_later(delay_s, ring)

    def _begin(self, name: str, work: "asyncio.Task[None]") -> None:
        self._tasks[name] = work
        work.add_done_callback(_tell_trouble)

    def _look_at_mounts(self) -> None:
        running = self._supervisor.running()
        self._forget({one.spec.name for one in running})
        if not running:
            return
        self._arm("mounts", self._config().interval, self._look_at_mounts)
        if "mounts" not in self._tasks or self._tasks["mounts"].done():
            self._begin("mounts", asyncio.create_task(self._round(running), name="look at mounts"))

    def _look_at_stores(self) -> None:
        wanted = self._wanted_stores()
        for key in [key for key in self._stores if key not in wanted]:
            del self._stores[key]
        if wanted:
            self._arm_stores()
            if "stores" not in self._tasks or self._tasks["stores"].done():
                self._begin("stores", asyncio.create_task(self._store_round(wanted), name="look at stores"))

    def _look_at_new_stores(self) -> None:
        """Look at those that are new or were not well; tell new mounts what is known of the others."""
        known = {key for key, watch in self._stores.items() if watch.found is not None and watch.found.error is None}
        wanted = self._wanted_stores()
        new = wanted - known
        self._tell_of_stores(self._supervisor.running())
        if wanted:
            self._arm_stores()
        if new:
            self._begin("new stores", asyncio.create_task(self._store_round(new), name="look at new stores"))

    def _keys_of(self, running: Running) -> Sequence[StoreKey]:
        """Return the stores of a mount; with many mounts that is asked for much more often than it changes."""
        known = self._known_of(running)
        if known.spec is not running.spec:
            known.spec, known.stores = running.spec, keys_of(running.spec)
        return known.stores

    def _known_of(self, running: Running) -> _Known:
        return self._known.setdefault(running.spec.name, _Known())

    def _wanted_stores(self) -> set[StoreKey]:
        return {key for one in self._supervisor.running() for key in self._keys_of(one)}

    def _arm_stores(self) -> None:
        interval_s = self._config().store_interval
        self._arm("stores", interval_s * (1 + JITTER * (2 * random.random() - 1)), self._look_at_stores)

    def _see_to_events(self) -> None:
        self._see_to(mounts.read_mounts())

    def _forget(self, names: set[str]) -> None:
        self._known = {name: known for name, known in self._known.items() if name in names}

    # --- mounts ------------------------------------------------------------------------------------------------------

    def _see_to(self, table: list[mounts.MountEntry]) -> None:
        """Tell of what is known without asking anybody: the process, and the place in the mount table."""
        paths = Paths(table)
        running = {one.spec.name: one for one in self._supervisor.running()}
        for status in self._supervisor.status():
            if status.state not in (MountState.UNMOUNTED, MountState.UNMOUNTING):
                self._supervisor.observe(status.name, self._by_events(status, running.get(status.name), paths))

    def _by_events(self, status: MountStatus, running: Running | None, paths: Paths) -> list[Condition]:
        found = [judge_process(status)]
        if running is None or status.pid is None:
            if status.conditions or status.state is MountState.FAILED:
                text = "nothing serves it"
                found += [Condition(kind, "Unknown", "NoProcess", text) for kind in ("Mounted", "Answering")]
            return found
        known = self._known.setdefault(status.name, _Known())
        if known.pid != status.pid:  # what its predecessor did not answer says nothing of this one
            known.pid, known.tally = status.pid, None
            found.append(Condition("Answering", "Unknown", "NotAskedYet", "it is asked soon"))
        entry = paths.entry(running.mount_id)
        entry = entry if entry is not None and mounts.is_ours(entry) else None
        found.append(judge_place(status, entry, paths.cover_of(entry) if entry is not None else None))
        return found

    async def _round(self, running: list[Running]) -> None:
        paths, looks = Paths(mounts.read_mounts()), []
        for number, one in enumerate(running):
            looks.append(asyncio.create_task(self._look(one, paths, self._config().timeout)))
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
        await asyncio.gather(*looks)

    async def _look(self, running: Running, paths: Paths, timeout_s: float) -> None:
        """Ask one mount, its engine, and the disks it needs."""
        found = await asyncio.gather(
            self._ask_mount(running, paths, timeout_s),
            self._ask_engine(running, timeout_s),
            self._ask_disks(running, timeout_s),
        )
        if any(one is running for one in self._supervisor.running()):
            self._supervisor.observe(running.spec.name, [condition for part in found for condition in part])

    async def _ask_mount(self, running: Running, paths: Paths, timeout_s: float) -> list[Condition]:
        entry = paths.entry(running.mount_id)
        if entry is None or paths.cover_of(entry) is not None:
            return []
        answer = await self._prober.ask("attributes", entry.mount_point, timeout_s, mount_id=entry.mount_id)
        return [judge_answer(answer, timeout_s, mounts.waiting(entry) if answer.error is None else None)]

    async def _ask_engine(self, running: Running, timeout_s: float) -> list[Condition]:
        spec, known = running.spec, self._known_of(running)
        read = requests_read(running)
        if self._is_idle(known, read) and spec.read_only:
            return []
        kinds = ["ErrorsRare"] + ([] if spec.read_only else ["UploadsOnTime"])
        try:
            answer = await self._supervisor.ask(spec.name, "health", {}, timeout_s=timeout_s)
        except AmlmountError as error:
            known.tally = None
            return [Condition(kind, "Unknown", "EngineDoesNotSay", error.message) for kind in kinds]
        tally = EngineTally(**answer)
        before, known.tally, known.read = known.tally, tally, read
        found = judge_errors(before, tally, self._config())
        known.are_errors_rare = found.status == "True" if found is not None else known.are_errors_rare
        uploads = [] if spec.read_only else [judge_uploads(tally, self._config())]
        return ([found] if found is not None else []) + uploads

    @staticmethod
    def _is_idle(known: _Known, read: int | None) -> bool:
        """Say whether too few requests came since it was asked last for errors to have become many."""
        if read is None or known.read is None or known.tally is None:
            return False
        return known.are_errors_rare and read - known.read < FEW_REQUESTS

    async def _ask_disks(self, running: Running, timeout_s: float) -> list[Condition]:
        paths = [path for path in (running.spec.cache_dir, running.spec.state_dir) if path]
        answers = await asyncio.gather(*(self._prober.ask("free", path, timeout_s) for path in paths))
        return [judge_disks(dict(zip(paths, answers, strict=True)), self._config())] if paths else []

    async def _try_writing(self, running: Running, timeout_s: float) -> list[Condition]:
        spec = running.spec
        if spec.read_only:
            return [Condition("Writable", "Unknown", "ReadOnly", "it is mounted read-only")]
        for source in spec.sources:
            path = f"{spec.target}/{source.child}" if source.child else spec.target
            answer = await self._prober.ask("write", path, timeout_s, mount_id=running.mount_id)
            if answer.error != 0 or answer.value:
                text = answer.text if answer.error != 0 else "what was written is not what is read"
                return [Condition("Writable", "False", "NotWritten", f"cannot write, read and remove a file: {text}")]
        return [Condition("Writable", "True", "Written", "a file was written, read and removed")]

    # --- stores ------------------------------------------------------------------------------------------------------

    def _watch(self, key: StoreKey) -> StoreWatch:
        if key not in self._stores:
            self._stores[key] = StoreWatch(key, self._prober)
        return self._stores[key]

    async def _store_round(self, keys: Iterable[StoreKey]) -> None:
        await asyncio.gather(*(self._look_at_store(self._watch(key)) for key in keys))

    async def _look_at_store(self, watch: StoreWatch) -> None:
        timeout_s = self._config().store_timeout
        found = await watch.look(timeout_s)
        if found.is_reached is False:
            await asyncio.sleep(min(SECOND_LOOK_S, timeout_s))
            await watch.look(timeout_s)
        self._tell_of_stores(one for one in self._supervisor.running() if watch.key in self._keys_of(one))

    def _tell_of_stores(self, running: Iterable[Running]) -> None:
        for one in running:
            watches = [self._stores[key] for key in self._keys_of(one) if key in self._stores]
            found = [condition for watch in watches for condition in self._judge(watch)]
            # Of several stores the one that is worse off speaks for the mount.
            found.sort(key=lambda condition: condition.status == "False")
            self._supervisor.observe(one.spec.name, found)

    def _judge(self, watch: StoreWatch) -> list[Condition]:
        found, name, config = watch.found, watch.key.name, self._config()
        if found is None:
            return []
        conditions = judge_store(found, name, config.store_timeout)
        if not watch.is_local and found.credential:
            conditions.append(judge_credential(found, name, config, time.time()))
        if found.clock_error_s is not None and not watch.is_local:
            conditions.append(judge_clock(found.clock_error_s, config))
        return conditions


def _absent(status: MountStatus) -> tuple[Condition, ...]:
    if status.state in SERVING:
        return ()
    return (Condition("Mounted", "False", "Unmounted", f"it is {status.state}", status.since),)


def _tell_trouble(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("cannot look whether all is well", exc_info=error)
