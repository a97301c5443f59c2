"""The one interface behind which both engines stand; the supervisor knows nothing else of them.

An engine carries out; it decides nothing. The caller (supervisor or session) owns the `/dev/fuse`
descriptor of every mount through `Running.fuse_fd`, so a mount can outlive the process that serves it.
"""

import re
from asyncio import Future
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from amlmount.config.spec import MountSpec


@dataclass(frozen=True, slots=True)
class ExitReason:
    """How an engine's process ended: `returncode` as in subprocess (negative = signal), and its last words.

    `out_of_memory`: the kernel killed it (or one beside it in its cgroup) for want of memory.
    """

    returncode: int
    log_tail: str = ""
    out_of_memory: bool = False

    @property
    def text(self) -> str:
        """Say it as a person would: `killed by SIGKILL`, `exited with 1: ...`."""
        import signal

        if self.returncode < 0:
            try:
                what = f"killed by {signal.Signals(-self.returncode).name}"
                what += " because memory ran out" if self.out_of_memory else ""
            except ValueError:
                what = f"killed by signal {-self.returncode}"
        else:
            what = f"exited with {self.returncode}"
        last = self.log_tail.strip().splitlines()[-1:]
        # A worker that logs that all is well has not said why it ends.
        return f"{what}: {last[0]}" if last and not re.match(r"\S+ \S+ (INFO|DEBUG) ", last[0]) else what


@dataclass(slots=True)
class Running:
    """A mount that is being served. `exited` resolves when the engine's process ends, for whatever reason.

    `pid_start_time` is field 22 of /proc/PID/stat (clock ticks since boot): with `pid` it names the process
    for ever. `mount_id` is the kernel's, as in mountinfo. `fuse_fd` belongs to whoever holds this object, and so does
    `estate_fd`: what a successor needs besides (-1 where there is none). `negotiated` is what INIT agreed on, which a
    successor is not told again. `has_front`: an overlay stands before it, which takes no change of what it shows. The
    engine calls `on_stale` (with the reason) when only a new mount can go on well.
    """

    spec: MountSpec
    engine: str
    pid: int
    pid_start_time: int
    fuse_fd: int
    mount_id: int
    exited: "Future[ExitReason]"
    estate_fd: int = -1
    negotiated: dict[str, int] | None = None
    has_front: bool = False
    on_stale: Callable[[str], None] = lambda why: None


@runtime_checkable
class Askable(Protocol):
    """An engine whose mounts answer questions while they are served; `worker.controls` knows which."""

    async def ask(self, running: Running, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Return the answer. Raises what the mount answers, WaitTimeoutError, AmlmountError if its process is gone."""
        ...


@runtime_checkable
class TellsNews(Protocol):
    """An engine whose mounts tell what happens to them: `on_news` gets each `news` of `worker.orders`."""

    on_news: Callable[[dict[str, Any]], None]


class Engine(Protocol):
    """Start and stop mounts. All methods are coroutines of the supervisor's loop and never block it."""

    @property
    def name(self) -> str:
        """`python` or `blobfuse2`."""
        ...

    async def start(self, spec: MountSpec, *, timeout_s: float) -> Running:
        """Mount `spec` at its target (which exists and is an empty directory) and return once it answers.

        On failure or cancellation everything is undone (no mount, no process, no descriptor) and an
        AmlmountError says why: store errors (exit codes 3, 5, 6) come through as they are.
        """
        ...

    async def stop(self, running: Running, *, lazy: bool, timeout_s: float) -> None:
        """Unmount, wait for the process to end, close `fuse_fd`. Raises BusyError (with holders) unless `lazy`.

        Works on a dead or hung engine as well (then by abort and lazy unmount); never blocks on the mount. After a
        lazy stop a process that answers may go on with what is open; one that does not has ended when this returns.
        """
        ...


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of a mount that an earlier daemon made: by its record, and by the descriptors that were kept.

    `descriptors` by kind, as `TakesOver.descriptors` named them. The kernel has a mount of ours with `mount_id`.
    """

    spec: MountSpec
    pid: int
    pid_start_time: int
    mount_id: int
    negotiated: dict[str, int] | None
    descriptors: dict[str, int]


@runtime_checkable
class TakesOver(Engine, Protocol):
    """An engine whose mounts can outlive its processes: callers wait a moment, and get no error.

    `secure` is set by the caller, and awaited by the engine with what is about to be: before a mount is attached where
    it can be seen, and before a successor serves. Once it returns, the next daemon could adopt it.
    """

    secure: Callable[[Running], Awaitable[None]]

    def can_take_over(self, running: Running) -> bool:
        """Say whether the mount is still there to be served. Never waits."""
        ...

    async def take_over(self, running: Running, *, timeout_s: float) -> Running:
        """Serve the mount of `running`, whose process has ended or hangs (then it is killed), by another one.

        Returns what takes the place of `running`, which has no descriptors any more then. On failure or cancellation
        an AmlmountError says why, the mount is as it was, and this can be tried again.
        """
        ...

    def descriptors(self, running: Running) -> dict[str, int]:
        """Return by kind what has to be kept for a daemon that comes after this one; they stay ours."""
        ...

    def adopt(self, claim: Claim) -> Running:
        """Take over from an earlier daemon; the descriptors are ours then. Never waits.

        `exited` is resolved already if the process is gone: then this is for `take_over`. Raises AmlmountError if
        something is missing; the descriptors are closed then.
        """
        ...

    def is_hung(self, running: Running) -> bool:
        """Say whether requests lie unread since the last time this was asked. Never waits."""
        ...


@runtime_checkable
class Replaces(TakesOver, Protocol):
    """An engine whose mounts can take the place of others without a moment in which there is none."""

    def why_not_beneath(self) -> str | None:
        """Say why a mount cannot be slipped beneath another on this machine, None if it can."""
        ...

    async def start_beneath(self, spec: MountSpec, *, timeout_s: float) -> Running:
        """As `start`, but beneath what is mounted at the target: it shows when that is taken away."""
        ...

    async def abandon(self, running: Running, *, timeout_s: float) -> None:
        """End its processes and its connection, so that callers get errors, and leave the dead mount where it is.

        Its descriptors are closed. Works in any state, and never blocks on the mount.
        """
        ...
