"""A running blobfuse2 as its starter sees it: watched by pidfd, and how and with which last words it ended.

Nothing here ever sends it a signal but `kill`, which is for one that never served: only unmounting ends it well.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress

from amlmount.engines.base import ExitReason
from amlmount.redaction import redact
from amlmount.run import Process, is_same_process, spawn

log = logging.getLogger(__name__)
CGROUP_ROOT = "/sys/fs/cgroup"
TAIL_BYTES = 8192
TAIL_LINES = 12
KILLED_GRACE_S = 5.0
NOISE = ("Ignoring invalid max threads value", "initializePlugins: No plugins", "log: failed to open")


class Served:
    """One blobfuse2. `exited` resolves when it ends, for whatever reason."""

    def __init__(self, process: Process, output_path: str, log_path: str) -> None:
        self.process = process
        self._paths = (output_path, log_path)
        self._loop = asyncio.get_running_loop()
        self._oom_counter = oom_counter_of(process.pid)
        self._oom_kills = count_oom_kills(self._oom_counter)
        self.exited: asyncio.Future[ExitReason] = self._loop.create_future()
        if process.pidfd < 0:
            self.exited.set_result(ExitReason(-signal.SIGKILL))  # nobody saw how it ended
        else:
            self._loop.add_reader(process.pidfd, self._on_exit)

    @classmethod
    def start(
        cls, argv: Sequence[str], env: dict[str, str], fds: list[int], output_path: str, log_path: str
    ) -> "Served":
        """Start it in a session of its own, in `/`, with umask 022. Raises AmlmountError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        output = os.open(output_path, flags, 0o600)
        try:
            process = spawn(argv, env=env, pass_fds=fds, stdout=output, stderr=output, cwd="/", umask=0o022)
        finally:
            os.close(output)
        return cls(process, output_path, log_path)

    @classmethod
    def adopt(cls, pid: int, start_time: int, output_path: str, log_path: str) -> "Served":
        """Watch one that an earlier daemon started; `exited` is resolved if it is gone."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            pidfd = -1
        if pidfd >= 0 and not is_same_process(pid, start_time):
            os.close(pidfd)
            pidfd = -1
        return cls(Process(pid, pidfd, start_time, ()), output_path, log_path)

    async def ended(self, timeout_s: float) -> bool:
        """Wait for the end, at most `timeout_s` seconds; say whether it came."""
        await asyncio.wait([self.exited], timeout=max(0.0, timeout_s))
        return self.exited.done()

    async def kill(self) -> None:
        """SIGKILL: only for one that holds nothing."""
        if not self.exited.done():
            self.process.send_signal(signal.SIGKILL)
            if not await self.ended(KILLED_GRACE_S):
                log.error("blobfuse2 %d does not end on SIGKILL: it waits in the kernel", self.process.pid)

    def leave(self) -> None:
        """Stop watching one that goes on without us; `exited` never resolves then."""
        if self.process.pidfd >= 0:
            self._loop.remove_reader(self.process.pidfd)
            self.process.close()

    def last_words(self) -> str:
        """Return the last lines of its output and, if it said nothing there, of its log; no secret in them."""
        for path in self._paths:
            if words := _tail(path):
                return words
        return ""

    def _on_exit(self) -> None:
        code = self.process.poll()
        code = code if code is not None else -signal.SIGKILL
        killed = code == -signal.SIGKILL
        out_of_memory = killed and count_oom_kills(self._oom_counter) > self._oom_kills
        self.leave()
        if not self.exited.done():
            self.exited.set_result(ExitReason(code, self.last_words() if code and not killed else "", out_of_memory))


def _tail(path: str) -> str:
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        lines = redact(file.read().decode(errors="replace")).splitlines()
        kept = [line for line in lines if line.strip() and not any(noise in line for noise in NOISE)]
        return "\n".join(kept[-TAIL_LINES:])
    return ""


def oom_counter_of(pid: int, root: str = CGROUP_ROOT) -> str | None:
    """Return the file that counts OOM kills in a process's cgroup, None if there is none.

    memory.events of version 2 (cgroup-v2.rst), or memory.oom_control of version 1 (its line `N:memory:/path`).
    """
    with suppress(OSError), open(f"/proc/{pid}/cgroup") as file:
        for line in file:
            _, controllers, path = line.strip().split(":", 2)
            names = {"": f"{root}{path}/memory.events", "memory": f"{root}/memory{path}/memory.oom_control"}
            if (found := names.get(controllers)) is not None and os.path.exists(found):
                return found
    return None


def count_oom_kills(counter: str | None) -> int:
    """Return `oom_kill` of such a file, 0 if unknown."""
    with suppress(OSError, ValueError, TypeError), open(counter) as file:  # type: ignore[arg-type]
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
