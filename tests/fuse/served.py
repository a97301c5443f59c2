"""A real mount served by a forked child, so that the process which touches it never serves it.

Orders go to the child over a pipe; each is a method of `_Child`.
"""

import contextlib
import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from amlmount.config.profiles import PROFILES
from amlmount.config.spec import Ownership, Policy
from amlmount.fuse.adapter import ReadOnlyAdapter
from amlmount.fuse.negotiate import Negotiated, offer_for
from amlmount.fuse.notify import Notifier
from amlmount.fuse.session import Session
from amlmount.mounts import syscalls
from fuse.dict_fs import DictFileSystem

OWNERSHIP = Ownership(uid=1234, gid=4321, file_mode=0o444, dir_mode=0o555)
DEADLINE_S = 10.0
_FUSECTL = Path("/sys/fs/fuse/connections")


def policy(profile: str = "standard", **values: Any) -> Policy:
    return Policy.model_validate(PROFILES[profile].model_dump() | values)


def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> bool:
    """Poll for something to become true."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@contextlib.contextmanager
def private_mounts() -> Iterator[None]:
    """Give this thread (and its children) a mount table of their own for the while."""
    home = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    cwd = os.getcwd()
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        yield
    finally:
        assert libc.setns(home, syscalls.CLONE_NEWNS) == 0
        os.close(home)
        os.chdir(cwd)


@dataclass
class Served:
    """A mount and the child that serves it."""

    path: str
    pid: int
    device: int
    orders: Connection
    lock: threading.Lock

    def ask(self, order: str, *args: Any) -> Any:
        """Have the child do something and return what it says."""
        with self.lock:
            self.orders.send((order, *args))
            assert self.orders.poll(DEADLINE_S), f"no answer to {order}"
            return self.orders.recv()

    def counts(self) -> dict[int, int]:
        """Requests so far, by opcode."""
        found: dict[int, int] = self.ask("counts")
        return found

    def connection(self) -> Path:
        """The mount's directory in fusectl."""
        if not any(_FUSECTL.iterdir()):
            syscalls.mount("fusectl", str(_FUSECTL), "fusectl")
        return _FUSECTL / str(self.device)

    def abort(self) -> None:
        (self.connection() / "abort").write_text("1")

    def unmount(self) -> None:
        """Lazily: never waits for anybody."""
        with contextlib.suppress(OSError):
            syscalls.umount2(self.path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)

    def wait_end(self, deadline_s: float = DEADLINE_S) -> str | None:
        """How the session ended, as the child says it last; None if it does not end."""
        end = time.monotonic() + deadline_s
        while (left := end - time.monotonic()) > 0 and self.orders.poll(left):
            try:
                said = self.orders.recv()
            except EOFError:
                return None
            if isinstance(said, str) and said.startswith("end "):
                return said.removeprefix("end ")
        return None


class _Child:
    """What runs in the child: a session in the main thread, orders in another."""

    def __init__(self, fd: int, fs: DictFileSystem, rules: Policy, orders: Connection, **options: Any) -> None:
        self.fs, self.fd, self.pipe = fs, fd, orders
        self.negotiated: list[Negotiated] = []
        self.session = Session(
            fd,
            ReadOnlyAdapter(fs, rules, OWNERSHIP),
            offer=offer_for(rules),
            on_negotiated=self.negotiated.append,
            **options,
        )
        self.notifier = Notifier(fd)

    def run(self) -> None:
        threading.Thread(target=self._obey, daemon=True).start()
        try:
            reason = self.session.run().value
        except Exception as error:
            reason = repr(error)
        with contextlib.suppress(OSError):
            self.pipe.send(f"end {reason}")

    def _obey(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                order, *args = self.pipe.recv()
                self.pipe.send(getattr(self, order)(*args))

    def counts(self) -> dict[int, int]:
        return dict(self.session.request_counts)

    def what_was_negotiated(self) -> list[dict[str, int]]:
        return [one.to_json() for one in self.negotiated]

    def references(self) -> int:
        return self.fs.references

    def release(self) -> None:
        self.fs.release.set()

    def add(self, parent_id: int, name: bytes, content: bytes) -> None:
        self.fs.add(parent_id, name, content)

    def notify(self, message: str, *args: Any) -> bool:
        sent: bool = getattr(self.notifier, message)(*args)
        return sent

    def stop(self) -> bool:
        return self.session.stop()

    def threads(self) -> int:
        return threading.active_count()


def mount_fuse(target: str, read_only: bool) -> int:
    """Open /dev/fuse and mount it; return the descriptor."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=1048576"
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | (syscalls.MS_RDONLY if read_only else 0)
    syscalls.mount("dict", target, "fuse.test", flags, data)
    return fd


@contextlib.contextmanager
def served(
    fs: DictFileSystem, target: Path, rules: Policy | None = None, *, read_only: bool = True, **options: Any
) -> Iterator[Served]:
    """Mount `fs` at `target`, served by a child; afterwards it is unmounted and the child gone, come what may."""
    target.mkdir(exist_ok=True)
    ours, theirs = Pipe()
    fd = mount_fuse(str(target), read_only)
    device = _device(str(target))
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            ours.close()
            logging.basicConfig(level=logging.CRITICAL)
            _Child(fd, fs, rules or policy(), theirs, **options).run()
        os._exit(0)
    os.close(fd)
    theirs.close()
    mount = Served(str(target), pid, device, ours, threading.Lock())
    try:
        yield mount
    finally:
        mount.unmount()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ours.close()


def _device(target: str) -> int:
    """The minor of a mount's st_dev (fusectl's name for it), from the mount table: nobody answers a stat yet."""
    with open("/proc/thread-self/mountinfo") as table:
        found = [line.split()[2] for line in table if line.split()[4] == target]
    return int(found[-1].split(":")[1])
