"""Is this a place to mount on: checks before a mount, and taking the directory away again if we made it.

Nothing is removed but empty directories of our own making, by rmdir on the device they were made on.
"""

import contextlib
import os
import stat
from dataclasses import dataclass
from typing import Literal

from amlmount.errors import MountFailedError
from amlmount.mounts import connection
from amlmount.mounts.mountinfo import MountEntry, read_mounts, topmost
from amlmount.mounts.paths import canonical, mount_containing

Occupant = Literal["nothing", "ours", "dead"]
OUR_SUBTYPES = ("amlmount",)
SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class TargetPlan:
    """A target that may be mounted on. `path` is canonical; `created` are the directories made for it, outermost first.

    `occupant`: `ours` = a mount of ours that works is there already, `dead` = a dead FUSE mount of ours is in the way.
    `device` is st_dev of the created directories, for `remove_target`.
    """

    path: str
    created: tuple[str, ...] = ()
    device: int = 0
    occupant: Occupant = "nothing"


def is_ours(mount: MountEntry, sources: tuple[str, ...] = ()) -> bool:
    """Say whether amlmount made this mount: by its subtype, or by a source that the caller knows to be its own."""
    if mount.front_of is not None:
        return True
    return mount.is_fuse and (mount.subtype in OUR_SUBTYPES or (bool(sources) and mount.source in sources))


def prepare_target(target: str, *, make: bool = True, our_sources: tuple[str, ...] = ()) -> TargetPlan:
    """Check that `target` can be mounted on and (with `make`) create it if it is missing, remembering what was created.

    Raises MountFailedError: a file, not empty, inside another FUSE mount, somebody else's mount, not creatable.
    Never looks at the inside of a FUSE mount.
    """
    mounts = read_mounts()
    path = canonical(target, mounts)
    if path == "/":
        raise MountFailedError("cannot mount at '/': that is the root of the system", hint="choose an empty directory")
    occupied = topmost(mounts, path)
    if occupied is not None:
        return TargetPlan(path, occupant=_occupant(target, occupied, our_sources))
    _refuse_inside_fuse(target, path, mounts)
    if _exists_as_empty_directory(target, path):
        return TargetPlan(path)
    return _create(target, path) if make else TargetPlan(path)


def remove_target(plan: TargetPlan) -> list[str]:
    """Take away the directories that `prepare_target` made, if they are empty and not mounted on; return which."""
    removed = []
    points = {entry.mount_point for entry in read_mounts()}
    for path in reversed(plan.created):
        if path in points or not _is_on_device(path, plan.device):
            break
        try:
            os.rmdir(path)
        except OSError:
            break
        removed.append(path)
    return removed


def _occupant(target: str, mount: MountEntry, our_sources: tuple[str, ...]) -> Occupant:
    if not is_ours(mount, our_sources):
        raise MountFailedError(
            f"cannot mount at '{target}': {mount.source} ({mount.fstype}) is mounted there already",
            hint=f"unmount it (sudo umount {target}) or choose another target",
        )
    return "dead" if connection.is_dead(mount) else "ours"


def _refuse_inside_fuse(target: str, path: str, mounts: list[MountEntry]) -> None:
    outer = mount_containing(os.path.dirname(path), mounts)
    if outer is not None and outer.asks_a_server:
        raise MountFailedError(
            f"cannot mount at '{target}': it lies inside another mount, {outer.mount_point} ({outer.fstype})",
            hint="choose a target on a local disk",
        )


def _exists_as_empty_directory(target: str, path: str) -> bool:
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        raise _refused(target, "it is not a directory", "choose a directory, or a path that does not exist") from None
    except OSError as error:
        raise _refused(
            target, (error.strerror or "").lower(), "check the rights of its directories: namei -l"
        ) from error
    if names:
        shown = ", ".join(sorted(names)[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
        raise _refused(
            target, f"it is not empty (has {shown})", "choose an empty directory, or move what is in it away"
        )
    return True


def _create(target: str, path: str) -> TargetPlan:
    missing = []
    place = path
    while not os.path.lexists(place):
        missing.append(place)
        place = os.path.dirname(place)
    created: list[str] = []
    try:
        for directory in reversed(missing):
            os.mkdir(directory, 0o755)
            created.append(directory)
    except OSError as error:
        for directory in reversed(created):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        text = (error.strerror or "").lower()
        raise _refused(
            target, f"cannot create {missing[0]}: {text}", "make the directory and give it to you"
        ) from error
    return TargetPlan(path, tuple(created), os.lstat(path).st_dev)


def _is_on_device(path: str, device: int) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_dev == device


def _refused(target: str, why: str, hint: str) -> MountFailedError:
    return MountFailedError(f"cannot mount at '{target}': {why}", hint=hint)
