"""The state directory as the few calls that matter for what survives: writes, and what makes them last.

Nothing else in this package touches files, so a test can stand in its place and cut the power at any of them.
"""

import errno
import fcntl
import os

from amlmount.errors import AmlmountError, BusyError

DATA, KEPT = "data", "kept"
_FILE_MODE, _DIRECTORY_MODE = 0o600, 0o700


class Disk:
    """A directory and what is in it, by relative name. Raises OSError."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.grown_bytes = 0  # of files that the kernel writes by itself

    def make_directory(self, name: str = "") -> None:
        """Make a directory that lasts; one that is there is fine."""
        path = self.path(name)
        if not os.path.isdir(path):
            os.makedirs(path, _DIRECTORY_MODE, exist_ok=True)
            self.sync_directory(os.path.dirname(path.rstrip("/")))

    def path(self, name: str) -> str:
        """Return where a name is, for people."""
        return os.path.join(self.root, name) if name else self.root

    def exists(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return os.path.exists(self.path(name))

    def names(self, directory: str) -> list[str]:
        """Return what is in a directory."""
        return sorted(os.listdir(self.path(directory)))

    def measure(self, name: str) -> tuple[int, int]:
        """Return the length of a file and when it was written to last, in nanoseconds since the epoch."""
        found = os.stat(self.path(name))
        return found.st_size, found.st_mtime_ns

    def measure_open(self, fd: int) -> tuple[int, int]:
        """Return what `measure` does of an open file."""
        found = os.fstat(fd)
        return found.st_size, found.st_mtime_ns

    def measure_taken(self, fd: int) -> tuple[int, int]:
        """Return the length of an open file, and what it takes on the disk, in bytes (stat(2): in units of 512)."""
        found = os.fstat(fd)
        return found.st_size, found.st_blocks * 512

    def close(self, fd: int) -> None:
        """Close a file; what was not synced is written by the kernel as it sees fit."""
        os.close(fd)

    def open(self, name: str, *, create: bool = False) -> int:
        """Open a file for reading and writing; a new one lasts only once its directory was synced."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        return os.open(self.path(name), flags, _FILE_MODE)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        written = os.pwrite(fd, data, offset)
        while written < len(data):
            rest = memoryview(data)[written:]
            written += os.pwrite(fd, rest, offset + written)

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Set the length of a file."""
        os.ftruncate(fd, size_bytes)

    def stamp(self, fd: int, mtime_ns: int) -> None:
        """Set when a file was written to last, in nanoseconds since the epoch."""
        os.utime(fd, ns=(mtime_ns, mtime_ns))

    def sync(self, fd: int) -> None:
        """Make what was written last, and the length."""
        os.fdatasync(fd)

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory (an absolute path) last."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in the place of what has it; lasts once its directory was synced."""
        os.rename(self.path(old), self.path(new))

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is fine."""
        try:
            os.unlink(self.path(name))
        except FileNotFoundError:
            return

    def lock(self) -> int:
        """Keep every other process out until the descriptor is closed. Raises BusyError."""
        fd = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise BusyError(
                    f"cannot use state directory '{self.root}': another process writes through it",
                    hint="one mount has one state directory; see `amlmount ps`",
                ) from None
            raise
        return fd


def open_disk(root: str) -> Disk:
    """Make the state directory and what belongs into it. Raises AmlmountError when that cannot be."""
    disk = Disk(root)
    try:
        for name in ("", DATA, KEPT):
            disk.make_directory(name)
    except OSError as error:
        raise AmlmountError(
            f"cannot use state directory '{root}': {error.strerror}", hint="it must be on a lasting, writable disk"
        ) from error
    return disk


def read_exactly(fd: int, start: int, end: int) -> bytes:
    """Return a range of a file, with zeros behind its end."""
    parts, place = [], start
    while place < end and (data := os.pread(fd, end - place, place)):
        parts.append(data)
        place += len(data)
    found = parts[0] if len(parts) == 1 else b"".join(parts)
    return found + bytes(end - place) if place < end else found
