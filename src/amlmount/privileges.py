"""Giving up what a process does not need: capabilities, the gain of new ones through execve(2), core dumps.

Numbers: include/uapi/linux/capability.h and prctl.h; the calls: capset(2), prctl(2). It is for the calling thread,
so it comes before any other is started.
"""

import contextlib
import ctypes
import resource
import struct
from collections.abc import Collection
from enum import IntEnum

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_VERSION_3 = 0x20080522
_MOST = 63


class Capability(IntEnum):
    """Those that something of ours needs."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    FOWNER = 3
    FSETID = 4
    SYS_ADMIN = 21


def keep_only(kept: Collection[Capability]) -> None:
    """Give up all other capabilities for good; nothing happens without any. Never raises."""
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(_MOST + 1):
        if number not in kept:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # EINVAL behind the last one there is, EPERM without SETPCAP
    mask = sum(1 << one for one in kept) & _effective()
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = ctypes.create_string_buffer(struct.pack("<Ii", _VERSION_3, 0))
    libc.capset(header, ctypes.create_string_buffer(struct.pack("<6I", low, low, 0, high, high, 0)))


def gain_none() -> None:
    """Have no program that we start gain privileges (set-user-ID, file capabilities): no_new_privs."""
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def forbid_core_dumps() -> None:
    """Forbid cores, which hold file contents and credentials. One byte is obeyed where cores go to a program too."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def _effective() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
