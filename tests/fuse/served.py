"""A real mount served by a forked child, so that the process which touches it never serves it.

Orders go to the child over a pipe; each is a method of `_Child`.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from amlmount.config.profiles import PROFILES
from amlmount.config.spec import Ownership, Policy
from amlmount.errors import NotFoundError
from amlmount.fuse.adapter import ReadOnlyAdapter
from amlmount.fuse.negotiate import Feature, Negotiated, offer_for
from amlmount.fuse.notify import Notifier
from amlmount.fuse.session import EndReason, Session
from amlmount.mounts.connection import abort, waiting
from amlmount.mounts.fusemount import open_and_mount, unmount
from amlmount.mounts.mountinfo import MountEntry
from amlmount.mounts.paths import find_mount
from fuse.dict_fs import DictFileSystem

OWNERSHIP = Ownership(uid=1234, gid=4321, file_mode=0o444, dir_mode=0o555)
DEADLINE_S = 10.0


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


@dataclass
class Served:
    """A mount and the child that serves it."""

    path: str
    entry: MountEntry
    fd: int
    fs: DictFileSystem
    rules: Policy
    pid: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, **options: Any) -> None:
        """Fork a child that serves."""
        self.pid, self.orders = _start(self.fd, self.fs, self.rules, options)

    def kill(self) -> None:
        """SIGKILL the child and wait until it is gone."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.orders.close()
            self.pid = 0

    def let_go(self) -> None:
        """Close our copy of the descriptor: the mount now lives as long as its child."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

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

    def waiting(self) -> int:
        """Requests the kernel has no answer to yet."""
        return waiting(self.entry) or 0

    def abort(self) -> None:
        abort(self.entry)

    def unmount(self) -> None:
        """Lazily: never waits for anybody."""
        with contextlib.suppress(NotFoundError):
            unmount(self.path, lazy=True)

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

    def __init__(
        self,
        fd: int,
        fs: DictFileSystem,
        rules: Policy,
        orders: Connection,
        negotiated: Negotiated | None = None,
        **options: Any,
    ) -> None:
        self.fs, self.fd, self.pipe = fs, fd, orders
        self.negotiated: list[Negotiated] = []
        self.rules, self.options = rules, options
        self.session = self._new_session(negotiated)
        self.notifier = Notifier(fd)
        if negotiated is not None and Feature.HAS_RESEND in negotiated.features:
            self.notifier.resend()
        self.handed_over = threading.Event()

    def _new_session(self, negotiated: Negotiated | None) -> Session:
        return Session(
            self.fd,
            ReadOnlyAdapter(self.fs, self.rules, OWNERSHIP),
            offer=offer_for(self.rules),
            negotiated=negotiated,
            on_negotiated=self.negotiated.append,
            **self.options,
        )

    def run(self) -> None:
        threading.Thread(target=self._obey, daemon=True).start()
        try:
            reason = self.session.run()
            if reason is EndReason.STOPPED:
                self.handed_over.wait(DEADLINE_S)
                reason = self.session.run()
            said = reason.value
        except Exception as error:
            said = repr(error)
        with contextlib.suppress(OSError):
            self.pipe.send(f"end {said}")

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

    def forgotten(self) -> int:
        return self.fs.forgotten

    def release(self) -> None:
        self.fs.release.set()

    def add(self, parent_id: int, name: bytes, content: bytes) -> None:
        self.fs.add(parent_id, name, content)

    def notify(self, message: str, *args: Any) -> bool:
        sent: bool = getattr(self.notifier, message)(*args)
        return sent

    def succeed(self) -> str:
        """End the session and begin another on the same descriptor, as a successor would."""
        stopped = self.session.stop()
        self.session = self._new_session(Negotiated.from_json(self.negotiated[0].to_json()))
        self.handed_over.set()
        return "stopped" if stopped else "still running"

    def negotiated_count(self) -> int:
        return len(self.negotiated)

    def threads(self) -> int:
        return threading.active_count()


def _start(fd: int, fs: DictFileSystem, rules: Policy, options: dict[str, Any]) -> tuple[int, Connection]:
    """Fork a child that serves `fd`; with `negotiated` among the options it is a successor."""
    ours, theirs = Pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            ours.close()
            logging.basicConfig(level=logging.CRITICAL)
            _Child(fd, fs, rules, theirs, **options).run()
        os._exit(0)
    theirs.close()
    return pid, ours


@contextlib.contextmanager
def served(
    fs: DictFileSystem,
    target: str,
    rules: Policy | None = None,
    *,
    read_only: bool = True,
    hold: bool = False,
    **options: Any,
) -> Iterator[Served]:
    """Mount `fs` at `target`, served by a child; afterwards it is unmounted and the child gone, come what may.

    With `hold` this process keeps the descriptor, as the daemon does, so the mount outlives the child.
    """
    fd = open_and_mount(target, source="dict", read_only=read_only, allow_other=True, default_permissions=True)
    entry = find_mount(target)
    assert entry is not None
    mount = Served(target, entry, fd, fs, rules or policy())
    try:
        mount.start(**options)
        if not hold:
            mount.let_go()
        yield mount
    finally:
        mount.unmount()
        mount.kill()
        mount.let_go()
