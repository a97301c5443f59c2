"""From what a user wrote to what mountinfo says, without asking any FUSE file system on the way.

`os.path.realpath` stats each component and hangs for ever below a mount whose server has stopped.
"""

import os

from amlmount.mounts.mountinfo import MountEntry, read_mounts, topmost
from amlmount.mounts.procfs import readlink

MAX_SYMLINKS = 40  # as the kernel's MAXSYMLINKS


def canonical(path: str, mounts: list[MountEntry] | None = None) -> str:
    """Make `path` absolute and resolve its symlinks, as the kernel would, whether it exists or not.

    From the first FUSE mount point on, the rest is taken literally: nothing at or below it is looked at.
    """
    fuse_points = {entry.mount_point for entry in (read_mounts() if mounts is None else mounts) if entry.asks_a_server}
    todo = _steps(path if path.startswith("/") else os.path.join(os.getcwd(), path))
    done, followed = "/", 0
    while todo and done not in fuse_points:
        name = todo.pop(0)
        step = os.path.dirname(done) if name == ".." else os.path.join(done, name)
        link = readlink(step) if step not in fuse_points and followed < MAX_SYMLINKS else None
        if link is None:
            done = step
            continue
        followed += 1
        todo = _steps(link) + todo
        done = "/" if link.startswith("/") else done
    return os.path.normpath(os.path.join(done, *todo))


def find_mount(path: str, mounts: list[MountEntry] | None = None) -> MountEntry | None:
    """Return the mount at exactly `path` (the topmost, if several are stacked), None if it is no mount point."""
    table = read_mounts() if mounts is None else mounts
    return topmost(table, canonical(path, table))


def mount_containing(path: str, mounts: list[MountEntry] | None = None) -> MountEntry | None:
    """Return the mount that `path` lies in or is the root of: the one at the nearest directory upwards."""
    table = read_mounts() if mounts is None else mounts
    place = canonical(path, table)
    while (found := topmost(table, place)) is None and place != "/":
        place = os.path.dirname(place)
    return found


def _steps(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]
