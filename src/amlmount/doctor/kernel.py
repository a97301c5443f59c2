"""Which kernel this is, and which of the things amlmount can use it has: asked where that is cheap, else by version.

Everything newer than 5.15 has an older way, which the finding names.
"""

import ctypes
import errno
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from amlmount.doctor.findings import Finding
from amlmount.errors import AmlmountError
from amlmount.mounts import has_sys_admin, open_detached

Version = tuple[int, int]
OLDEST_TRIED: Version = (5, 15)
_INIT_HEADER_BYTES, _INIT_EXT = 40, 30


@dataclass(frozen=True, slots=True)
class Offer:
    """What the kernel offers in its INIT request: FUSE 7.`minor`, and the flags of linux/fuse.h as one number."""

    minor: int
    flags: int


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing the kernel may have. `bit` is its INIT flag, `syscall` its number; with neither the version decides."""

    name: str
    since: Version
    gives: str
    otherwise: str
    bit: int | None = None
    syscall: int | None = None
    needs_admin: bool = False


FEATURES = (
    Feature(
        "no open",
        (3, 16),
        "profile epochs: pages stay cached, no request per open",
        "every open is a request",
        bit=17,
    ),
    Feature("readdirplus", (3, 9), "listing brings the attributes along", "one request per stat", bit=13),
    Feature(
        "passthrough",
        (6, 9),
        "open files that are whole in the cache are read at the speed of the disk",
        "they are read through the engine",
        bit=37,
        needs_admin=True,
    ),
    Feature(
        "resend",
        (6, 9),
        "a request that a dead engine had read is answered by its successor",
        "such requests are taken from a record (Python engine) or end with an error, open files with them (blobfuse2)",
        bit=39,
    ),
    Feature(
        "mount beneath",
        (6, 5),
        "a mount is replaced without a gap",
        "it is drained, unmounted and mounted again; a dead blobfuse2's is covered, and open files may get errors",
        needs_admin=True,
    ),
    Feature("statmount", (6, 8), "one mount is asked for by its number", "the mount table is read", syscall=457),
    Feature(
        "detached mounts",
        (5, 2),
        "a mount is tried before it is shown",
        "mount(2) shows it at once",
        syscall=430,
        needs_admin=True,
    ),
    Feature(
        "pidfd_getfd",
        (5, 6),
        "a restarted daemon fetches the descriptors of its mounts back",
        "only systemd or the keeper can keep them",
        syscall=438,
    ),
)


def kernel() -> list[Finding]:
    """Name the kernel and its FUSE protocol."""
    version, offer = kernel_version(), fuse_offer()
    protocol = f", FUSE 7.{offer.minor}" if offer else ""
    text = f"{os.uname().sysname} {os.uname().release} ({os.uname().machine}){protocol}"
    if version < OLDEST_TRIED:
        return [
            Finding("kernel", "warn", f"{text}: older than anything amlmount was tried on", "use Linux 5.15 or later")
        ]
    return [Finding("kernel", "ok", text)]


def features() -> list[Finding]:
    """Say of each feature whether it is used here, and what is done instead where it is not."""
    return judge(kernel_version(), fuse_offer(), has_sys_admin(), has_syscall)


def judge(version: Version, offer: Offer | None, admin: bool, has_call: Callable[[int], bool]) -> list[Finding]:
    """Judge all features for a kernel and a user."""
    return [_judge_one(feature, _is_there(feature, version, offer, has_call), admin) for feature in FEATURES]


def kernel_version(release: str | None = None) -> Version:
    """Return (major, minor) of the running kernel, or of the release string given."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release if release is None else release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def fuse_offer() -> Offer | None:
    """Ask the kernel what FUSE it speaks, by a mount that no path leads to; None without the rights to make one."""
    try:
        fuse_fd, mount_fd = open_detached(source="doctor", read_only=True, allow_other=False, default_permissions=True)
    except (AmlmountError, OSError):
        return None
    try:
        os.set_blocking(fuse_fd, False)
        return parse_init(os.read(fuse_fd, 1 << 18))
    except OSError:
        return None
    finally:
        os.close(mount_fd)
        os.close(fuse_fd)


def parse_init(request: bytes) -> Offer | None:
    """Read minor and flags from an INIT request (fuse_init_in of linux/fuse.h); None if it is too short."""
    body = request[_INIT_HEADER_BYTES:]
    if len(body) < 16:
        return None
    _, minor, _, flags = struct.unpack_from("<4I", body)
    if flags >> _INIT_EXT & 1 and len(body) >= 20:
        flags |= struct.unpack_from("<I", body, 16)[0] << 32
    return Offer(minor, flags)


def has_syscall(number: int) -> bool:
    """Try a system call with arguments it must refuse: ENOSYS means that the kernel has not got it."""
    libc = ctypes.CDLL(None, use_errno=True)
    bad = ctypes.c_long(-1)
    return not (libc.syscall(ctypes.c_long(number), bad, bad, bad, bad) < 0 and ctypes.get_errno() == errno.ENOSYS)


def _is_there(feature: Feature, version: Version, offer: Offer | None, has_call: Callable[[int], bool]) -> bool:
    if feature.bit is not None and offer is not None:
        return bool(offer.flags >> feature.bit & 1)
    if feature.syscall is not None and not has_call(feature.syscall):
        return False
    return feature.syscall is not None or version >= feature.since


def _judge_one(feature: Feature, there: bool, admin: bool) -> Finding:
    name = f"kernel: {feature.name}"
    if not there:
        since = f"needs Linux {feature.since[0]}.{feature.since[1]}"
        return Finding(name, "info", f"not there ({since}): {feature.otherwise}")
    if feature.needs_admin and not admin:
        return Finding(name, "info", f"not for an ordinary user (CAP_SYS_ADMIN): {feature.otherwise}")
    return Finding(name, "ok", feature.gives)
