"""What the supervisor asks of the machine, as one protocol, and the real thing behind it.

All of it may block, so the supervisor calls it in threads; none of it touches a path inside a mount.
"""

import contextlib
import logging
import os
import signal
import threading
from typing import Protocol

from amlmount import mounts
from amlmount.errors import MountFailedError, NotFoundError
from amlmount.run import is_same_process
from amlmount.supervisor.records import MadeTarget, MountRecord, current_boot_id

log = logging.getLogger(__name__)
TERM_S = 5.0
KILL_S = 5.0
EVIDENCE_CHARS = 2000


class Host(Protocol):
    """Targets, and what a killed daemon left behind."""

    def prepare_target(self, target: str, *, keep_dead: bool = False) -> MadeTarget:
        """Make sure an engine can mount at `target`; say which directories had to be made. Raises AmlmountError.

        A dead mount of ours that is in the way is detached, unless it is to be kept until another is beneath it.
        """
        ...

    def plan_target(self, target: str) -> MadeTarget:
        """Say what `prepare_target` would make, to have it on record before it is made. Raises as it does."""
        ...

    def missing_directories(self, target: str) -> tuple[str, ...]:
        """Say which directories `prepare_target` would make, outermost first. Raises as it does, makes nothing."""
        ...

    def remove_target(self, made: MadeTarget) -> None:
        """Remove directories that `prepare_target` made; one that is in use or has content stays."""
        ...

    def end_leftover(self, record: MountRecord, *, keep_dead: bool = False) -> None:
        """End the process and the mount that `record` claims, as far as /proc and the mount table prove the claim.

        With `keep_dead` the mount stays where it is, dead, until another is beneath it.
        """
        ...

    def has_mount(self, record: MountRecord) -> bool:
        """Say whether the kernel still has the very mount of `record`; its directories count as ours from then on."""
        ...

    def take_off(self, target: str, mount_id: int) -> None:
        """Detach the very mount with this id if it is the topmost at `target`; what is open there goes on."""
        ...

    def dead_mount(self, target: str) -> int | None:
        """Return the id of a dead mount of ours that lies at `target` (on top, if there are several), None without."""
        ...

    def evidence(self, pid: int) -> dict[str, str]:
        """Return what /proc says of a process that hangs; never waits, never raises."""
        ...


class KernelHost:
    """This machine. Remembers which directories it made, so that mounts below a common one remove it together."""

    def __init__(self) -> None:
        # Guards `_made` and keeps a rmdir of one mount from coming between the mkdirs of another.
        self._lock = threading.Lock()
        self._made: set[str] = set()

    def prepare_target(self, target: str, *, keep_dead: bool = False) -> MadeTarget:
        """See Host."""
        with self._lock:
            plan = mounts.prepare_target(target)
            if plan.occupant == "dead" and keep_dead:
                return MadeTarget()
            if plan.occupant == "dead":
                mounts.unmount(plan.path, lazy=True)
                plan = mounts.prepare_target(target)
            if plan.occupant != "nothing":
                raise _taken(target)
            shared = [path for path in _parents(plan.path) if path in self._made]
            self._made.update(plan.created)
            made = (*shared, *plan.created)
            return MadeTarget(made, os.lstat(made[0]).st_dev) if made else MadeTarget()

    def plan_target(self, target: str) -> MadeTarget:
        """See Host."""
        missing = self.missing_directories(target)
        return MadeTarget(missing, os.stat(os.path.dirname(missing[0])).st_dev) if missing else MadeTarget()

    def missing_directories(self, target: str) -> tuple[str, ...]:
        """See Host."""
        plan = mounts.prepare_target(target, make=False)
        if plan.occupant == "ours":
            raise _taken(target)
        path = () if plan.occupant == "dead" else (*_parents(plan.path), plan.path)
        return tuple(place for place in path if not os.path.lexists(place))

    def remove_target(self, made: MadeTarget) -> None:
        """See Host."""
        with self._lock:
            if made.created:
                plan = mounts.TargetPlan(made.created[-1], made.created, made.device)
                self._made.difference_update(mounts.remove_target(plan))

    def end_leftover(self, record: MountRecord, *, keep_dead: bool = False) -> None:
        """See Host."""
        self._made.update(record.made.created)
        if record.boot_id != current_boot_id():
            return
        pid, start_time = record.pid or 0, record.pid_start_time or 0
        if record.engine == "blobfuse2" and pid and (not keep_dead or is_same_process(pid, start_time)):
            _end_blobfuse2(record, pid, start_time)
            return
        if not keep_dead:
            _end_mount(record)
        if record.engine != "blobfuse2" and pid:
            _end_process(pid, start_time)
        if keep_dead and self.dead_mount(record.target) is None:  # somebody else holds its descriptor
            _end_mount(record)

    def has_mount(self, record: MountRecord) -> bool:
        """See Host."""
        table = mounts.read_mounts()
        place = mounts.canonical(record.target, table)
        found = [entry for entry in table if entry.mount_id == record.mount_id and entry.mount_point == place]
        if not any(mounts.is_ours(entry) for entry in found):
            return False
        with self._lock:
            self._made.update(record.made.created)
        return True

    def take_off(self, target: str, mount_id: int) -> None:
        """See Host."""
        entry = mounts.find_mount(target)
        if entry is not None and entry.mount_id == mount_id and mounts.is_ours(entry):
            mounts.unmount(target, lazy=True)

    def dead_mount(self, target: str) -> int | None:
        """See Host."""
        entry = mounts.find_mount(target)
        is_dead = entry is not None and mounts.is_ours(entry) and mounts.is_dead(entry)
        return entry.mount_id if entry is not None and is_dead else None

    def evidence(self, pid: int) -> dict[str, str]:
        """See Host."""
        found = {}
        for name in ("status", "wchan", "stack"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", errors="replace") as file:
                found[name] = file.read(EVIDENCE_CHARS)
        return found


def _taken(target: str) -> MountFailedError:
    return MountFailedError(
        f"cannot mount at '{target}': another amlmount has mounted there",
        hint=f"take it down where it was brought up, or run: umount {target}",
    )


def _parents(path: str) -> list[str]:
    """Return the directories above `path`, outermost first."""
    above = [path]
    while above[-1] != "/":
        above.append(os.path.dirname(above[-1]))
    return above[:0:-1]


def _end_mount(record: MountRecord) -> None:
    entry = mounts.find_mount(record.target)
    if entry is None:
        return
    # Killed between mount and record: then nobody knows the id, but the place was empty when the record was begun.
    proven = entry.mount_id == record.mount_id if record.mount_id is not None else mounts.is_ours(entry)
    if proven and entry.asks_a_server:
        with contextlib.suppress(NotFoundError):
            mounts.unmount(record.target, lazy=True)


def _end_blobfuse2(record: MountRecord, pid: int, start_time: int) -> None:
    """Only an unmount ends it without loss: no signal, and what it could not send is kept first."""
    from amlmount.engines.blobfuse2 import leftover

    leftover.keep_unsent_of(pid, start_time)
    _end_mount(record)
    if not leftover.wait_for_end(pid, start_time):
        log.warning("%s: blobfuse2 %d of an earlier daemon is still at work", record.name, pid)


def _end_process(pid: int, start_time: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Checked after the pidfd is open: from here on it cannot come to mean another process.
        if is_same_process(pid, start_time):
            _signal_until_gone(pidfd)
    finally:
        os.close(pidfd)


def _signal_until_gone(pidfd: int) -> None:
    import select

    waiter = select.poll()
    waiter.register(pidfd, select.POLLIN)
    for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        if waiter.poll(patience_s * 1000):
            return
