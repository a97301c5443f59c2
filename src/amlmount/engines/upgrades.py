"""Whether a mount is served by another program than would serve it if it were made anew: after an upgrade it is.

Nothing here changes anything.
"""

import os
import time

from amlmount.engines.base import Askable, Engine, Running
from amlmount.engines.blobfuse2.binary import NAME, examine, find_binary
from amlmount.engines.offload import in_thread
from amlmount.errors import AmlmountError
from amlmount.run import start_time_ticks
from amlmount.worker.program import LOADED, Program

ANSWER_S = 5.0


async def newer_program(old: Engine, running: Running, engine: Engine) -> str | None:
    """Say which program would serve the mount of `running` if `engine` made it anew, None if it is the same one.

    `old` serves it now. Raises AmlmountError if the new one cannot be used.
    """
    if old.name != engine.name:
        return f"engine: {old.name} -> {engine.name}"
    if engine.name == NAME:
        return await in_thread(lambda: _newer_blobfuse2(running.pid))
    return await _newer_worker(old, running)


async def _newer_worker(old: Engine, running: Running) -> str | None:
    """A new worker is what this daemon has loaded: that is why an upgrade begins with the daemon."""
    found = "an older one"
    if isinstance(old, Askable):
        try:
            said = await old.ask(running, "program", {}, timeout_s=ANSWER_S)
            found = Program(str(said["version"]), str(said["stamp"])).text
        except (AmlmountError, KeyError):
            pass  # from before there was this question
    return None if found == LOADED.text else f"amlmount: {found} -> {LOADED.text}"


def _newer_blobfuse2(pid: int) -> str | None:
    binary = find_binary()
    if binary is None or _is_program_of(pid, binary.path):
        return None
    try:
        before = examine(f"/proc/{pid}/exe").version_text
    except AmlmountError:
        before = "an older file"
    return f"blobfuse2: {before} -> {binary.version_text}"


def _is_program_of(pid: int, path: str) -> bool:
    """Say whether a process runs this very file; of a script only that it was not changed since."""
    try:
        exe, there = os.stat(f"/proc/{pid}/exe"), os.stat(path)
        if os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)") == NAME:
            return (exe.st_dev, exe.st_ino) == (there.st_dev, there.st_ino)
    except OSError:
        return True  # it is gone: there is nothing to compare
    return there.st_ctime <= _started_at_s(pid)


def _started_at_s(pid: int) -> float:
    """Return when a process began, in seconds since 1970."""
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - (start_time_ticks(pid) or 0) / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s
