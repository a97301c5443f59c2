"""blobfuse2's file cache on libfuse's high level: whole files on disk, uploaded at close, wiped at a clean end.

Written after facts seen with 2.5.6; what block_cache does differently (no files on disk) is a switch.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import stat
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import mfusepy

from standin.container import AnyContainer
from standin.settings import Settings

MAX_READ_BYTES = 1048576
FINISHED_MODE = {False: 0o755, True: 0o777}


@dataclass(slots=True)
class Handle:
    """An open file: its name as it is now, and whether it was written to since it was last stored."""

    name: str
    descriptor: int
    dirty: bool = False
    failed: bool = False


@dataclass(slots=True)
class Files:
    """State of all files: locks by name, open handles by number."""

    locks: dict[str, threading.RLock] = field(default_factory=lambda: defaultdict(threading.RLock))
    handles: dict[int, Handle] = field(default_factory=dict)

    def open(self, name: str) -> list[Handle]:
        """Return the handles that are open on a name."""
        return [handle for handle in list(self.handles.values()) if handle.name == name]


class FileCacheOperations(mfusepy.Operations):  # type: ignore[misc]
    """The file system. Every method is one of libfuse's high-level operations."""

    use_ns = True

    def __init__(
        self, settings: Settings, container: AnyContainer, cache_dir: str, on_mounted: Any, on_end: Any
    ) -> None:
        self._settings, self._container, self._cache_dir = settings, container, cache_dir
        self._on_mounted, self._on_end = on_mounted, on_end
        self._files = Files()
        self._timeout_s = settings.number("file_cache.timeout-sec", 120)
        self._allow_other = settings.truth("allow-other")
        self._umask = int(str(settings.number("libfuse.umask", 0)), 8)

    # Life

    def init_with_config(self, conn_info: Any, config_3: Any) -> None:
        """Agree to max_read; undo libfuse's clean-exit handlers, as Go does by owning the signals: SIGTERM kills."""
        conn_info.max_read = MAX_READ_BYTES
        libc = ctypes.CDLL(None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            libc.signal(number, ctypes.c_void_p(0))
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
            libc.signal(number, ctypes.c_void_p(1))
        os.chdir("/")
        self._on_mounted()

    def destroy(self, path: str) -> None:
        """Wipe the cache, dirty files too: a clean unmount, and an abort of the connection, do that."""
        wipe(self._cache_dir)
        self._on_end()

    # Names and attributes

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """Return attributes: of the local copy where there is one, as FileCache.GetAttr does."""
        local = self._local(path)
        try:
            found = self._container.stat(path)
        except FileNotFoundError:
            # Local files that the store does not have are merged into what is shown.
            found = os.lstat(local)
        if stat.S_ISREG(found.st_mode) and os.path.exists(local):
            found = os.lstat(local)
        return self._attributes(path, found)

    def _attributes(self, path: str, found: os.stat_result) -> dict[str, Any]:
        times = {"st_mtime": found.st_mtime_ns, "st_ctime": found.st_mtime_ns, "st_atime": found.st_mtime_ns}
        owner = {
            "st_uid": self._settings.number("libfuse.uid", os.geteuid()),
            "st_gid": self._settings.number("libfuse.gid", os.getegid()),
        }
        return {"st_mode": self._mode(path, found), "st_nlink": 1, "st_size": found.st_size, **times, **owner}

    def _mode(self, path: str, found: os.stat_result) -> int:
        kind = stat.S_IFMT(found.st_mode)
        if self._umask:
            return kind | (0o777 & ~self._umask)
        if path == "/" or self._allow_other:
            return kind | 0o777
        return kind | self._settings.number("libfuse.default-permission", 0o755)

    def readdir(self, path: str, fh: int) -> list[str]:
        """List the store, and local files that it does not have."""
        names = self._container.names(path)
        with contextlib.suppress(OSError):
            names |= set(os.listdir(self._local(path)))
        return [".", "..", *sorted(names)]

    def statfs(self, path: str) -> dict[str, int]:
        """Report the cache, not the container."""
        size = self._settings.number("file_cache.max-size-mb", 4192) << 20
        used = sum(
            os.path.getsize(os.path.join(top, name)) for top, _, names in os.walk(self._cache_dir) for name in names
        )
        blocks, free = size // 4096, max(0, size - used) // 4096
        return {
            "f_bsize": 4096,
            "f_frsize": 4096,
            "f_blocks": blocks,
            "f_bfree": free,
            "f_bavail": free,
            "f_namemax": 255,
        }

    # Files

    def open(self, path: str, flags: int) -> int:
        """Fetch the blob unless a copy is there and young enough, or somebody has it open."""
        local = self._local(path)
        with self._files.locks[path]:
            if not self._files.open(path) and not self._is_fresh(local):
                self._fetch(path, local)
            if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY:
                os.truncate(local, 0)
            readable = os.O_RDWR if flags & os.O_ACCMODE != os.O_RDONLY else os.O_RDONLY
            return self._add(path, os.open(local, readable), dirty=bool(flags & os.O_TRUNC))

    def _is_fresh(self, local: str) -> bool:
        try:
            found = os.stat(local)
        except FileNotFoundError:
            return False
        return time.time() - max(found.st_mtime, found.st_ctime) <= self._timeout_s

    def _fetch(self, path: str, local: str) -> None:
        mark = FINISHED_MODE[False] if self._allow_other else self._settings.number("libfuse.default-permission", 0o755)
        self._container.download(path, local, mark, FINISHED_MODE[self._allow_other])

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        """Make a local file; the store learns of it at close."""
        local = self._local(path)
        os.makedirs(os.path.dirname(local), mode=0o755, exist_ok=True)
        descriptor = os.open(local, os.O_RDWR | os.O_CREAT | os.O_TRUNC, stat.S_IMODE(mode))
        return self._add(path, descriptor, dirty=True)

    def _add(self, path: str, descriptor: int, *, dirty: bool) -> int:
        self._files.handles[descriptor] = Handle(path, descriptor, dirty)
        return descriptor

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Read the local copy."""
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """Write the local copy."""
        self._files.handles[fh].dirty = True
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        """Cut the local copy; without a handle it is fetched and stored at once."""
        if fh is not None:
            self._files.handles[fh].dirty = True
            os.ftruncate(fh, length)
            return 0
        number = self.open(path, os.O_RDWR)
        os.ftruncate(number, length)
        self._files.handles[number].dirty = True
        try:
            return self.flush(path, number)
        finally:
            self.release(path, number)

    def flush(self, path: str, fh: int) -> int:
        """Upload at every close of a copy of the descriptor; a failure is close()'s EIO and the file stays dirty."""
        self._store(self._files.handles[fh])
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        """Store nothing, unless sync-to-flush says so."""
        if self._settings.truth("file_cache.sync-to-flush"):
            self._store(self._files.handles[fh])
        return 0

    def _store(self, handle: Handle) -> None:
        with self._files.locks[handle.name]:
            if handle.dirty:
                handle.failed = True
                self._container.upload(handle.name, self._local(handle.name))
                handle.dirty = handle.failed = False

    def release(self, path: str, fh: int) -> int:
        """Try a failed upload once more, in silence; a file that stays unsent stays in the cache and stays open."""
        handle = self._files.handles[fh]
        with contextlib.suppress(OSError):
            self._store(handle)
        if handle.failed:
            return 0
        del self._files.handles[fh]
        os.close(fh)
        if self._timeout_s == 0 and not self._files.open(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._local(handle.name))
        return 0

    # Changes of names

    def mkdir(self, path: str, mode: int) -> int:
        """Make a directory in the store."""
        self._container.mkdir(path)
        return 0

    def rmdir(self, path: str) -> int:
        """Remove an empty directory."""
        self._container.rmdir(path)
        return 0

    def unlink(self, path: str) -> int:
        """Delete the blob and the copy; EIO for one that was never stored."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._local(path))
        try:
            self._container.unlink(path)
        except FileNotFoundError:
            raise mfusepy.FuseOSError(errno.EIO) from None
        return 0

    def rename(self, old: str, new: str) -> int:
        """Rename in the store and in the cache; open handles follow."""
        self._container.rename(old, new)
        if os.path.exists(self._local(old)):
            os.makedirs(os.path.dirname(self._local(new)), mode=0o755, exist_ok=True)
            os.rename(self._local(old), self._local(new))
        for handle in self._files.open(old):
            handle.name = new
        return 0

    def symlink(self, target: str, source: str) -> int:
        """Make a symbolic link."""
        self._container.symlink(target, source)
        return 0

    def readlink(self, path: str) -> str:
        """Return where a symbolic link points."""
        return self._container.readlink(path)

    # Forgotten

    def chmod(self, path: str, mode: int) -> int:
        """Say yes; only a local copy changes."""
        with contextlib.suppress(FileNotFoundError):
            os.chmod(self._local(path), stat.S_IMODE(mode))
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        """Say yes and forget."""
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        """Say yes and forget."""
        return 0

    def _local(self, path: str) -> str:
        return os.path.join(self._cache_dir, path.lstrip("/"))


def wipe(folder: str) -> None:
    """Remove everything in a directory, not the directory."""
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
