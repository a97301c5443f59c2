"""Data that nobody may lose and the program cannot place: moved aside, with a note beside it, and never removed.

A person decides about it; `kept` lists what there is.
"""

import json
import os
import re
import time
from dataclasses import dataclass

from amlmount.vfs.writing.disk import DATA, KEPT, Disk
from amlmount.vfs.writing.livefile import State

_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Kept:
    """Something set aside: where it is, what blob it belongs to, why, and since when (seconds since the epoch)."""

    path: str
    name: str
    why: str
    at: float


def keep(disk: Disk, state: State, why: str) -> str:
    """Move the data file of a live file aside and return its path. Raises OSError."""
    stem = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{state.id:x}-{_PLAIN.sub('_', state.name)[-80:]}"
    name = f"{KEPT}/{stem}"
    note = {"path": disk.path(name), "name": state.name, "place": state.place, "why": why, "at": time.time()}
    note |= {"size": state.size, "held": "all" if state.whole else list(state.held), "etag": state.etag}
    fd = disk.open(f"{name}.json", create=True)
    try:
        disk.write(fd, json.dumps(note, indent=1).encode(), 0)
        disk.sync(fd)
    finally:
        os.close(fd)
    if disk.exists(state.data_name):
        fd = disk.open(state.data_name)
        try:
            disk.sync(fd)
        finally:
            os.close(fd)
        disk.rename(state.data_name, name)
    disk.sync_directory(disk.path(KEPT))
    disk.sync_directory(disk.path(DATA))
    state.has_data = False
    return disk.path(name)


def list_kept(disk: Disk) -> list[Kept]:
    """Return what was set aside and is still there, oldest first."""
    found = []
    for name in disk.names(KEPT):
        if not name.endswith(".json"):
            continue
        try:
            with open(disk.path(f"{KEPT}/{name}"), "rb") as file:
                note = json.load(file)
            found.append(Kept(note["path"], note["name"], note["why"], note["at"]))
        except (OSError, ValueError, KeyError):
            continue  # removed meanwhile, or written to by somebody else
    return sorted(found, key=lambda one: one.at)
