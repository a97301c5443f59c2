"""Kills a daemon at every await point of an operation, one after the other: `killpoints.py OP ROOT SOURCE`.

An await point is wherever a task of a mount gives up the event loop or gets it back; they are counted, not guessed. For
each, a process begins the operation and is killed there; another recovers. Prints a JSON line for each point and ends
when the operation came to its end. Each process is a fork of this one, so nothing is loaded twice.
"""

import asyncio
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

from amlmount.config.spec import MountSpec
from amlmount.descriptors.keeping import KeeperStore
from amlmount.engines import select_engine
from amlmount.engines.forkserver import ForkServer
from amlmount.run import spawn
from amlmount.states import MountState
from amlmount.supervisor import KernelHost, RecordStore, Supervisor, Surroundings
from amlmount.worker.channel import Channel, pair
from mounting import spec_of
from readers import Readers
from sandbox import all_processes, command_line, mounts_below

Operation = Callable[["Daemon"], Awaitable[None]]
SETTLE_S = 10.0


class Killer:
    """Counts await points of tasks that work on a mount, and ends this process at one of them."""

    def __init__(self, at: int) -> None:
        self.count = 0
        self._at = at
        self.is_armed = False

    def tick(self) -> None:
        if self.is_armed:
            self.count += 1
            if self.count == self._at:
                os.kill(os.getpid(), signal.SIGKILL)

    def make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **named: Any) -> "asyncio.Task[Any]":
        return asyncio.Task(_Counted(work, self), loop=loop, **named)


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine that counts when it is resumed and when it suspends, if its task is one of a mount's work."""

    def __init__(self, work: Coroutine[Any, Any, Any], killer: Killer) -> None:
        self._work = work
        self._killer = killer

    def _tick(self) -> None:
        task = asyncio.current_task()
        if task is not None and task.get_name().startswith("mount "):
            self._killer.tick()

    def send(self, value: Any) -> Any:
        self._tick()
        found = self._work.send(value)
        self._tick()
        return found

    def throw(self, *error: Any) -> Any:
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work.__await__()


class Daemon:
    """A supervisor as a daemon has one, on the ground of this run."""

    def __init__(self, ground: "Ground", spec: MountSpec) -> None:
        self.ground = ground
        self.store = KeeperStore(ground.runtime_dir)
        self.forks = ForkServer()
        self.forks._channel = Channel(ground.forks.dup())
        self.forks._orders = itertools.count(random.getrandbits(50))
        self.forks._listener = asyncio.get_running_loop().create_task(self.forks._listen(self.forks._channel))
        around = Surroundings(
            lambda spec: select_engine(spec, forks=self.forks, log_dir=ground.log_dir),
            KernelHost(),
            RecordStore(f"{ground.runtime_dir}/mounts"),
            self.store,
        )
        self.supervisor = Supervisor(around, [spec])
        self.supervisor.recover(self.store.recall())

    def status(self) -> Any:
        return self.supervisor.status()[0]

    async def settle(self) -> None:
        async with asyncio.timeout(SETTLE_S):
            while self.status().state in (MountState.PENDING, MountState.MOUNTING, MountState.UNMOUNTING) or (
                self.status().is_orphaned
            ):
                await asyncio.sleep(0.005)
            await self.supervisor.leave(timeout_s=SETTLE_S)

    async def up(self) -> None:
        outcome = await self.supervisor.up(None, wait=True, timeout_s=SETTLE_S)
        assert not outcome.errors, outcome.errors

    async def down(self) -> None:
        outcome = await self.supervisor.down(None, lazy=False, timeout_s=SETTLE_S)
        assert not outcome.errors, outcome.errors

    async def reload(self) -> None:
        self.supervisor.update([self.ground.changed])
        outcome = await self.supervisor.reload(timeout_s=SETTLE_S)
        assert not outcome.errors, outcome.errors

    async def takeover(self) -> None:
        os.kill(self.status().pid, signal.SIGKILL)
        async with asyncio.timeout(SETTLE_S):
            while self.status().restarts == 0 or self.status().is_orphaned:
                await asyncio.sleep(0.005)


class Ground:
    """What all processes of a run share."""

    def __init__(self, root: str, source: str) -> None:
        self.runtime_dir, self.log_dir = f"{root}/run", f"{root}/log"
        for path in (self.runtime_dir, self.log_dir):
            os.mkdir(path, 0o700)
        self.name = f"kp{os.getpid()}"
        self.source, self.target = source, f"{root}/mnt"
        self.spec = spec_of(source, self.target, name=self.name)
        self.changed = spec_of(source, self.target, name=self.name, description="changed")
        self.forks, theirs = pair()
        with theirs:
            argv = [sys.executable, "-P", "-m", "amlmount.worker.forkserver", str(theirs.fileno())]
            self.fork_server = spawn(argv, env=os.environ, pass_fds=[theirs.fileno()], stderr=2)

    def workers(self) -> list[int]:
        """Return the workers of this run's mount."""
        return [pid for pid, _ in all_processes() if command_line(pid) == f"amlmount.worker {self.name}"]

    def mounts(self) -> list[str]:
        return [point for _, point in mounts_below(self.target)]

    def play(self, what: Operation, *, kill_at: int = 0, spec: MountSpec | None = None) -> tuple[int, int]:
        """Run `what` in a daemon of its own, with all that was before left as it is; return exit code and count."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                count = asyncio.run(self._play(what, kill_at, spec or self.spec))
                os.write(writer, str(count).encode())
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        os.close(writer)
        said = os.read(reader, 100)
        os.close(reader)
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), int(said or b"0")

    async def _play(self, what: Operation, kill_at: int, spec: MountSpec) -> int:
        killer = Killer(kill_at)
        asyncio.get_running_loop().set_task_factory(killer.make_task)
        daemon = Daemon(self, spec)
        if kill_at != 0:
            await daemon.settle()
        killer.is_armed = kill_at != 0
        await what(daemon)
        killer.is_armed = False
        await daemon.supervisor.leave(timeout_s=SETTLE_S)
        daemon.store.close()
        return killer.count


async def nothing(daemon: Daemon) -> None:
    """Recover, and no more."""
    await daemon.settle()


async def up(daemon: Daemon) -> None:
    """Bring it up, whatever there was."""
    await daemon.up()


async def down(daemon: Daemon) -> None:
    """Take it down, whatever there was."""
    await daemon.settle()
    await daemon.down()


OPERATIONS: dict[str, tuple[bool, Operation, Operation]] = {
    # whether it is mounted before; what is killed; what a user does then
    "up": (False, Daemon.up, up),
    "down": (True, Daemon.down, nothing),
    "takeover": (True, Daemon.takeover, nothing),
    "reload": (True, Daemon.reload, nothing),
}


def one_point(ground: Ground, name: str, kill_at: int) -> dict[str, Any]:
    """Kill at one point, recover, look; `trouble` is empty if all is as it must be."""
    is_mounted, operation, afterwards = OPERATIONS[name]
    trouble: list[str] = []
    readers = None
    if is_mounted:
        assert ground.play(up)[0] == 0
        if name != "down":
            readers = Readers(ground.source, ground.target, threads=1)
            readers.wait_until_ready()
    code, count = ground.play(operation, kill_at=kill_at)
    recovered, _ = ground.play(afterwards, spec=ground.changed if name == "reload" else None)
    if recovered != 0:
        trouble.append("the next daemon does not reach the state")
    if readers is not None:
        tally = readers.tally()
        trouble += tally["errors"][:3] + tally["wrong"][:3]
        readers.kill()
    gone = name == "down" and not ground.mounts()
    until(lambda: len(ground.workers()) == (0 if gone else 1))
    if len(ground.mounts()) != (0 if gone else 1) or len(ground.workers()) != (0 if gone else 1):
        trouble.append(f"mounts {ground.mounts()}, workers {ground.workers()}")
    elif not gone and not _answers(ground.target):
        trouble.append("it does not answer")
    if ground.play(down)[0] != 0:
        trouble.append("cannot be taken down")
    until(lambda: not ground.workers())
    if ground.mounts() or ground.workers() or os.path.lexists(ground.target):
        trouble.append(f"left: mounts {ground.mounts()}, workers {ground.workers()}")
    if os.listdir(ground.runtime_dir) not in ([], ["keeper.sock"]):
        trouble.append(f"left in the runtime directory: {os.listdir(ground.runtime_dir)}")
    with suppress(OSError):
        os.rmdir(ground.target)
    return {"operation": name, "point": kill_at, "killed": code == -signal.SIGKILL, "count": count, "trouble": trouble}


def until(what: Callable[[], object]) -> None:
    """Wait a little for what comes by itself."""
    deadline = time.monotonic() + 5
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)


def _answers(target: str) -> bool:
    pid = os.fork()
    if pid == 0:
        with suppress(OSError):
            os._exit(0 if os.listdir(target) else 1)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def main() -> None:
    """Go through all points."""
    name, root, source = sys.argv[1:4]
    step = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    ground = Ground(root, source)
    for kill_at in itertools.count(1, step):
        found = one_point(ground, name, kill_at)
        print(json.dumps(found), flush=True)
        if not found["killed"]:
            break
    ground.forks.close()
    ground.fork_server.wait(5)
    os._exit(0)


if __name__ == "__main__":
    main()
