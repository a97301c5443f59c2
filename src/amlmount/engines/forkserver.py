"""The fork server as the engine sees it: started when first needed, started again if it dies, asked for workers."""

import asyncio
import itertools
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from amlmount.errors import AmlmountError
from amlmount.run import Process, spawn, start_time_ticks
from amlmount.worker.channel import Channel, pair
from amlmount.worker.forkserver import EXITED, FORK

ANSWER_TIMEOUT_S = 20.0
REPORT_TIMEOUT_S = 2.0


class ForkServerGoneError(AmlmountError):
    """It does not answer, or has ended."""


class ForkServer:
    """Makes worker processes. Bound to the event loop it is used in; one for all engines of a daemon."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._channel: Channel | None = None
        self._listener: asyncio.Task[None] | None = None
        self._orders = itertools.count()
        self._forks: dict[int, asyncio.Future[Process]] = {}
        self._ends: dict[int, asyncio.Future[int | None]] = {}

    async def fork(self, name: str, socket_fd: int, log_fd: int, store_types: list[str]) -> Process:
        """Return a new worker that talks on `socket_fd` and logs to `log_fd` (both stay the caller's).

        Raises ForkServerGoneError: the next call starts another server, but a worker with this socket may be there.
        """
        channel, order = self._ready_channel(), next(self._orders)
        forked = self._forks[order] = asyncio.get_running_loop().create_future()
        body = {"op": FORK, "order": order, "name": name, "store_types": store_types}
        try:
            channel.send(body, [socket_fd, log_fd])
            return await asyncio.wait_for(forked, ANSWER_TIMEOUT_S)
        except (OSError, EOFError, TimeoutError) as error:
            if self._channel is channel:
                self.close()
            text = f"cannot start a worker: the fork server does not answer ({error})"
            raise ForkServerGoneError(text, hint="see daemon.log") from None
        finally:
            del self._forks[order]

    async def returncode(self, pid: int) -> int | None:
        """Return how a worker of ours ended, None if nobody can say."""
        end = self._ends.get(pid)
        if end is None:
            return None
        await asyncio.wait([end], timeout=REPORT_TIMEOUT_S)
        del self._ends[pid]
        return end.result() if end.done() else None

    def close(self) -> None:
        """End the server; workers go on."""
        if self._listener is not None:
            self._listener.cancel()
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            _reap(self._process)
        self._listener = self._channel = self._process = None
        self._nobody_answers()

    def _ready_channel(self) -> Channel:
        if self._channel is not None and self._listener is not None and not self._listener.done():
            return self._channel
        self.close()
        ours, theirs = pair()
        with theirs:
            argv = [sys.executable, "-P", "-m", "amlmount.worker.forkserver", str(theirs.fileno())]
            # Its environment is what workers get: secrets may be references to it.
            self._process = spawn(argv, env=os.environ, pass_fds=[theirs.fileno()], stderr=2, cwd="/")
        self._channel = Channel(ours)
        self._listener = asyncio.create_task(self._listen(self._channel), name="fork server")
        return self._channel

    async def _listen(self, channel: Channel) -> None:
        try:
            while (message := await channel.receive_soon()) is not None:
                self._note(message.body, message.descriptors)
        except OSError:
            pass
        finally:
            if self._channel is channel:
                self._nobody_answers()

    def _nobody_answers(self) -> None:
        for forked in self._forks.values():
            if not forked.done():
                forked.set_exception(EOFError("it has ended"))
        for end in self._ends.values():
            if not end.done():
                end.set_result(None)

    def _note(self, body: dict[str, Any], descriptors: list[int]) -> None:
        if body["op"] == EXITED:
            end = self._ends.get(body["pid"])
            if end is not None and not end.done():
                end.set_result(body["returncode"])
            return
        pid, forked = body["pid"], self._forks.get(body["order"])
        process = Process(pid, descriptors[0], start_time_ticks(pid) or 0, ("amlmount.worker",))
        if forked is None or forked.done():  # nobody waits for it any more
            process.send_signal(signal.SIGKILL)
            process.close()
            return
        self._ends[pid] = asyncio.get_running_loop().create_future()
        forked.set_result(process)


def _reap(process: Process) -> None:
    """Close what we hold of a server that ends because its channel has closed; it must not stay a zombie."""
    loop = asyncio.get_running_loop()

    def collect() -> None:
        loop.remove_reader(process.pidfd)
        process.poll()
        process.close()

    with suppress(RuntimeError):
        loop.add_reader(process.pidfd, collect)
