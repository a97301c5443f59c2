"""Serves a mount from a thread of this process, for tests: no worker, and a debugger sees both sides.

Opens are direct I/O, so that a shared mapping (np.memmap) is refused instead of freezing the process; a private
one cannot be refused, and a guard process (`worker.guard`) ends it with SIGBUS.
"""

import os
import sys
import threading
from contextlib import ExitStack, suppress

from amlmount.config.spec import MountSpec
from amlmount.errors import AmlmountError, MountFailedError, NotFoundError, WaitTimeoutError
from amlmount.mounts import connection
from amlmount.mounts.fusemount import unmount
from amlmount.mounts.mountinfo import MountEntry, read_mounts
from amlmount.mounts.paths import find_mount
from amlmount.mounts.target import TargetPlan
from amlmount.run import spawn
from amlmount.vfs.base import FileSystem
from amlmount.worker import guard
from amlmount.worker.attach import attach
from amlmount.worker.channel import Channel, pair

END_TIMEOUT_S = 5.0


class ThreadHost:
    """See `session.mounting.Host`. What `start` begins, `stop` ends in reverse."""

    def __init__(self) -> None:
        self._undo = ExitStack()

    def start(self, spec: MountSpec, plan: TargetPlan, timeout_s: float) -> None:
        """Open the store, mount, serve from a thread, set the guard."""
        from amlmount.worker.source import open_checked

        with ExitStack() as undo:
            files = open_checked(spec)
            undo.callback(files.close)
            descriptor = attach(spec)
            undo.callback(os.close, descriptor)
            entry = find_mount(spec.target)
            if entry is None:
                raise MountFailedError(f"cannot mount '{spec.target}': it was unmounted again at once")
            thread = threading.Thread(target=_serve, args=(descriptor, files, spec), name="amlmount-serve", daemon=True)
            undo.callback(_end, entry, thread)
            _set_guard(entry, plan, undo)
            undo.callback(_end, entry, thread)  # again, and so first: unmounting forks, which the guard must watch over
            thread.start()
            _wait_for_answer(spec, timeout_s)
            self._undo = undo.pop_all()

    def stop(self) -> None:
        """Unmount, end the thread, close the store."""
        self._undo.close()


def _serve(descriptor: int, files: FileSystem, spec: MountSpec) -> None:
    from amlmount.fuse.adapter import ReadOnlyAdapter
    from amlmount.fuse.negotiate import offer_for
    from amlmount.fuse.session import Session

    handler = ReadOnlyAdapter(files, spec.policy, spec.ownership)
    Session(descriptor, handler, offer=offer_for(spec.policy)).run()


def _end(entry: MountEntry, thread: threading.Thread) -> None:
    """Unmount; whoever has something open on it gets errors, because the server ends."""
    if (entry.mount_id, entry.mount_point) in {(mount.mount_id, mount.mount_point) for mount in read_mounts()}:
        with suppress(AmlmountError):
            connection.abort(entry)
        with suppress(NotFoundError):
            unmount(entry.mount_point, lazy=True)
    if thread.ident is not None:
        thread.join(END_TIMEOUT_S)


def _wait_for_answer(spec: MountSpec, timeout_s: float) -> None:
    """Ask for the root from another thread, so that an answer that never comes does not hang this one."""
    answered = threading.Event()

    def ask() -> None:
        with suppress(OSError):
            os.stat(spec.target)
            answered.set()

    threading.Thread(target=ask, name="amlmount-ask", daemon=True).start()
    if not answered.wait(timeout_s):
        raise WaitTimeoutError(f"cannot mount '{spec.target}' within {timeout_s:g} s: it does not answer")


def _set_guard(entry: MountEntry, plan: TargetPlan, undo: ExitStack) -> None:
    ours, theirs = pair()
    with theirs:
        argv = [sys.executable, "-P", "-m", "amlmount.worker.guard", str(theirs.fileno())]
        process = spawn(argv, env=os.environ, pass_fds=[theirs.fileno()])
    undo.callback(process.close)
    undo.callback(process.wait, END_TIMEOUT_S)
    channel = Channel(ours)
    undo.callback(_dismiss, channel)
    pidfd = os.pidfd_open(os.getpid())
    undo.callback(os.close, pidfd)
    channel.send(guard.order(entry.mount_id, plan), [pidfd])
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(channel, over), name="amlmount-alive", daemon=True)
    beat.start()
    undo.callback(beat.join, END_TIMEOUT_S)
    undo.callback(over.set)


def _dismiss(channel: Channel) -> None:
    with suppress(OSError):
        channel.send({"op": guard.EXIT})
    channel.close()


def _beat(channel: Channel, over: threading.Event) -> None:
    with suppress(OSError):
        while not over.wait(guard.HEARTBEAT_S):
            channel.send({"op": guard.ALIVE})
