"""A directory of this machine as a container: blobs are regular files, prefixes are directories.

A symlink is read as what it points to if that lies inside the root, and left out otherwise, as is a link to a
directory that contains it (a loop), and whatever is neither file nor directory. Of metadata only `mtime` is kept.
Atomicity: a put is a rename, so readers see the old blob or the new one. Conditions hold against every other
writer that goes through this class, in whatever process, by flock on the root directory; `if_none_match` holds
against everybody.
"""

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from amlmount.errors import AccessDeniedError, BlobNotFoundError, UsageError
from amlmount.stores.base import NO_METADATA, Content, ObjectInfo, Page, Ranges
from amlmount.stores.local_bytes import Copied, fill, fill_with, read_range, remove_empty, set_time
from amlmount.stores.local_names import (
    TEMP_PREFIX,
    blob_error,
    changed,
    container_error,
    contains,
    directory_error,
    is_plain,
    not_found,
    store_error,
    write_error,
)
from amlmount.stores.local_rename import rename_to_new

# Non-blocking, because behind a symlink there may be a FIFO; a regular file takes no notice.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_DIRECTORY = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
_ETAG = "%x-%x-%x-%x-%x"
_new_info = partial(tuple.__new__, ObjectInfo)  # half the time of ObjectInfo(...)


class LocalStore:
    """ObjectStore over a directory. Names are the paths below it, bytes that are not UTF-8 as surrogate escapes."""

    def __init__(self, path: str) -> None:
        """`path` need not exist yet; `~` and relative paths are those of the process that asks."""
        self._root = os.path.abspath(os.path.expanduser(path))
        self._real_root = os.path.realpath(self._root)

    @property
    def is_local(self) -> bool:
        """Always true."""
        return True

    def list(self, prefix: str = "", *, delimiter: bool = False, page_size: int = 5000) -> Iterator[Page]:
        """Yield pages as directories are read; with `delimiter` empty directories are prefixes too."""
        directory, _, start = prefix.rpartition("/")
        if "\0" in prefix or (directory and not is_plain(directory)) or (prefix.startswith("/")):
            return
        waiting = [directory]
        while waiting:
            for page in self._scan(waiting.pop(), start, page_size):
                if delimiter:
                    yield page
                else:
                    waiting += [found.removesuffix("/") for found in page.prefixes]
                    yield Page(page.objects, [])
            start = ""

    def head(self, name: str) -> ObjectInfo:
        """See ObjectStore.head."""
        fd = self._open_blob(name, "look at")
        try:
            return _info(name, os.fstat(fd))
        finally:
            os.close(fd)

    def get(self, name: str, start: int = 0, length: int | None = None, *, if_match: str | None = None) -> bytes:
        """Read through one descriptor; with `if_match` the etag is compared before and after, so no write slips in."""
        fd = self._open_blob(name, "read")
        try:
            if if_match is not None and if_match != _etag(os.fstat(fd)):
                raise changed("read", name)
            data = read_range(fd, start, length)
            if if_match is not None and if_match != _etag(os.fstat(fd)):
                raise changed("read", name)
            return data
        except OSError as error:
            raise blob_error(error, "read", name, self._root) from error
        finally:
            os.close(fd)

    def put(
        self,
        name: str,
        data: bytes,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Write a temporary file beside it, flush it to the disk and rename it; directories are made as needed."""
        return self._write(name, lambda fd: fill(fd, data, metadata), if_match, if_none_match)

    @property
    def keeps_metadata(self) -> bool:
        """Always false."""
        return False

    def upload(
        self,
        name: str,
        content: Content,
        *,
        unchanged: Ranges = (),
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """See WritableStore.upload; all of it is read, even what is unchanged."""
        return self._write(name, lambda fd: fill_with(fd, content, metadata), if_match, if_none_match)

    def copy(self, source: ObjectInfo, name: str, *, if_none_match: bool = False) -> ObjectInfo:
        """See WritableStore.copy; the time is that of the source."""
        filled = partial(fill_with, content=Copied(self, source), metadata=None, mtime_ns=source.mtime_ns)
        return self._write(name, filled, None, if_none_match)

    def set_metadata(self, info: ObjectInfo, metadata: Mapping[str, str]) -> ObjectInfo:
        """See WritableStore.set_metadata."""
        with self._lock(exclusive=True):
            fd = self._open_blob(info.name, "write")
            try:
                if _etag(os.fstat(fd)) != info.etag:
                    raise changed("write", info.name)
                set_time(fd, metadata)
                return _info(info.name, os.fstat(fd))
            except OSError as error:
                raise write_error(error, info.name, self._root) from error
            finally:
                os.close(fd)

    def check_writable(self) -> None:
        """See WritableStore.check_writable."""
        if not os.access(self._root, os.W_OK | os.X_OK, effective_ids=True):
            raise container_error(self._root) or AccessDeniedError(
                f"cannot write to directory {self._root!r}: it is read-only for this user",
                hint="give the user that runs amlmount the right to it",
            )

    def make_directory(self, path: str) -> None:
        """See HasDirectories.make_directory."""
        if not is_plain(path):
            raise UsageError(f"cannot make directory {path!r}: not a path inside the store", hint="choose another name")
        try:
            with self._parent(f"{path}/.", make=True) as (directory, _):
                os.fsync(directory)
        except OSError as error:
            raise write_error(error, path, self._root) from error

    def remove_directory(self, path: str) -> None:
        """See HasDirectories.remove_directory."""
        try:
            with self._parent(path) as (parent, leaf):
                remove_empty(leaf, parent)
                os.fsync(parent)
        except OSError as error:
            problem = directory_error(error, path, self._root)
            if problem is not None:
                raise problem from error

    def rename_directory(self, path: str, new_path: str) -> None:
        """See HasDirectories.rename_directory."""
        if not is_plain(path) or not is_plain(new_path):
            raise UsageError(f"cannot rename {path!r}: not a path inside the store")
        try:
            with self._parent(path) as (old_parent, old), self._parent(new_path, make=True) as (new_parent, new):
                os.rename(old, new, src_dir_fd=old_parent, dst_dir_fd=new_parent)
                os.fsync(new_parent)
                os.fsync(old_parent)
        except OSError as error:
            raise directory_error(error, path, self._root) or not_found("rename", path) from error

    def _write(
        self, name: str, fill_file: Callable[[int], None], if_match: str | None, if_none_match: bool
    ) -> ObjectInfo:
        if not is_plain(name):
            raise UsageError(f"cannot write blob {name!r}: not a path inside the store", hint="choose another name")
        try:
            with self._parent(name, make=True) as (parent, leaf):
                info = self._replace(parent, leaf, name, fill_file, if_match, if_none_match)
                os.fsync(parent)
                return info
        except FileExistsError:
            raise changed("write", name) from None
        except OSError as error:
            raise write_error(error, name, self._root) from error

    def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Remove the file; its directory stays, as a prefix with nothing in it."""
        with self._lock(exclusive=if_match is not None):
            present = self.head(name)
            if if_match not in (None, present.etag):
                raise changed("delete", name)
            try:
                with self._parent(name) as (parent, leaf):
                    os.unlink(leaf, dir_fd=parent)
            except OSError as error:
                raise blob_error(error, "delete", name, self._root) from error

    def disk_space(self) -> tuple[int, int]:
        """Return what `df` says of the disk: total bytes, and free bytes for ordinary users."""
        try:
            disk = os.statvfs(self._root)
        except OSError as error:
            raise container_error(self._root) or store_error(error, "use directory", self._root) from error
        return disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize

    def close(self) -> None:
        """Do nothing: no descriptor outlives a call."""

    # Reading

    def _scan(self, directory: str, start: str, page_size: int) -> Iterator[Page]:
        try:
            fd = self._open(directory, _DIRECTORY)
        except OSError as error:
            problem = blob_error(error, "list", directory or self._root, self._root)
            if isinstance(problem, BlobNotFoundError):
                return
            raise problem from error
        path = directory + "/" if directory else ""
        try:
            with os.scandir(fd) as entries:
                yield from self._pages(entries, fd, path, start, page_size)
        except OSError as error:
            raise store_error(error, "list", os.path.join(self._root, directory)) from error
        finally:
            os.close(fd)

    def _pages(
        self, entries: "os._ScandirIterator[str]", fd: int, path: str, start: str, page_size: int
    ) -> Iterator[Page]:
        page = Page([], [])
        room = page_size
        for entry in entries:
            name = entry.name
            if (start and not name.startswith(start)) or (name[0] == "." and name.startswith(TEMP_PREFIX)):
                continue
            try:
                if entry.is_file(follow_symlinks=False):
                    page.objects.append(_info(path + name, entry.stat(follow_symlinks=False)))
                elif entry.is_dir(follow_symlinks=False):
                    page.prefixes.append(f"{path}{name}/")
                elif entry.is_symlink():
                    self._add_link(page, fd, path, name)
            except FileNotFoundError:  # deleted since the directory was read
                continue
            room -= 1
            if not room:
                yield page
                page, room = Page([], []), page_size
        yield page

    def _add_link(self, page: Page, fd: int, path: str, name: str) -> None:
        found = self._behind_link(fd, path, name)
        if found and stat.S_ISREG(found.st_mode):
            page.objects.append(_info(path + name, found))
        elif found and stat.S_ISDIR(found.st_mode):
            page.prefixes.append(f"{path}{name}/")

    def _behind_link(self, directory_fd: int, path: str, name: str) -> os.stat_result | None:
        try:
            fd = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=directory_fd)
        except OSError:
            return None
        try:
            found = os.fstat(fd)
            if not self._is_inside(fd, path + name):
                return None
            return None if stat.S_ISDIR(found.st_mode) and self._is_loop(path, found) else found
        finally:
            os.close(fd)

    def _is_loop(self, path: str, found: os.stat_result) -> bool:
        parts = path.split("/")[:-1]
        above = [os.path.join(self._root, *parts[:depth]) for depth in range(len(parts) + 1)]
        return any(os.path.samestat(os.stat(directory), found) for directory in above)

    def _open_blob(self, name: str, verb: str) -> int:
        if not is_plain(name):
            raise not_found(verb, name)
        try:
            fd = self._open(name, _READ)
        except OSError as error:
            raise blob_error(error, verb, name, self._root) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise not_found(verb, name)
        return fd

    def _open(self, name: str, flags: int) -> int:
        """Open what lies under a plain name, and only if that is inside the root once all symlinks are followed."""
        fd = os.open(f"{self._root}/{name}" if name else self._root, flags)
        if not self._is_inside(fd, name):
            os.close(fd)
            raise FileNotFoundError(2, "leads out of the store", name)
        return fd

    def _is_inside(self, fd: int, name: str) -> bool:
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # no /proc: then by name, which a concurrent change of links could fool
            path = os.path.realpath(os.path.join(self._root, name))
        if contains(self._real_root, path):
            return True
        self._real_root = os.path.realpath(self._root)  # the root itself may have been moved or linked anew
        return contains(self._real_root, path)

    # Writing

    @contextlib.contextmanager
    def _parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        *directories, leaf = name.split("/")
        fd = os.open(self._root, _DIRECTORY)
        try:
            for index, directory in enumerate(directories):
                below = self._enter(fd, directory, "/".join(directories[: index + 1]), make)
                os.close(fd)
                fd = below
            yield fd, leaf
        finally:
            os.close(fd)

    def _enter(self, parent: int, directory: str, path: str, make: bool) -> int:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, dir_fd=parent)
                os.fsync(parent)
        fd = os.open(directory, _DIRECTORY, dir_fd=parent)
        if not self._is_inside(fd, path):
            os.close(fd)
            raise PermissionError(1, "leads out of the store", path)
        return fd

    def _replace(
        self,
        parent: int,
        leaf: str,
        name: str,
        fill_file: Callable[[int], None],
        if_match: str | None,
        if_none_match: bool,
    ) -> ObjectInfo:
        temp = TEMP_PREFIX + secrets.token_hex(8)
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=parent)
        try:
            fill_file(fd)
            with self._lock(exclusive=if_match is not None):
                if if_match is not None and if_match != self._present_etag(name):
                    raise changed("write", name)
                if if_none_match:
                    rename_to_new(temp, leaf, parent)
                else:
                    os.rename(temp, leaf, src_dir_fd=parent, dst_dir_fd=parent)
            return _info(name, os.fstat(fd))
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temp, dir_fd=parent)
            raise
        finally:
            os.close(fd)

    def _present_etag(self, name: str) -> str | None:
        try:
            return self.head(name).etag
        except BlobNotFoundError:
            return None

    @contextlib.contextmanager
    def _lock(self, *, exclusive: bool) -> Iterator[None]:
        """Hold off writers whose outcome depends on what is there now; writers without a condition share."""
        try:
            fd = os.open(self._root, _DIRECTORY)
        except OSError as error:
            raise container_error(self._root) or store_error(error, "use directory", self._root) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)


def _etag(found: os.stat_result) -> str:
    mtime_ns = found.st_mtime_ns
    return _ETAG % (found.st_dev, found.st_ino, found.st_size, mtime_ns, found.st_ctime_ns - mtime_ns)


def _info(name: str, found: os.stat_result) -> ObjectInfo:
    return _new_info((name, found.st_size, _etag(found), found.st_mtime_ns, NO_METADATA))
