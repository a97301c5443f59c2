"""What a dead blobfuse2 left open is handed to an heir: a process that serves its connection until the last is closed.

Needs CAP_SYS_ADMIN (all processes are looked through) and, for what was under way, FUSE_NOTIFY_RESEND (Linux 6.9).
"""

import asyncio
import os
import re
import signal
import sys

from amlmount.afterlife.held import View, look, views_of
from amlmount.afterlife.plan import Plan
from amlmount.engines.blobfuse2.salvaging import tell
from amlmount.errors import AmlmountError
from amlmount.fuse.negotiate import minor_cap
from amlmount.mounts import MountEntry
from amlmount.recovery import Folder
from amlmount.run import Process, spawn

RESEND_SINCE, RESEND_SINCE_MINOR = (6, 9), 40
LOG_MOST_BYTES = 1 << 20
KILLED_GRACE_S = 2.0
WORDS_BYTES = 1 << 16
READY, SERVING = "ready", "serving"  # see `amlmount.afterlife.__main__`


def kernel_resends() -> bool:
    """Say whether requests that a dead server had read come again."""
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    return release >= RESEND_SINCE and minor_cap() >= RESEND_SINCE_MINOR


def take_stock(entry: MountEntry, before: Plan | None = None, *, detached: bool = False) -> Plan:
    """Note who holds what of a mount whose server is dead; what was seen `before` still counts. Blocks."""
    views = {entry.mount_id: View(entry.mount_point, entry.root)} if detached else views_of(entry)
    device = entry.dev_major, entry.dev_minor
    held = look(device, views)
    if before is not None:
        held, views = {**before.held, **held}, {**before.views, **views}
    return Plan(entry.mount_point, entry.mount_id, device, views, held, kernel_resends())


class Heir:
    """The process, watched by its pidfd. `ended` resolves at its end."""

    def __init__(self, process: Process, folder: Folder, words_fd: int) -> None:
        self.folder = folder
        self._words_fd, self._unfinished = words_fd, b""
        self._process = process
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(process.pidfd, self._on_end)
        self._heard: dict[str, asyncio.Future[bool]] = {word: self._loop.create_future() for word in (READY, SERVING)}
        self._loop.add_reader(words_fd, self._on_words)

    @classmethod
    def start(cls, folder: Folder, plan: Plan, fuse_fd: int, log_path: str) -> "Heir":
        """Start it on the connection; it serves once another mount is in the old one's place. Raises AmlmountError."""
        argv = [sys.executable, "-P", "-m", "amlmount.afterlife", folder.path, str(fuse_fd)]
        words_fd, its_fd = os.pipe()
        try:
            plan.write(folder)
            log_fd = _open_log(log_path)
        except OSError as error:
            os.close(words_fd)
            os.close(its_fd)
            raise AmlmountError(f"cannot serve what is open in '{plan.target}': {error}") from error
        try:
            passed = [fuse_fd, its_fd]
            process = spawn(
                [*argv, str(its_fd)], env=os.environ, pass_fds=passed, stdout=log_fd, stderr=log_fd, cwd="/"
            )
        except BaseException:
            os.close(words_fd)
            raise
        finally:
            os.close(its_fd)
            os.close(log_fd)
        return cls(process, folder, words_fd)

    async def ready(self) -> None:
        """Wait until it only waits for the new mount. Raises AmlmountError if it ended instead."""
        if not await asyncio.shield(self._heard[READY]):
            raise AmlmountError(f"cannot serve what is open in the dead mount of '{self.folder.instance.mount}'")

    async def serving(self, timeout_s: float) -> None:
        """Wait until it answers, at most `timeout_s` seconds: who dies next then has none of its requests."""
        await asyncio.wait([self._heard[SERVING]], timeout=timeout_s)

    async def kill(self) -> None:
        """End one that only waits."""
        if not self.ended.done():
            self._process.send_signal(signal.SIGKILL)
            await asyncio.wait([self.ended], timeout=KILLED_GRACE_S)

    def _on_words(self) -> None:
        said = os.read(self._words_fd, WORDS_BYTES)
        if not said:
            self._loop.remove_reader(self._words_fd)
            os.close(self._words_fd)
            for heard in self._heard.values():
                if not heard.done():
                    heard.set_result(False)
            return
        *lines, self._unfinished = (self._unfinished + said).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if text not in self._heard:
                tell(text)
            elif not self._heard[text].done():
                self._heard[text].set_result(True)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._process.pidfd)
        self._process.poll()
        self._process.close()
        if not self.ended.done():
            self.ended.set_result(None)


def _open_log(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    if os.fstat(descriptor).st_size > LOG_MOST_BYTES:
        os.ftruncate(descriptor, 0)
    return descriptor
