"""An engine and a host that exist only in memory, scripted by the test, and a supervisor around them."""

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from amlmount.config.spec import MountSpec
from amlmount.engines.base import Claim, Engine, ExitReason, Running
from amlmount.errors import AmlmountError, BusyError
from amlmount.states import RestartPolicy
from amlmount.supervisor import MadeTarget, MountRecord, RecordStore, Supervisor, Surroundings

POLICY = {
    "profile": "standard",
    "attr_timeout_s": 1,
    "entry_timeout_s": 1,
    "negative_timeout_s": 1,
    "list_ttl_s": 1,
    "no_open": False,
    "pinned": False,
    "keep_cache": True,
    "direct_io": False,
    "max_read_bytes": 1,
    "read_ahead_max_bytes": 1,
    "prefetch_small_bytes": 0,
    "prefetch_budget_bytes": 0,
    "cache_on_disk": False,
}


def spec_named(name: str, target: str | None = None) -> MountSpec:
    return MountSpec.model_validate(
        {
            "name": name,
            "target": target or f"/fake/{name}",
            "sources": (),
            "description": f"source of {name}",
            "read_only": True,
            "engine": "auto",
            "policy": POLICY,
            "ownership": {"uid": 0, "gid": 0, "file_mode": 0o444, "dir_mode": 0o555},
            "allow_other": False,
        }
    )


async def nobody_comes_after(running: Running) -> None:
    """See TakesOver.secure."""


@dataclass
class FakeEngine:
    """Starts and stops at once unless a gate is closed; `start_errors` and `stop_errors` are raised one by one."""

    name: str = "python"
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    stop_gate: asyncio.Event = field(default_factory=asyncio.Event)
    start_errors: list[BaseException] = field(default_factory=list)
    stop_errors: list[BaseException] = field(default_factory=list)
    take_over_errors: list[BaseException] = field(default_factory=list)
    takes_over: bool = False
    hung: set[str] = field(default_factory=set)
    died_unseen: bool = False
    beneath_refused: str | None = "not in memory"
    secure: Callable[[Running], Awaitable[None]] = field(default=nobody_comes_after)
    busy: bool = False
    alive: dict[str, Running] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    starting: int = 0
    most_starting: int = 0
    _pids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1000))

    def __post_init__(self) -> None:
        self.gate.set()
        self.stop_gate.set()

    async def start(self, spec: MountSpec, *, timeout_s: float) -> Running:
        self.log.append(f"start {spec.name}")
        self.starting += 1
        self.most_starting = max(self.most_starting, self.starting)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            if self.start_errors:
                raise self.start_errors.pop(0)
        except asyncio.CancelledError:
            self.log.append(f"undo {spec.name}")
            raise
        finally:
            self.starting -= 1
        assert spec.name not in self.alive, "started twice"
        exited: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()
        running = Running(spec, self.name, next(self._pids), 1, -1, 1, exited)
        await self.secure(running)
        self.alive[spec.name] = running
        return running

    async def stop(self, running: Running, *, lazy: bool, timeout_s: float) -> None:
        self.log.append(f"stop {running.spec.name}" + (" lazily" if lazy else ""))
        await self.stop_gate.wait()
        if self.stop_errors:
            raise self.stop_errors.pop(0)
        if self.busy and not lazy:
            raise BusyError(
                f"cannot unmount '{running.spec.target}': in use by cat (pid 7, open file /x)",
                details={"holders": [{"pid": 7, "command": "cat", "what": "open file /x"}]},
            )
        if self.alive.get(running.spec.name, running) is running:
            self.alive.pop(running.spec.name, None)
        if not running.exited.done():
            running.exited.set_result(ExitReason(0))

    def kill(self, name: str, returncode: int = -9) -> None:
        self.alive[name].exited.set_result(ExitReason(returncode))

    def can_take_over(self, running: Running) -> bool:
        return self.takes_over

    async def take_over(self, running: Running, *, timeout_s: float) -> Running:
        self.log.append(f"take over {running.spec.name}")
        await self.gate.wait()
        if self.take_over_errors:
            raise self.take_over_errors.pop(0)
        exited: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()
        successor = replace(running, pid=next(self._pids), exited=exited)
        await self.secure(successor)
        self.alive[running.spec.name] = successor
        self.hung.discard(running.spec.name)
        return self.alive[running.spec.name]

    def descriptors(self, running: Running) -> dict[str, int]:
        return {}

    def adopt(self, claim: Claim) -> Running:
        self.log.append(f"adopt {claim.spec.name}")
        exited: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()
        running = Running(claim.spec, self.name, claim.pid, claim.pid_start_time, -1, claim.mount_id, exited)
        self.alive[claim.spec.name] = running
        if self.died_unseen:
            exited.set_result(ExitReason(-9))
        return running

    def why_not_beneath(self) -> str | None:
        return self.beneath_refused

    async def start_beneath(self, spec: MountSpec, *, timeout_s: float) -> Running:
        self.log.append(f"start {spec.name} beneath")
        await self.gate.wait()
        if self.start_errors:
            raise self.start_errors.pop(0)
        exited: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()
        running = Running(spec, self.name, next(self._pids), 1, -1, 2, exited)
        await self.secure(running)
        self.alive[spec.name] = running
        return running

    async def abandon(self, running: Running, *, timeout_s: float) -> None:
        self.log.append(f"abandon {running.spec.name}")
        self.alive.pop(running.spec.name, None)

    def is_hung(self, running: Running) -> bool:
        return running.spec.name in self.hung


@dataclass
class FakeHost:
    """Remembers what was made and removed; a target in `refused` cannot be prepared, one in `mounted` not removed.

    A leftover is `mounted` until `end_leftover` returns, which it does not before `may_end` is set.
    """

    present: set[str] = field(default_factory=set)
    refused: dict[str, AmlmountError] = field(default_factory=dict)
    ended: list[MountRecord] = field(default_factory=list)
    mounted: set[str] = field(default_factory=set)
    may_end: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_end.set()

    def prepare_target(self, target: str, *, keep_dead: bool = False) -> MadeTarget:
        if target in self.refused:
            raise self.refused[target]
        if target in self.present:
            return MadeTarget()
        self.present.add(target)
        return MadeTarget((target,), 1)

    def plan_target(self, target: str) -> MadeTarget:
        missing = self.missing_directories(target)
        return MadeTarget(missing, 1) if missing else MadeTarget()

    def missing_directories(self, target: str) -> tuple[str, ...]:
        if target in self.refused:
            raise self.refused[target]
        return () if target in self.present else (target,)

    def remove_target(self, made: MadeTarget) -> None:
        self.present.difference_update(set(made.created) - self.mounted)

    def end_leftover(self, record: MountRecord, *, keep_dead: bool = False) -> None:
        self.ended.append(record)
        assert self.may_end.wait(5)
        self.mounted.discard(record.target)

    def has_mount(self, record: MountRecord) -> bool:
        return record.target in self.mounted

    def take_off(self, target: str, mount_id: int) -> None:
        self.mounted.discard(target)

    def dead_mount(self, target: str) -> int | None:
        return None

    def evidence(self, pid: int) -> dict[str, str]:
        return {}


@dataclass
class FakeWorld:
    """A supervisor of fakes. Make it inside a running loop."""

    records: RecordStore
    names: tuple[str, ...] = ("a", "b")
    policy: RestartPolicy = field(default_factory=lambda: RestartPolicy(first_delay_s=0.01, max_delay_s=0.02))
    engine: FakeEngine = field(default_factory=FakeEngine)
    host: FakeHost = field(default_factory=FakeHost)

    def __post_init__(self) -> None:
        self.supervisor = Supervisor(self.around(), [spec_named(name) for name in self.names])

    def around(self) -> Surroundings:
        select: Callable[[MountSpec], tuple[Engine, str]] = lambda _: (self.engine, "blobfuse2 not installed")  # noqa: E731
        return Surroundings(select, self.host, self.records, policy=self.policy)

    def states(self) -> dict[str, str]:
        return {status.name: status.state.value for status in self.supervisor.status()}

    async def until(self, **wanted: str) -> None:
        """Wait until the named mounts are in these states."""
        async with asyncio.timeout(5):
            while any(self.states()[name] != state for name, state in wanted.items()):
                await asyncio.sleep(0.001)


Scenario = Callable[[FakeWorld], Coroutine[Any, Any, None]]
Play = Callable[[Scenario], None]


async def as_it_is(world: FakeWorld) -> None:
    """Begin a scenario with nothing mounted."""


def play_out(
    folder: Path, scenario: Scenario, *, begin: Scenario = as_it_is, names: tuple[str, ...] = ("a", "b")
) -> None:
    """Run a scenario in a world of its own, under a deadline, and check that it left nothing."""

    async def whole() -> None:
        async with asyncio.timeout(10):
            world = FakeWorld(RecordStore(str(folder / "mounts")), names=names)
            await begin(world)
            await scenario(world)
            await world.supervisor.close(timeout_s=2)
            assert set(world.states().values()) <= {"unmounted"}
            assert not world.engine.alive and not world.host.present
            assert not (folder / "mounts").exists(), "records were left"
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(whole())
