"""Who holds what of a mount whose server is dead: the node ids and paths of its open files, from /proc alone.

With libfuse's high level (blobfuse2's) the inode number that the kernel shows is the node id of the protocol.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from amlmount.mounts import MountEntry, read_mounts
from amlmount.mounts.procfs import listdir, read, readlink

DELETED = " (deleted)"
_INFO = re.compile(rb"^flags:\s*(\d+)\nmnt_id:\s*(\d+)\nino:\s*(\d+)$", re.MULTILINE)  # `ino` since Linux 5.14


@dataclass(frozen=True, slots=True)
class Held:
    """A file or directory that somebody holds. `path` is below the mount; `deleted`: it has no name any more."""

    path: str
    is_directory: bool = False
    writable: bool = False
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """One mount of the file system, perhaps in another namespace: where it is, and which directory it shows."""

    mount_point: str
    root: str = "/"

    def path_of(self, text: str) -> str:
        """Return the path below the file system's root of what /proc calls `text`.

        A mount that is detached, or of another namespace, is shown from its own root.
        """
        inside = text.removeprefix(self.mount_point) if f"{text}/".startswith(f"{self.mount_point}/") else text
        return os.path.normpath(f"{self.root}/{inside}").strip("/")


def views_of(entry: MountEntry) -> dict[int, View]:
    """Return all mounts of the file system of `entry` by mount id, in every namespace we can see."""
    found = {entry.mount_id: View(entry.mount_point, entry.root)}
    seen: set[str] = set()
    for pid in _processes():
        namespace = readlink(f"/proc/{pid}/ns/mnt")
        if namespace is None or namespace in seen:
            continue
        seen.add(namespace)
        for other in read_mounts(int(pid)):
            if (other.dev_major, other.dev_minor) == (entry.dev_major, entry.dev_minor):
                found.setdefault(other.mount_id, View(other.mount_point, other.root))
    return found


def look(device: tuple[int, int], views: dict[int, View]) -> dict[int, Held]:
    """Return what is held, by node id. `device` is the mount's number in mountinfo. Asks no file system."""
    found: dict[int, Held] = {}
    for pid in _processes():
        for node, held in _uses(f"/proc/{pid}", device, views):
            before = found.get(node)
            writable = held.writable or (before is not None and before.writable)
            found[node] = Held(held.path, held.is_directory, writable, held.deleted)
    return found


def _uses(proc: str, device: tuple[int, int], views: dict[int, View]) -> Iterator[tuple[int, Held]]:
    for fd in listdir(f"{proc}/fd"):
        text = readlink(f"{proc}/fd/{fd}")
        if text is not None and text.startswith("/"):
            yield from _node(read(f"{proc}/fdinfo/{fd}"), text, views)
    for link in ("cwd", "root"):
        yield from _directory(f"{proc}/{link}", views)
    yield from _mapped(proc, device, next(iter(views.values())))


def _node(info: bytes, text: str, views: dict[int, View], *, is_directory: bool = False) -> Iterator[tuple[int, Held]]:
    match = _INFO.search(info)
    if match is None or (view := views.get(int(match[2]))) is None:
        return
    flags = int(match[1], 8)
    path, deleted = _named(text, view)
    writable = flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_PATH
    yield int(match[3]), Held(path, is_directory or bool(flags & os.O_DIRECTORY), writable, deleted)


def _directory(link: str, views: dict[int, View]) -> Iterator[tuple[int, Held]]:
    """Open the link with O_PATH: a jump that asks no file system."""
    text = readlink(link)
    if text is None:
        return
    try:
        fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        yield from _node(read(f"/proc/self/fdinfo/{fd}"), text, views, is_directory=True)
    finally:
        os.close(fd)


def _mapped(proc: str, device: tuple[int, int], view: View) -> Iterator[tuple[int, Held]]:
    """A mapping outlives its descriptor; maps names device and inode."""
    wanted = b" %02x:%02x " % device
    for line in read(f"{proc}/maps").splitlines():
        if wanted in line:
            fields = line.split(None, 5)
            path, deleted = _named(os.fsdecode(fields[5]), view)
            yield int(fields[4]), Held(path, writable=fields[1] == b"rw-s", deleted=deleted)


def _named(text: str, view: View) -> tuple[str, bool]:
    return view.path_of(text.removesuffix(DELETED)), text.endswith(DELETED)


def _processes() -> list[str]:
    me = str(os.getpid())
    return [name for name in listdir("/proc") if name.isdigit() and name != me]
