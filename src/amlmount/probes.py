"""Asking a mount whether it answers, from a child that is abandoned if it does not: a hung mount hangs whoever asks it.

One try, one deadline, no decision; at most one child waits below each target.
"""

import errno
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Literal

from amlmount.mounts import find_mount, is_dead
from amlmount.run import Process, spawn

Answer = Literal["ok", "dead", "hung", "not_mounted", "refused"]
# statx(2) of the mount's root with AT_STATX_FORCE_SYNC: a plain stat is answered from memory while its timeout lasts.
# The exit code is the errno.
_ASK = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
done = libc.statx(-100, os.fsencode(sys.argv[1]), 0x2000, 0x7ff, ctypes.create_string_buffer(256))
os._exit(ctypes.get_errno() if done else 0)
"""

_ASK_DESCRIPTOR = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
done = libc.statx(int(sys.argv[1]), b"", 0x3000, 0x7ff, ctypes.create_string_buffer(256))
os._exit(ctypes.get_errno() if done else 0)
"""

_lock = threading.Lock()
_silent: dict[str, Process] = {}


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe found out. `text` is for people; `elapsed_s` how long the answer took."""

    answer: Answer
    text: str
    elapsed_s: float

    @property
    def ms(self) -> float:
        """How long the answer took, in milliseconds."""
        return self.elapsed_s * 1000

    @property
    def ok(self) -> bool:
        """The mount answered."""
        return self.answer == "ok"


def probe_mounted(target: str, timeout_s: float) -> ProbeResult:
    """Ask the mount at exactly `target` for the attributes of its root, and wait `timeout_s` seconds at most.

    `dead`: ENOTCONN, its server has gone. `hung`: silence. `refused`: it answered with another error.
    Never raises for what the mount does. Blocks: call it from a thread.
    """
    begun = time.monotonic()
    entry = find_mount(target)
    if entry is None:
        return ProbeResult("not_mounted", "nothing is mounted there", 0.0)
    if is_dead(entry):
        return _result(errno.ENOTCONN, begun)
    if _still_silent(entry.mount_point):
        return ProbeResult("hung", "an earlier question has had no answer yet", time.monotonic() - begun)
    child = spawn([sys.executable, "-I", "-S", "-c", _ASK, entry.mount_point], cwd="/")
    code = child.wait(timeout_s)
    if code is None:
        _abandon(entry.mount_point, child)
        return ProbeResult("hung", f"no answer within {timeout_s:g} s", time.monotonic() - begun)
    child.close()
    return _result(code, begun)


def probe_detached(mount_fd: int, timeout_s: float) -> ProbeResult:
    """Ask a mount that is attached nowhere, by its descriptor; as `probe_mounted`. Until INIT it waits for that too."""
    begun = time.monotonic()
    child = spawn([sys.executable, "-I", "-S", "-c", _ASK_DESCRIPTOR, str(mount_fd)], cwd="/", pass_fds=[mount_fd])
    code = child.wait(timeout_s)
    if code is None:
        _abandon(f"detached mount {mount_fd}", child)
        return ProbeResult("hung", f"no answer within {timeout_s:g} s", time.monotonic() - begun)
    child.close()
    return _result(code, begun)


# lstat of a name that nobody has: no cache knows it, so the store is asked.
_ASK_NAME = """
import os, sys
try:
    os.lstat(sys.argv[1])
except OSError as error:
    os._exit(error.errno)
os._exit(0)
"""


def probe_name(target: str, name: str, timeout_s: float) -> ProbeResult:
    """Ask the mount at `target` for a name below it, which costs a request to the store; `ok` if there is none."""
    begun = time.monotonic()
    entry = find_mount(target)
    if entry is None:
        return ProbeResult("not_mounted", "nothing is mounted there", 0.0)
    if _still_silent(entry.mount_point):
        return ProbeResult("hung", "an earlier question has had no answer yet", time.monotonic() - begun)
    child = spawn([sys.executable, "-I", "-S", "-c", _ASK_NAME, os.path.join(entry.mount_point, name)], cwd="/")
    code = child.wait(timeout_s)
    if code is None:
        _abandon(entry.mount_point, child)
        return ProbeResult("hung", f"no answer within {timeout_s:g} s", time.monotonic() - begun)
    child.close()
    return _result(0 if code == errno.ENOENT else code, begun)


def _result(code: int, begun: float) -> ProbeResult:
    elapsed_s = time.monotonic() - begun
    if code == 0:
        return ProbeResult("ok", f"answered in {elapsed_s * 1000:.0f} ms", elapsed_s)
    if code == errno.ENOTCONN:
        return ProbeResult("dead", "its server has gone (transport endpoint is not connected)", elapsed_s)
    return ProbeResult("refused", os.strerror(code).lower() if code > 0 else "the probe was killed", elapsed_s)


def _abandon(target: str, child: Process) -> None:
    """SIGKILL it, and never wait: it may stay in D state until the mount is aborted."""
    child.send_signal(9)
    with _lock:
        _silent[target] = child


def _still_silent(target: str) -> bool:
    """Collect what has ended meanwhile; say whether a child of ours still waits below `target`."""
    with _lock:
        for place, child in list(_silent.items()):
            if child.poll() is not None:
                child.close()
                del _silent[place]
        return target in _silent
