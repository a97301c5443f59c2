"""One file that was open in a dead blobfuse2: its bytes are in the cache that was set aside, or come by the new mount.

What was written to it is stored through the new mount, so that whoever reads there sees it at once.
"""

import errno
import glob
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from amlmount.afterlife.held import Held
from amlmount.blobfuse2 import unfinished_download_mode
from amlmount.errors import AmlmountError, BlobNotFoundError
from amlmount.recovery import Folder
from amlmount.recovery.classify import SECOND_NS
from amlmount.recovery.contents import is_part, is_same, send
from amlmount.stores.base import ObjectInfo, ObjectStore

PIECE_BYTES = 1 << 20
FALLBACK_MODE = stat.S_IFREG | 0o644


class OldFile:
    """Serves one node; several threads use it. Methods raise OSError, which is the caller's answer."""

    def __init__(
        self, node_id: int, held: Held, folder: Folder, base: Callable[[], str | None], store: Callable[[], ObjectStore]
    ) -> None:
        """`base` is where the new mount is, if there is one; `store` is opened when a comparison needs it."""
        self.name = held.path
        self._node_id, self._held, self._folder, self._base, self._store = node_id, held, folder, base, store
        self._lock = threading.RLock()
        self._fd = -1
        self._is_aside = self._is_dirty = self._is_stored = self._is_released = False
        self._users = 0
        self._shape: tuple[int, int, int] | None = None

    def read(self, size_bytes: int, offset: int) -> bytes:
        """Return what is there."""
        with self._use() as fd:
            return os.pread(fd, size_bytes, offset)

    def write(self, data: memoryview, offset: int) -> int:
        """Write all of it."""
        self._refuse_lost()
        done = 0
        with self._use() as fd:
            self._is_dirty = True
            while done < len(data):
                done += os.pwrite(fd, data[done:], offset + done)
        return done

    def truncate(self, size_bytes: int) -> None:
        """Cut or extend it."""
        self._refuse_lost()
        with self._use() as fd:
            self._is_dirty = True
            os.ftruncate(fd, size_bytes)

    def flush(self) -> None:
        """Store what was written; EIO if that cannot be."""
        self._refuse_lost()
        with self._lock:
            if not self._may_be_dirty:
                return
            fd = self._opened()
            if not self._is_aside:
                os.close(os.dup(fd))  # a FLUSH of the new mount's own
            elif not self._held.deleted and (self._is_dirty or not (self._is_stored or self._is_in_store(fd))):
                self._store_anew(fd)
            self._is_dirty, self._is_stored = False, True

    def status(self) -> tuple[os.stat_result, tuple[int, int, int]]:
        """Return size and times, and mode, owner and group as the new mount shows them."""
        if self._shape is None:
            try:
                found = os.lstat(self._place())
                self._shape = found.st_mode, found.st_uid, found.st_gid
            except OSError:
                with self._use() as fd:
                    return os.fstat(fd), (FALLBACK_MODE, os.geteuid(), os.getegid())
        with self._use() as fd:
            return os.fstat(fd), self._shape

    def release(self) -> None:
        """Close what is open, as soon as nobody is at it: the new mount is in use otherwise. It can be opened again."""
        with self._lock:
            self._is_released = True
            self._close_if_idle()

    def close(self) -> None:
        """Close what is open."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    @contextmanager
    def _use(self) -> Iterator[int]:
        with self._lock:
            fd = self._opened()
            self._users += 1
        try:
            yield fd
        finally:
            with self._lock:
                self._users -= 1
                self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._is_released and not self._users and not self._is_dirty:
            self.close()

    @property
    def _may_be_dirty(self) -> bool:
        return self._folder.instance.may_be_dirty

    def _refuse_lost(self) -> None:
        """The block cache has no whole file: what an open writer wrote died with the process."""
        if self._folder.instance.cache == "block_cache" and self._held.writable:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _opened(self) -> int:
        with self._lock:
            if self._fd < 0:
                self._is_released = False
                aside = self._aside()
                self._is_aside = aside is not None
                if aside is not None:
                    self._fd = os.open(aside, (os.O_RDWR if self._may_be_dirty else os.O_RDONLY) | os.O_CLOEXEC)
                else:
                    writes = self._held.writable and not self._folder.instance.read_only
                    self._fd = os.open(self._place(), (os.O_RDWR if writes else os.O_RDONLY) | os.O_CLOEXEC)
            return self._fd

    def _aside(self) -> str | None:
        """Return the old cache's file if that is whole."""
        if self._folder.instance.cache != "file_cache":
            return None
        path = os.path.join(self._folder.data, self.name)
        if self._held.deleted:  # libfuse hides it under a name of its own (lib/fuse.c, hidden_name)
            hidden = f"{os.path.dirname(path)}/.fuse_hidden{self._node_id & 0xFFFFFFFF:08x}"
            path = next(iter(glob.glob(f"{glob.escape(hidden)}*")), path)
        try:
            found = os.lstat(path)
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode) or self._is_unfinished(path, found):
            return None
        return path

    def _is_unfinished(self, path: str, found: os.stat_result) -> bool:
        """Say whether it is a download that was cut: the mode says so, and it is the blob with pages missing."""
        if stat.S_IMODE(found.st_mode) != unfinished_download_mode(allow_other=self._folder.instance.allow_other):
            return False
        if not self._may_be_dirty:
            return True
        blob = self._blob()
        if blob is None or blob.size_bytes != found.st_size:
            return False
        return not is_same(self._store(), blob, path) and is_part(self._store(), blob, path)

    def _is_in_store(self, fd: int) -> bool:
        found = os.fstat(fd)
        if not self._store().is_local and found.st_mtime_ns % SECOND_NS == 0:
            return True  # never written here: a copy has the blob's time
        try:
            blob = self._blob()
            same = blob is not None and blob.size_bytes == found.st_size
            return same and blob is not None and is_same(self._store(), blob, f"/proc/self/fd/{fd}")
        except AmlmountError as error:
            raise OSError(errno.EIO, error.message) from None

    def _blob(self) -> ObjectInfo | None:
        with suppress(BlobNotFoundError):
            return self._store().head(self._blob_name)
        return None

    @property
    def _blob_name(self) -> str:
        return "/".join(part for part in (self._folder.instance.path.strip("/"), self.name) if part)

    def _place(self) -> str:
        """Return where the new mount has it. Never what lies below a target that is bare."""
        base = self._base()
        if base is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.path.join(base, self.name)

    def _store_anew(self, fd: int) -> None:
        if self._base() is None:
            self._send(fd)
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        target = os.open(self._place(), flags, stat.S_IMODE(os.fstat(fd).st_mode))
        offset = 0
        try:
            while piece := os.pread(fd, PIECE_BYTES, offset):
                offset += os.write(target, piece)
        except BaseException:
            os.close(target)
            raise
        os.close(target)  # this is what stores it, and says whether it did

    def _send(self, fd: int) -> None:
        """Store it without a mount: that was taken down."""
        try:
            blob = self._blob()
            etag = blob.etag if blob is not None else None
            send(self._store(), self._blob_name, f"/proc/self/fd/{fd}", if_match=etag, metadata=None)
        except AmlmountError as error:
            raise OSError(errno.EIO, error.message) from None
