"""Follows the configuration's files: says when they have changed and are quiet again, so that no half of one is read.

inotify(7) is the event; what a change is, is decided by looking at the files. It belongs to the event loop's thread.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from amlmount.errors import ConfigError

log = logging.getLogger(__name__)
QUIET_S = 0.25  # twice: an editor writes a draft, renames the old file and then the draft
LOOK_AGAIN_S = 30.0  # where inotify is not to be had
WRITER_S = 10.0  # for one that has a file open and does not go on
IN_MODIFY, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x2, 0x8, 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_ONLYDIR, IN_ISDIR = 0x400, 0x800, 0x1000000, 0x40000000
WATCHED = (
    IN_MODIFY
    | IN_CLOSE_WRITE
    | IN_MOVED_FROM
    | IN_MOVED_TO
    | IN_CREATE
    | IN_DELETE
    | IN_DELETE_SELF
    | IN_MOVE_SELF
    | IN_ONLYDIR
)
EVENT = struct.Struct("=iIII")
_LIBC = ctypes.CDLL(None, use_errno=True)

Seen = tuple[tuple[str, int, int, int, int], ...]


class ConfigWatch:
    """Calls `on_change` when the files are others than those `seen` when the configuration was read, until `close`.

    `files` returns the files of now, `folders` where they can come and go.
    """

    def __init__(
        self,
        files: Callable[[], Iterable[Path]],
        folders: Iterable[Path],
        seen: Seen,
        on_change: Callable[[], None],
        *,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._files, self._folders, self._on_change, self._quiet_s = files, list(folders), on_change, quiet_s
        self._known = self._last = seen
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watched: dict[int, str] = {}
        self._being_written: dict[tuple[int, str], float] = {}
        self._fd = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            log.warning("cannot watch the configuration: %s; looking every %g s", _reason(), LOOK_AGAIN_S)
        else:
            self._loop.add_reader(self._fd, self._on_events)
        self._watch()
        self._look_in(0.0)

    def close(self) -> None:
        """Watch no more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
        if self._timer is not None:
            self._timer.cancel()

    def _look_in(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        """Tell of a change if the files are as they were at the look before; else look again when they are quiet."""
        self._watch()  # directories may be others by now; before the look, so that nothing is missed in between
        now, before = look_at(self._files), self._last
        self._last = now
        if self._is_being_written():
            self._look_in(self._quiet_s)
        elif now == self._known:
            if self._fd < 0:
                self._look_in(LOOK_AGAIN_S)
        elif now != before:
            self._look_in(self._quiet_s)
        else:
            self._known = now
            self._on_change()

    def _is_being_written(self) -> bool:
        long_ago = self._loop.time() - WRITER_S
        return any(written_at > long_ago for written_at in self._being_written.values())

    def _watch(self) -> None:
        for folder in {_nearest(place) for place in self._places()} if self._fd >= 0 else ():
            watch = _LIBC.inotify_add_watch(self._fd, os.fsencode(folder), WATCHED)  # the same one as before, if so
            if watch < 0:
                log.warning("cannot watch '%s' for changes: %s", folder, _reason())
            self._watched[watch] = folder

    def _places(self) -> set[str]:
        """Return the directories that matter, those of files that links lead to included."""
        found = {str(folder) for folder in self._folders}
        with contextlib.suppress(Exception):
            for path in self._files():
                found |= {os.path.dirname(path), os.path.dirname(os.path.realpath(path))}
        return found

    def _on_events(self) -> None:
        with contextlib.suppress(BlockingIOError):
            events = list(_events(os.read(self._fd, 65536)))
            for watch, mask, name in events:
                if mask & IN_MODIFY:
                    self._being_written[watch, name] = self._loop.time()
                else:
                    self._being_written.pop((watch, name), None)
            if any(self._is_complete(*event) for event in events):
                self._look_in(self._quiet_s)

    def _is_complete(self, watch: int, mask: int, name: str) -> bool:
        """Say whether something is there now: what is being written is closed first, links that are made are not."""
        if mask & IN_ISDIR or not mask & (IN_CREATE | IN_MODIFY):
            return True
        path = os.path.join(self._watched.get(watch, ""), name)
        with contextlib.suppress(OSError):
            return bool(mask & IN_CREATE) and (os.path.islink(path) or os.lstat(path).st_nlink > 1)
        return True


def refuse_ruins(main: Path, before: Seen, mounts_before: int, mounts_now: int) -> None:
    """Raise ConfigError for what looks like an accident: nobody asked for a file to be read that is empty or gone."""
    hint = "if that is meant: amlmount reload"
    if mounts_before and not mounts_now:
        raise ConfigError("cannot take over the configuration: it names no mounts any more", hint=hint)
    if any(name == str(main) for name, *_ in before) and not os.path.exists(main):
        raise ConfigError(f"cannot take over the configuration: '{main}' is gone", hint=hint)


def look_at(files: Callable[[], Iterable[Path]]) -> Seen:
    """Return what tells the present files from others: names, and what a write or a rename changes."""
    found = []
    try:
        for path in files():
            with contextlib.suppress(OSError):
                about = os.stat(path)
                found.append((str(path), about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))
    except Exception as error:  # a folder that is gone or closed to us is other than one that can be read
        log.debug("the configuration cannot be looked at: %s", error)
    return tuple(found)


def _events(data: bytes) -> Iterator[tuple[int, int, str]]:
    at = 0
    while at < len(data):
        watch, mask, _, length = EVENT.unpack_from(data, at)
        at += EVENT.size + length
        yield watch, mask, os.fsdecode(data[at - length : at].rstrip(b"\0"))


def _nearest(folder: str) -> str:
    """Return the directory, or the nearest above it that is there: it shows when the others come."""
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder


def _reason() -> str:
    return os.strerror(ctypes.get_errno())
