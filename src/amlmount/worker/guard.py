"""`python -m amlmount.worker.guard FD`: watches over a mount that is served by a thread of its own user (in_process).

Such a process can freeze itself for ever: a page fault on a private mapping holds Python's GIL while it waits for
the thread that needs the GIL to answer, and not even SIGKILL ends that. Only another process can: this one.
"""

import os
import select
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from amlmount.errors import AmlmountError
from amlmount.mounts import connection
from amlmount.mounts.fusemount import unmount
from amlmount.mounts.mountinfo import MountEntry, read_mounts
from amlmount.mounts.target import TargetPlan, remove_target
from amlmount.procstat import stat_fields
from amlmount.worker.channel import Channel, Message

HEARTBEAT_S = 0.5
FROZEN_AFTER_S = 5.0
PF_EXITING = 0x4  # include/linux/sched.h
ALIVE = "alive"
EXIT = "exit"


@dataclass(slots=True)
class Watched:
    """The mount and its user. `silent_since`: when the user last gave a sign of life."""

    mount_id: int
    plan: TargetPlan
    caller_pid: int
    caller_pidfd: int
    silent_since: float

    def entry(self) -> MountEntry | None:
        """Return the mount as the kernel has it now; its id may be another's by now, id and place are not."""
        here = (entry for entry in read_mounts() if entry.mount_point == self.plan.path)
        return next((entry for entry in here if entry.mount_id == self.mount_id), None)


def watch(channel: Channel, watched: Watched) -> None:
    """Return when there is nothing to watch over any more: the user has ended or has stopped the mount."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    poll.register(watched.caller_pidfd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll(HEARTBEAT_S * 1000)}
        if watched.caller_pidfd in ready:
            take_away(watched)
            return
        if channel.fileno() in ready:
            message = channel.receive()
            if message is None:  # the user is ending, and its pidfd will say so, unless it is a fork that holds us
                poll.unregister(channel.fileno())
            elif message.body.get("op") == EXIT:
                return
            watched.silent_since = time.monotonic()
        elif time.monotonic() - watched.silent_since > FROZEN_AFTER_S or is_exiting(watched.caller_pid):
            thaw(watched)


def thaw(watched: Watched) -> None:
    """Abort the connection if somebody waits for an answer from a process that gives no sign of life."""
    entry = watched.entry()
    if entry is not None and connection.waiting(entry):
        with suppress(AmlmountError):
            connection.abort(entry)


def is_exiting(pid: int) -> bool:
    """Say whether all threads of a process are past their last instruction: PF_EXITING, field 9 of proc(5)'s stat.

    One that had files open on the mount it serves itself waits in there for its own answer to their FLUSH.
    """
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        return all(int(stat_fields(f"{pid}/task/{thread}")[6]) & PF_EXITING for thread in threads)
    except OSError:
        return False


def take_away(watched: Watched) -> None:
    """Detach the mount of a user that has ended, and remove its folder."""
    entry = watched.entry()
    if entry is not None:
        with suppress(AmlmountError):
            unmount(entry.mount_point, lazy=True)
    remove_target(watched.plan)


def order(mount_id: int, plan: TargetPlan) -> dict[str, Any]:
    """Return the first message to a guard; the user's pidfd goes with it."""
    return {
        "mount_id": mount_id,
        "pid": os.getpid(),
        "path": plan.path,
        "created": list(plan.created),
        "device": plan.device,
    }


def _watched(message: Message) -> Watched:
    body = message.body
    plan = TargetPlan(body["path"], tuple(body["created"]), body["device"])
    return Watched(body["mount_id"], plan, body["pid"], message.descriptors[0], time.monotonic())


def main() -> None:
    """Watch the mount the first message names."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    os.set_inheritable(channel.fileno(), False)
    os.chdir("/")
    message = channel.receive()
    if message is not None:
        watch(channel, _watched(message))


if __name__ == "__main__":
    main()
