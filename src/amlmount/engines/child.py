"""A worker process as its starter sees it: started, talked to, watched by pidfd, and its last words.

It knows nothing of mounts; `engines.python` does.
"""

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from amlmount.engines.base import ExitReason
from amlmount.engines.forkserver import ForkServer, ForkServerGoneError
from amlmount.errors import AmlmountError, WaitTimeoutError, from_json
from amlmount.run import Process, is_same_process, spawn
from amlmount.worker.channel import Channel, Message, pair
from amlmount.worker.orders import ASK, ERROR, NEWS

Ended = Callable[[], Awaitable[int | None]]
TAIL_BYTES = 4096
log = logging.getLogger(__name__)
KILLED_GRACE_S = 5.0
ANSWERS_WITHIN_S = 3.0  # long enough for one that waits for a busy machine's CPU


class Child:
    """One worker. `exited` resolves when it ends, for whatever reason, and everything it held here is closed then."""

    def __init__(self, process: Process, channel: Channel, log_fd: int, ended: Ended | None = None) -> None:
        """`ended` says how it ended, if it is no child of ours that we could ask the kernel about."""
        self.process = process
        self._channel = channel
        self._log_fd = log_fd
        self._how = ended
        self._learning: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[ExitReason] = self._loop.create_future()
        self._numbers = itertools.count(time.monotonic_ns())  # an earlier daemon's questions have other numbers
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._on_news: Callable[[dict[str, Any]], None] | None = None
        self._listening: asyncio.Task[None] | None = None
        if process.pidfd >= 0:
            self._loop.add_reader(process.pidfd, self._on_exit)

    @classmethod
    def start(cls, name: str, log_path: str | None) -> "Child":
        """Start a worker that waits for its StartOrder. `log_path` None: the log is a file without a name.

        It gets our environment as it is, because secrets may be references to it. Raises AmlmountError.
        """
        ours, theirs = pair()
        log_fd = open_log(log_path)
        argv = [sys.executable, "-P", "-m", "amlmount.worker", name, str(theirs.fileno())]
        try:
            with theirs:
                process = spawn(argv, env=os.environ, pass_fds=[theirs.fileno()], stdout=log_fd, stderr=log_fd)
        except BaseException:
            ours.close()
            os.close(log_fd)
            raise
        return cls(process, Channel(ours), log_fd)

    @classmethod
    async def fork(cls, server: ForkServer, name: str, log_path: str | None, store_types: list[str]) -> "Child":
        """As `start`, but at once, by a fork server. Raises AmlmountError."""
        try:
            return await cls._fork(server, name, log_path, store_types)
        except ForkServerGoneError as error:
            log.warning("%s; starting another", error.message)
            # With a socket of its own: the one before may have made a worker before it went away.
            return await cls._fork(server, name, log_path, store_types)

    @classmethod
    async def _fork(cls, server: ForkServer, name: str, log_path: str | None, store_types: list[str]) -> "Child":
        ours, theirs = pair()
        log_fd = open_log(log_path)
        try:
            with theirs:
                process = await server.fork(name, theirs.fileno(), log_fd, store_types)
        except BaseException:
            ours.close()
            os.close(log_fd)
            raise
        return cls(process, Channel(ours), log_fd, lambda: server.returncode(process.pid))

    @classmethod
    def adopt(cls, pid: int, start_time: int, channel_fd: int, log_path: str | None) -> "Child":
        """Take over a worker that an earlier daemon started; `exited` is resolved if it is gone. Owns `channel_fd`."""
        sock = socket.socket(fileno=channel_fd)
        sock.setblocking(False)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            pidfd = -1
        if pidfd >= 0 and is_same_process(pid, start_time):
            return cls(Process(pid, pidfd, start_time, ()), Channel(sock), open_log(log_path), _nobody_saw)
        if pidfd >= 0:
            os.close(pidfd)
        gone = cls(Process(pid, -1, start_time, ()), Channel(sock), open_log(log_path), _nobody_saw)
        gone.exited.set_result(ExitReason(-signal.SIGKILL, gone._log_tail()))
        gone._channel.close()
        os.close(gone._log_fd)
        return gone

    @property
    def channel_fd(self) -> int:
        """Our end of what it talks on; another process that has it can go on."""
        return self._channel.fileno()

    async def tell(self, body: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a message. Raises AmlmountError if the worker is gone."""
        try:
            if descriptors:
                self._channel.send(body, descriptors)
            else:
                await self._channel.send_soon(body)
        except OSError:
            raise await self._why_gone() from None

    async def expect(self, op: str) -> Message:
        """Return the next message, which must be `op`. Raises the error that came instead, or AmlmountError."""
        try:
            message = await self._channel.receive_soon()
        except OSError:
            message = None
        if message is None:
            raise await self._why_gone()
        if message.body.get("op") == ERROR:
            raise from_json(message.body)
        if message.body.get("op") != op:
            raise AmlmountError(f"cannot understand the worker: it says '{message.body.get('op')}', not '{op}'")
        return message

    async def ask(self, what: str, how: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Return the answer to a question. Raises what the worker answers, WaitTimeoutError, AmlmountError if gone.

        Only for a worker that serves: from then on it says nothing but answers.
        """
        number, answer = next(self._numbers), self._loop.create_future()
        self._asked[number] = answer
        try:
            await self.tell({"op": ASK, "number": number, "what": what, "with": how})
            if self._listening is None or self._listening.done():
                self._listening = self._loop.create_task(self._listen())
            async with asyncio.timeout(timeout_s):
                return _result(await answer)
        except TimeoutError:
            raise WaitTimeoutError(f"cannot get an answer from the worker within {timeout_s:g} s") from None
        finally:
            del self._asked[number]
            if not self._asked and self._listening is not None and self._on_news is None:
                self._listening.cancel()
                self._listening = None  # it ends in its own time: whoever asks now must not rely on it

    async def let_go_alive(self) -> bool:
        """`let_go` of one that answers, or is gone; False, and nothing done, of one that hangs."""
        try:
            await self.ask("program", {}, timeout_s=ANSWERS_WITHIN_S)
        except WaitTimeoutError:
            return False
        except AmlmountError as error:
            log.debug("lets go of worker %d, which does not answer: %s", self.process.pid, error.message)
        self.let_go()
        return True

    def listen(self, on_news: Callable[[dict[str, Any]], None]) -> None:
        """Hear from now on, and until its end, what a worker that serves says unasked."""
        self._on_news = on_news
        if not self.exited.done() and (self._listening is None or self._listening.done()):
            self._listening = self._loop.create_task(self._listen())

    async def _listen(self) -> None:
        """Hand answers to who waits for them; those nobody waits for any more are dropped."""
        while True:
            try:
                message = await self._channel.receive_soon()
            except ValueError:  # the end of a line whose beginning an earlier daemon has read
                continue
            except OSError:
                message = None
            if message is None:
                break
            if message.body.get("op") == NEWS and self._on_news is not None:
                self._on_news(message.body)
                continue
            waiting = self._asked.get(message.body.get("number", -1))
            if waiting is not None and not waiting.done():
                waiting.set_result(message.body)
        if not self._asked:
            return
        why = await self._why_gone()
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(why)

    async def ended(self, timeout_s: float) -> bool:
        """Wait for the end, at most `timeout_s` seconds; say whether it came."""
        await asyncio.wait([self.exited], timeout=max(0.0, timeout_s))
        return self.exited.done()

    async def kill(self) -> bool:
        """SIGKILL; False if it has not ended some seconds later (it hangs in the kernel)."""
        if not self.exited.done():
            self.process.send_signal(signal.SIGKILL)
        return await self.ended(KILLED_GRACE_S)

    def let_go(self) -> None:
        """Talk to it no more; it is still reaped when it ends."""
        self._channel.close()

    def leave(self) -> None:
        """Close what we hold of a worker that goes on without us; `exited` never resolves then."""
        if not self.exited.done():
            self._release()

    def _on_exit(self) -> None:
        self._loop.remove_reader(self.process.pidfd)
        if self._how is None:
            self._has_ended(self.process.poll())
        else:
            self._learning = self._loop.create_task(self._learn(self._how))

    async def _learn(self, how: Ended) -> None:
        self._has_ended(await how())

    def _has_ended(self, code: int | None) -> None:
        reason = ExitReason(code if code is not None else -signal.SIGKILL, self._log_tail())
        self._release()
        if not self.exited.done():
            self.exited.set_result(reason)

    def _release(self) -> None:
        if self.process.pidfd < 0:
            return
        self._loop.remove_reader(self.process.pidfd)
        self.process.close()
        self._channel.close()
        os.close(self._log_fd)

    def _log_tail(self) -> str:
        with suppress(OSError):
            start = max(0, os.fstat(self._log_fd).st_size - TAIL_BYTES)
            return os.pread(self._log_fd, TAIL_BYTES, start).decode(errors="replace")
        return ""

    async def _why_gone(self) -> AmlmountError:
        if not await self.ended(KILLED_GRACE_S):
            return AmlmountError("cannot talk to the worker: it closed its socket and goes on")
        reason = self.exited.result()
        return AmlmountError(f"cannot serve the mount: its worker {reason.text}", details={"log": reason.log_tail})


def _result(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise from_json(answer["error"])
    result: dict[str, Any] = answer["result"]
    return result


async def _nobody_saw() -> int | None:
    """It is no child of ours, so the kernel does not tell us how it ended."""
    return None


def open_log(path: str | None) -> int:
    """Open a worker's log for appending (mode 0600) and reading back; without a path, a file that has no name."""
    if path is None:
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
