"""Answering what still comes in on a dead blobfuse2's connection, from several threads, until the kernel ends it.

What is asked by path gets ESTALE: the VFS then walks the path again from its start, and ends in the new mount.
"""

import errno
import logging
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from amlmount.afterlife import held
from amlmount.afterlife.directories import Directories, attributes, names_in
from amlmount.afterlife.files import OldFile
from amlmount.afterlife.plan import Plan
from amlmount.errors import AmlmountError
from amlmount.fuse.protocol import ATTR_OUT, IN_HEADER, OPEN_OUT, OUT_HEADER, ROOT_ID, STATFS_OUT, Opcode
from amlmount.mounts import find_mount, is_ours
from amlmount.recovery import Folder
from amlmount.stores.base import ObjectStore

log = logging.getLogger(__name__)
BUFFER_BYTES = (1 << 20) + (64 << 10)
SILENT = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
PLAIN: dict[int, int] = {
    **dict.fromkeys((Opcode.RELEASEDIR, Opcode.FSYNCDIR, Opcode.DESTROY, Opcode.ACCESS), 0),
    **dict.fromkeys((Opcode.GETXATTR, Opcode.SETXATTR, Opcode.LISTXATTR, Opcode.REMOVEXATTR), errno.EOPNOTSUPP),
    **dict.fromkeys((Opcode.LSEEK, Opcode.POLL, Opcode.COPY_FILE_RANGE, Opcode.STATX, Opcode.SYNCFS), errno.ENOSYS),
    Opcode.FALLOCATE: errno.EOPNOTSUPP,
    Opcode.IOCTL: errno.ENOTTY,
}
FATTR_SIZE = 1 << 3
_READ_IN, _SETATTR_IN, _RENAME2_IN = struct.Struct("<QQI"), struct.Struct("<IIQQ"), struct.Struct("<QII")
_CREATE_IN, _U32, _U64 = struct.Struct("<IIII"), struct.Struct("<I"), struct.Struct("<Q")
WRITE_IN_BYTES, RENAME_IN_BYTES = 40, 8
Body = memoryview


class Server:
    """All nodes of one dead mount. `secured` is called before a close of a file nobody can name is acknowledged."""

    def __init__(
        self, plan: Plan, folder: Folder, store: Callable[[], ObjectStore], secured: Callable[[], bool]
    ) -> None:
        self._plan, self._folder, self._open_store, self._secured = plan, folder, store, secured
        self._lock = threading.Lock()
        self._files: dict[int, OldFile] = {}
        self._handles: dict[int, int] = {}
        self.busy = 0
        held_directories = {node: item.path for node, item in plan.held.items() if item.is_directory}
        self._directories = Directories(self._base, {ROOT_ID: "", **held_directories} if held_directories else {})
        for node, item in plan.held.items():
            self._add(node, item)
        self._answers: dict[int, Callable[[int, Body], bytes | list[bytes]]] = {
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.FLUSH: self._flush,
            Opcode.FSYNC: self._flush,
            Opcode.RELEASE: self._release,
            Opcode.READDIR: lambda node, body: self._entries(node, body, plus=False),
            Opcode.READDIRPLUS: lambda node, body: self._entries(node, body, plus=True),
            Opcode.OPENDIR: self._opendir,
            Opcode.LOOKUP: lambda node, body: self._directories.entry(node, *names_in(body, 1)),
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: lambda node, body: self._remove(os.unlink, node, body),
            Opcode.RMDIR: lambda node, body: self._remove(os.rmdir, node, body),
            Opcode.RENAME: lambda node, body: self._rename(node, body, RENAME_IN_BYTES),
            Opcode.RENAME2: lambda node, body: self._rename(node, body, _RENAME2_IN.size),
            Opcode.READLINK: lambda node, body: os.fsencode(os.readlink(self._directories.place(node))),
            Opcode.STATFS: self._statfs,
        }

    @property
    def names(self) -> set[str]:
        """The files that are served, by their path below the mount."""
        with self._lock:
            return {file.name for file in self._files.values()}

    def serve(self, fuse_fd: int) -> None:
        """Answer requests until the connection has ended."""
        buffer = bytearray(BUFFER_BYTES)
        view = memoryview(buffer)
        while True:
            try:
                size = os.readv(fuse_fd, [buffer])
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                raise
            self._answer(fuse_fd, view[:size])

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        for fd in self._handles.values():
            with suppress(OSError):
                os.close(fd)

    def _answer(self, fuse_fd: int, request: memoryview) -> None:
        _, opcode, unique, node, _, _, _, _, _ = IN_HEADER.unpack_from(request)
        if opcode in SILENT:
            return
        body = request[IN_HEADER.size :]
        if opcode in (Opcode.FLUSH, Opcode.FSYNC):  # may take long; those that wait for a path must not wait for it
            kept = memoryview(bytes(body))
            threading.Thread(target=self._reply, args=(fuse_fd, opcode, unique, node, kept), daemon=True).start()
        else:
            self._reply(fuse_fd, opcode, unique, node, body)

    def _reply(self, fuse_fd: int, opcode: int, unique: int, node: int, body: Body) -> None:
        with self._lock:
            self.busy += 1
        number, parts = self._outcome(opcode, node, body)
        with self._lock:
            self.busy -= 1
        size = OUT_HEADER.size + sum(map(len, parts))
        with suppress(OSError):  # whoever asked has been killed, or the connection has ended
            os.writev(fuse_fd, [OUT_HEADER.pack(size, -number, unique), *parts])

    def _outcome(self, opcode: int, node: int, body: Body) -> tuple[int, list[bytes]]:
        answer = self._answers.get(opcode)
        if answer is None:
            return PLAIN.get(opcode, errno.ESTALE), []
        try:
            made = answer(node, body)
            return 0, made if isinstance(made, list) else [made]
        except OSError as error:
            return error.errno or errno.EIO, []
        except (AmlmountError, struct.error) as error:
            log.error("request %d of node %d: %s", opcode, node, error)
            return errno.EIO, []
        except Exception:
            log.exception("request %d of node %d", opcode, node)
            return errno.EIO, []

    # --- files that were open ----------------------------------------------------------------------------------------

    def _file(self, node: int) -> OldFile:
        """Return a node's file; one that was not seen when the process died is looked for once more."""
        found = self._find(node)
        if found is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found

    def _find(self, node: int) -> OldFile | None:
        if (found := self._files.get(node)) is None and not self._directories.knows(node):
            now = held.look(self._plan.device, self._plan.views).get(node)
            if now is not None:
                self._add(node, now)
            found = self._files.get(node)
        return found

    def _add(self, node: int, item: held.Held) -> None:
        if item.is_directory:
            self._directories.add(node, item.path)
            return
        with self._lock:
            self._files.setdefault(node, OldFile(node, item, self._folder, self._base, self._open_store))

    def _base(self) -> str | None:
        """Return where the new mount is: never a bare directory."""
        entry = find_mount(self._plan.target)
        return self._plan.target if entry is not None and is_ours(entry) else None

    def _read(self, node: int, body: Body) -> bytes:
        handle, offset, size = _READ_IN.unpack_from(body)
        if handle in self._handles and self._directories.knows(node):
            return os.pread(self._handles[handle], size, offset)
        return self._file(node).read(size, offset)

    def _write(self, node: int, body: Body) -> bytes:
        handle, offset, size = _READ_IN.unpack_from(body)
        data = body[WRITE_IN_BYTES : WRITE_IN_BYTES + size]
        if handle in self._handles and self._directories.knows(node):
            return struct.pack("<II", os.pwrite(self._handles[handle], data, offset), 0)
        return struct.pack("<II", self._file(node).write(data, offset), 0)

    def _flush(self, node: int, body: Body) -> list[bytes]:
        [handle] = _U64.unpack_from(body)
        if self._directories.knows(node):
            if handle in self._handles:
                os.close(os.dup(self._handles[handle]))
            return []
        if (file := self._find(node)) is not None:
            file.flush()
        elif not self._folder.instance.read_only and not self._secured():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return []

    def _release(self, node: int, body: Body) -> list[bytes]:
        [handle] = _U64.unpack_from(body)
        if self._directories.knows(node) and (fd := self._handles.pop(handle, None)) is not None:
            os.close(fd)
        elif (file := self._files.get(node)) is not None:
            file.release()
        return []

    def _getattr(self, node: int, body: Body) -> bytes:
        if self._directories.knows(node):
            return self._directories.attr(node)
        return self._attr_of(node, self._file(node))

    def _setattr(self, node: int, body: Body) -> bytes:
        valid, _, _, size = _SETATTR_IN.unpack_from(body)
        if self._directories.knows(node):
            if valid & FATTR_SIZE:
                os.truncate(self._directories.place(node), size)
            return self._directories.attr(node)
        file = self._file(node)
        if valid & FATTR_SIZE:
            file.truncate(size)
        return self._attr_of(node, file)  # modes, owners and times are forgotten, as blobfuse2 does

    def _attr_of(self, node: int, file: OldFile) -> bytes:
        found, (mode, uid, gid) = file.status()
        values = list(attributes(node, found))
        values[9], values[11], values[12] = mode, uid, gid
        return ATTR_OUT.pack(0, 0, 0, *values)

    # --- by way of a directory that somebody holds -------------------------------------------------------------------

    def _entries(self, node: int, body: Body, *, plus: bool) -> bytes:
        _, offset, size = _READ_IN.unpack_from(body)
        if not self._directories.knows(node):  # opened without O_DIRECTORY
            self._directories.add(node, self._file(node).name)
        return self._directories.entries(node, offset, size, plus=plus)

    def _opendir(self, node: int, body: Body) -> bytes:
        self._directories.place(node)
        return OPEN_OUT.pack(0, 0, 0)

    def _open(self, node: int, body: Body) -> bytes:
        [flags] = _U32.unpack_from(body)
        return self._opened(os.open(self._directories.place(node), flags & ~(os.O_CREAT | os.O_EXCL) | os.O_CLOEXEC))

    def _opened(self, fd: int) -> bytes:
        self._handles[fd] = fd
        return OPEN_OUT.pack(fd, 0, 0)

    def _create(self, node: int, body: Body) -> list[bytes]:
        flags, mode, umask, _ = _CREATE_IN.unpack_from(body)
        [name] = names_in(body, 1, _CREATE_IN.size)
        fd = os.open(self._directories.place(node, name), flags | os.O_CREAT | os.O_CLOEXEC, mode & ~umask & 0o7777)
        return [self._directories.entry(node, name), self._opened(fd)]

    def _mkdir(self, node: int, body: Body) -> bytes:
        mode, umask = struct.unpack_from("<II", body)
        [name] = names_in(body, 1, 8)
        os.mkdir(self._directories.place(node, name), mode & ~umask & 0o7777)
        return self._directories.entry(node, name)

    def _remove(self, how: Callable[[str], None], node: int, body: Body) -> list[bytes]:
        how(self._directories.place(node, *names_in(body, 1)))
        return []

    def _rename(self, node: int, body: Body, skip: int) -> list[bytes]:
        [parent] = _U64.unpack_from(body)
        old, new = names_in(body, 2, skip)
        os.rename(self._directories.place(node, old), self._directories.place(parent, new))
        return []

    def _statfs(self, node: int, body: Body) -> bytes:
        base = self._base()
        if base is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        found = os.statvfs(base)
        counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return STATFS_OUT.pack(*counts, found.f_bsize, found.f_namemax, found.f_frsize, 0)
