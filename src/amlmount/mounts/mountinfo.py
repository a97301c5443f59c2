"""The kernel's mount table as values, read from /proc/*/mountinfo (proc(5)); no path in it is ever touched.

Fields are octal-escaped bytes that need not be text: they become str by `os.fsdecode` and go back by `os.fsencode`.
"""

import os
import re
import select
from dataclasses import dataclass

from amlmount.errors import AmlmountError

MOUNTINFO = "/proc/self/mountinfo"
FRONT_FOLDER = "amlmount-front"
_FRONT = re.compile(rf"lowerdir=[^:]*/{FRONT_FOLDER}/[^/:]*\.(\d+):")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo. `optional` are the propagation tags as they stand, such as `shared:42`."""

    mount_id: int
    parent_id: int
    dev_major: int
    dev_minor: int
    root: str
    mount_point: str
    options: tuple[str, ...]
    optional: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]

    @property
    def is_fuse(self) -> bool:
        """FUSE of any kind, ours or foreign (`fuse`, `fuse.<subtype>`, `fuseblk`), but not fusectl."""
        return self.fstype in ("fuse", "fuseblk") or self.fstype.startswith(("fuse.", "fuseblk."))

    @property
    def front_of(self) -> int | None:
        """Of an overlay before a mount of ours (`mounts.front`): the minor device number of the FUSE mount below."""
        if self.fstype != "overlay":
            return None
        found = (match for option in self.super_options if (match := _FRONT.match(option)))
        return next((int(match[1]) for match in found), None)

    @property
    def asks_a_server(self) -> bool:
        """FUSE, or a front of ours before it: whoever looks may wait for a process."""
        return self.is_fuse or self.front_of is not None

    @property
    def subtype(self) -> str:
        """`amlmount` of `fuse.amlmount`; empty if there is none."""
        return self.fstype.partition(".")[2]

    @property
    def peer_group(self) -> int | None:
        """Return the number of `shared:N`, None for a mount that is not shared."""
        for tag in self.optional:
            name, _, number = tag.partition(":")
            if name == "shared" and number.isdigit():
                return int(number)
        return None

    @property
    def read_only(self) -> bool:
        """Read-only, by the mount or by its superblock."""
        return "ro" in self.options or "ro" in self.super_options


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def _split(field: bytes) -> tuple[str, ...]:
    return tuple(_unescape(part) for part in field.split(b","))


def parse_line(line: bytes) -> MountEntry | None:
    """Parse one line; None for anything that is not one."""
    left, dash, right = line.rstrip(b"\n").partition(b" - ")
    head, tail = left.split(b" "), right.split(b" ")
    if not dash or len(head) < 6 or len(tail) < 3:
        return None
    try:
        major, minor = head[2].split(b":")
        numbers = int(head[0]), int(head[1]), int(major), int(minor)
    except ValueError:
        return None
    names = _unescape(head[3]), _unescape(head[4])
    optional = tuple(_unescape(tag) for tag in head[6:] if tag)
    return MountEntry(
        *numbers, *names, _split(head[5]), optional, _unescape(tail[0]), _unescape(tail[1]), _split(tail[2])
    )


def parse(text: bytes) -> list[MountEntry]:
    """Parse a whole table, in the kernel's order; lines that are not mounts are left out."""
    return [entry for line in text.split(b"\n") if (entry := parse_line(line))]


def read_mounts(pid: int | None = None) -> list[MountEntry]:
    """Return the mount table of this process, or of process `pid` (empty if it has gone or may not be read)."""
    try:
        with open(MOUNTINFO if pid is None else f"/proc/{pid}/mountinfo", "rb") as file:
            return parse(file.read())
    except OSError as error:
        if pid is not None:
            return []
        raise AmlmountError(f"cannot read {MOUNTINFO}: {error.strerror}", hint="mount /proc") from error


def topmost(mounts: list[MountEntry], mount_point: str) -> MountEntry | None:
    """Return the mount one would reach at exactly `mount_point` (canonical): the top of a stack."""
    stack = [entry for entry in mounts if entry.mount_point == mount_point]
    covered = {entry.parent_id for entry in stack if entry.parent_id != entry.mount_id}
    tops = [entry for entry in stack if entry.mount_id not in covered]
    return tops[-1] if tops else None


class MountWatch:
    """A descriptor that is ready (POLLPRI | POLLERR) whenever a mount of our namespace appears, goes or changes.

    For `poll`/`epoll` of the holder: register `fileno()` with POLLPRI, then `read` to learn the table and re-arm.
    """

    def __init__(self) -> None:
        self._fd = os.open(MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor, owned by this object."""
        return self._fd

    def read(self) -> list[MountEntry]:
        """Return the table as it is now."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        blocks = iter(lambda: os.read(self._fd, 1 << 16), b"")
        return parse(b"".join(blocks))

    def wait(self, timeout_s: float) -> bool:
        """Block until something changed; False after `timeout_s` seconds."""
        waiter = select.poll()
        waiter.register(self._fd, select.POLLPRI)
        return bool(waiter.poll(timeout_s * 1000))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
