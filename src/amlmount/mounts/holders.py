"""Who keeps a mount busy, found from /proc alone: no path below the mount is looked at, so a dead one cannot hang us.

Root sees every process; an ordinary user sees their own only.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from amlmount.mounts.mountinfo import MountEntry
from amlmount.mounts.procfs import listdir, read, readlink

MAX_PER_PROCESS = 3
_MNT_ID = re.compile(rb"^mnt_id:\s*(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that uses a mount. `what`: `open file /data/x`, `working directory /data`, `mapped file ...`."""

    pid: int
    command: str
    what: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid}, {self.what})"

    def to_json(self) -> dict[str, object]:
        """Return it as JSON-able data."""
        return {"pid": self.pid, "command": self.command, "what": self.what}


def holders(mount: MountEntry) -> list[Holder]:
    """Return who has a file open on `mount`, maps one, or has its cwd or root there (at most 3 lines each)."""
    found: list[Holder] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            uses = list(dict.fromkeys(_uses(f"/proc/{name}", mount)))[:MAX_PER_PROCESS]
            found += [Holder(int(name), _command(name), what) for what in uses]
    return sorted(found, key=lambda holder: holder.pid)


def _uses(proc: str, mount: MountEntry) -> Iterator[str]:
    """Yield what one process (its directory in /proc) does with the mount. All of it is link text and tables."""
    yield from _open_files(proc, mount)
    for link, what in (("cwd", "working directory"), ("root", "root directory")):
        if _directory_is_on(proc, link, mount):
            yield f"{what} {readlink(f'{proc}/{link}') or '?'}"
    yield from _mapped_files(proc, mount)


def _open_files(proc: str, mount: MountEntry) -> Iterator[str]:
    wanted = str(mount.mount_id).encode()
    for fd in listdir(f"{proc}/fdinfo"):
        match = _MNT_ID.search(read(f"{proc}/fdinfo/{fd}"))
        if match and match[1] == wanted:
            yield f"open file {readlink(f'{proc}/fd/{fd}') or '?'}"


def _directory_is_on(proc: str, link: str, mount: MountEntry) -> bool:
    """Open the link with O_PATH (a jump that asks no file system) and compare the mount ids."""
    try:
        fd = os.open(f"{proc}/{link}", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        match = _MNT_ID.search(read(f"/proc/self/fdinfo/{fd}"))
    finally:
        os.close(fd)
    return bool(match) and int(match[1]) == mount.mount_id  # type: ignore[index]


def _mapped_files(proc: str, mount: MountEntry) -> Iterator[str]:
    """A mapping outlives its descriptor; maps names the device, which for FUSE belongs to one superblock."""
    wanted = b"%02x:%02x" % (mount.dev_major, mount.dev_minor)
    for line in read(f"{proc}/maps").splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[3] == wanted:
            yield f"mapped file {os.fsdecode(fields[5])}"


def _command(pid: str) -> str:
    return read(f"/proc/{pid}/comm").decode(errors="replace").strip() or "?"
