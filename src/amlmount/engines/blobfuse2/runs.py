"""One blobfuse2 with all that belongs to it, as the engine holds it."""

import asyncio
import os
from dataclasses import dataclass

from amlmount.afterlife.plan import Plan
from amlmount.engines.base import Running
from amlmount.engines.blobfuse2.configuring import Prepared
from amlmount.engines.blobfuse2.served import Served
from amlmount.engines.blobfuse2.succession import Heir
from amlmount.mounts import MountEntry
from amlmount.procstat import stat_fields
from amlmount.recovery import Folder


@dataclass(slots=True)
class Run:
    """`kept`: what had to be put by before its clean end.

    `plan`: who held what when it died; `heir`: who serves that. `entry` and `fuse_fd`: its mount, once that is
    detached, for the case that it dies with files open.
    """

    served: Served
    prepared: Prepared
    folder: Folder
    kept: Folder | None = None
    watch: "asyncio.Task[None] | None" = None
    plan: Plan | None = None
    heir: Heir | None = None
    entry: MountEntry | None = None
    fuse_fd: int = -1

    def end_watch(self) -> None:
        """Follow its secrets no more."""
        if self.watch is not None:
            self.watch.cancel()

    def keep_connection(self, running: Running, entry: MountEntry | None) -> None:
        """Have the descriptor of `running` from now on."""
        self.fuse_fd, self.entry, running.fuse_fd = running.fuse_fd, entry, -1

    def close_connection(self) -> None:
        """Close it."""
        if self.fuse_fd >= 0:
            os.close(self.fuse_fd)
            self.fuse_fd = -1


def is_stopped(pid: int) -> bool:
    """Say whether a process is stopped (SIGSTOP, or by a debugger): state T or t of /proc/PID/stat."""
    try:
        return stat_fields(pid)[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False
