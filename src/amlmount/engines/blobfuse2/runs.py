"""One blobfuse2 with all that belongs to it, as the engine holds it."""

import asyncio
from dataclasses import dataclass

from amlmount.engines.blobfuse2.configuring import Prepared
from amlmount.engines.blobfuse2.served import Served
from amlmount.recovery import Folder


@dataclass(slots=True)
class Run:
    """`kept`: what had to be put by before its clean end. `busy_ticks`: its processor time when requests lay unread."""

    served: Served
    prepared: Prepared
    folder: Folder
    kept: Folder | None = None
    watch: "asyncio.Task[None] | None" = None
    busy_ticks: int = -1

    def end_watch(self) -> None:
        """Follow its secrets no more."""
        if self.watch is not None:
            self.watch.cancel()


def cpu_ticks(pid: int) -> int:
    """Return the processor time a process has used (utime and stime of /proc/PID/stat), -1 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[11]) + int(fields[12])
    except (OSError, IndexError, ValueError):
        return -1
