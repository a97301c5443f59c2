"""Caches over a mount's life: what earlier runs left, what must survive a clean end, what is put away after one.

blobfuse2 wipes its cache when it is unmounted, with whatever it could not send.
"""

import logging
import os
from collections.abc import Iterator

from amlmount.recovery import ASIDE, RUNNING, Folder, find_folders, make_aside
from amlmount.recovery.classify import SECOND_NS, local_files

log = logging.getLogger(__name__)


def put_leftovers_aside(bases: list[str], but: str = "") -> list[Folder]:
    """Set aside what dead runs left below `bases`, and return everything that waits for salvage; except `but`."""
    for base in bases:
        for folder in find_folders(base, RUNNING):
            if not folder.instance.alive and folder.path != but:
                put_away(folder)
    return [folder for base in bases for folder in find_folders(base, ASIDE) if folder.path != but]


def put_away(folder: Folder) -> Folder | None:
    """Set a dead run's cache aside if it can hold anything of value (and return it), else remove it."""
    if folder.instance.may_be_dirty and folder.has_files():
        return folder.set_aside()
    folder.remove()
    return None


def keep_unsent(folder: Folder, *, everything: bool = False) -> Folder | None:
    """Hard-link aside what a clean unmount would wipe and the store may not have; None if there is nothing of that.

    A file whose upload failed at `close()` stays open in blobfuse2 (seen with 2.5.6), so the open files are enough;
    `everything`: whatever was written here, for uploads after `close()`.
    """
    wanted = set(_written(folder)) if everything else set(_open_files(folder))
    if not folder.instance.may_be_dirty or not wanted:
        return None
    aside = make_aside(folder)
    for name in sorted(wanted):
        link = os.path.join(aside.data, name)
        try:
            os.makedirs(os.path.dirname(link), mode=0o700, exist_ok=True)
            if not os.path.lexists(link):
                os.link(os.path.join(folder.data, name), link, follow_symlinks=False)
        except FileNotFoundError:
            continue  # sent and evicted in the meantime
    return aside


def _written(folder: Folder) -> Iterator[str]:
    return (file.name for file in local_files(folder.data) if file.mtime_ns % SECOND_NS)


def _open_files(folder: Folder) -> Iterator[str]:
    fds = f"/proc/{folder.instance.pid}/fd"
    try:
        names = os.listdir(fds)
    except OSError:
        return
    for name in names:
        try:
            path = os.readlink(f"{fds}/{name}")
        except OSError:
            continue
        if path.startswith(f"{folder.data}/") and os.path.isfile(path):
            yield os.path.relpath(path, folder.data)
