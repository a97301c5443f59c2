"""The kernel's requests as calls on a file system, and its answers as bytes: the read-only set.

It decides nothing about blobs and nothing about threads: it passes `may_wait` on and lets WouldBlock through.
"""

import errno
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast

from amlmount.config.spec import Ownership, Policy
from amlmount.fuse.attributes import InodePacker
from amlmount.fuse.directories import Directories
from amlmount.fuse.handles import BackingFiles, Handles, Ledger
from amlmount.fuse.negotiate import Feature, Negotiated
from amlmount.fuse.protocol import (
    NAME_MAX_BYTES,
    OPEN_OUT,
    STATFS_OUT,
    ForgetIn,
    NameIn,
    Opcode,
    OpenFlag,
    OpenIn,
    ReadIn,
    ReleaseIn,
    Request,
)
from amlmount.fuse.session import Reply
from amlmount.vfs.base import FileSystem, OpenFiles

_STATFS_BLOCK_BYTES = 4096
# Answered ENOSYS once, these are never asked again (fs/fuse: no_flush, no_access, no_getxattr, no_lseek, ...).
_NEVER_AGAIN = (
    Opcode.FLUSH,
    Opcode.FSYNC,
    Opcode.FSYNCDIR,
    Opcode.SYNCFS,
    Opcode.ACCESS,  # the mount option default_permissions has the kernel check modes
    Opcode.GETXATTR,
    Opcode.LISTXATTR,
    Opcode.LSEEK,
    Opcode.POLL,
    Opcode.STATX,
    Opcode.BMAP,
    Opcode.GETLK,
    Opcode.SETLK,
    Opcode.SETLKW,
    Opcode.SETUPMAPPING,
    Opcode.REMOVEMAPPING,
)
_CHANGES = (
    Opcode.SETATTR,
    Opcode.SYMLINK,
    Opcode.MKNOD,
    Opcode.MKDIR,
    Opcode.UNLINK,
    Opcode.RMDIR,
    Opcode.RENAME,
    Opcode.LINK,
    Opcode.WRITE,
    Opcode.SETXATTR,
    Opcode.REMOVEXATTR,
    Opcode.CREATE,
    Opcode.FALLOCATE,
    Opcode.RENAME2,
    Opcode.COPY_FILE_RANGE,
    Opcode.COPY_FILE_RANGE_64,
    Opcode.TMPFILE,
)
_CONSTANT_ERRORS = (
    dict.fromkeys(_NEVER_AGAIN, errno.ENOSYS)
    | dict.fromkeys(_CHANGES, errno.EROFS)
    | {Opcode.IOCTL: errno.ENOTTY}  # Python's open() asks isatty() every time; nothing ends that
)

Operation = Callable[[Request, bool], Reply]


class ReadOnlyAdapter:
    """A Handler over a FileSystem, for one connection. Everything a mount may be asked, and EROFS for every change."""

    def __init__(
        self,
        fs: FileSystem,
        policy: Policy,
        ownership: Ownership,
        *,
        backings: BackingFiles | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """With `backings`, files that are whole on a local disk are read from there by the kernel, if it can.

        `ledger` tells what a predecessor on this connection left open, and a successor what we do.
        """
        self._fs = fs
        self._policy = policy
        self._packer = InodePacker(policy, ownership)
        self._directories = Directories(fs, policy, self._packer)
        self._no_open = False
        self.read_bytes = self.written_bytes = 0  # of requests; what the kernel has it reads by itself
        self._open_reply = OPEN_OUT.pack(0, self._open_flags(), 0)
        self._backings = backings
        is_tracking = isinstance(fs, OpenFiles) and fs.tracks_opens
        self._handles = Handles(cast(OpenFiles, fs), self._open_flags(), ledger) if is_tracking else None
        self._operations: dict[int, Operation] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._forget,
            Opcode.GETATTR: self._getattr,
            Opcode.READLINK: self._readlink,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.STATFS: self._statfs,
            Opcode.RELEASE: self._release,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
        }

    @property
    def constant_errors(self) -> Mapping[int, int]:
        """Requests that get the same errno whatever they say."""
        return MappingProxyType({int(opcode): number for opcode, number in _CONSTANT_ERRORS.items()})

    @property
    def follow_ups(self) -> Mapping[int, Callable[[Request], None]]:
        """The next records of a directory are packed while the caller looks at those it got."""
        return MappingProxyType({int(Opcode.READDIRPLUS): self._pack_ahead})

    def begin(self, negotiated: Negotiated) -> None:
        """Learn whether the kernel can do without OPEN; whoever promised it once must keep to it."""
        self._no_open = Feature.NO_OPEN_SUPPORT in negotiated.features
        if self._handles is not None and Feature.PASSTHROUGH in negotiated.features:
            self._handles.inodes.backings = self._backings

    def handle(self, request: Request, *, may_wait: bool) -> Reply:
        """Answer one request; see `session.Handler`."""
        operation = self._operations.get(request.opcode)
        if operation is None:
            raise OSError(errno.ENOSYS, f"opcode {request.opcode}")
        return operation(request, may_wait)

    def undelivered(self, request: Request, reply: Reply) -> None:
        """Take back the references of a LOOKUP or READDIRPLUS, or the handle of an OPEN, whose caller is gone."""
        if reply is None:
            return
        if request.opcode == Opcode.OPEN and self._handles is not None:
            self._handles.release(int.from_bytes(reply[:8], "little"))
        elif request.opcode == Opcode.LOOKUP:
            self._take_back(int.from_bytes(reply[:8], "little"))
        elif request.opcode == Opcode.READDIRPLUS:
            self._directories.take_back(reply)

    def _take_back(self, node_id: int) -> None:
        if node_id:
            self._fs.forget(node_id, 1)

    def _open_flags(self) -> OpenFlag:
        # Nothing was written, so a close has nothing to flush; asked all the same, it would wait for us, and one that
        # waits while it holds the GIL (a fork of a process that serves itself) would wait for ever.
        flags = OpenFlag.NOFLUSH
        if self._policy.direct_io:
            return flags | OpenFlag.DIRECT_IO
        return flags | OpenFlag.KEEP_CACHE if self._policy.keep_cache else flags

    def _lookup(self, request: Request, may_wait: bool) -> Reply:
        name = cast(NameIn, request.body).name
        if len(name) > NAME_MAX_BYTES:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        try:
            node = self._fs.lookup(request.node_id, name, may_wait=may_wait)
        except OSError as error:
            if error.errno == errno.ENOENT and self._policy.negative_timeout_s > 0:
                return self._packer.negative_entry
            raise
        self._fs.remember(node)
        return self._packer.entry(node)

    def _forget(self, request: Request, may_wait: bool) -> Reply:
        for node_id, nlookup in cast(ForgetIn, request.body).items:
            self._directories.forget(node_id)
            self._fs.forget(node_id, nlookup)
        return None

    @property
    def all_written_bytes(self) -> int:
        """What was written, by requests and otherwise."""
        return self.written_bytes

    def _getattr(self, request: Request, may_wait: bool) -> Reply:
        return self._packer.attr(self._fs.getattr(request.node_id, may_wait=may_wait))

    def _readlink(self, request: Request, may_wait: bool) -> Reply:
        return self._fs.readlink(request.node_id, may_wait=may_wait)

    def _open(self, request: Request, may_wait: bool) -> Reply:
        if self._no_open:
            raise OSError(errno.ENOSYS, "opens need no request")
        flags = cast(OpenIn, request.body).flags
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only mount")
        node = self._fs.node(request.node_id)
        return self._open_reply if self._handles is None else self._handles.open(node)

    def _release(self, request: Request, may_wait: bool) -> Reply:
        if self._handles is not None:
            self._handles.release(cast(ReleaseIn, request.body).fh)
        return b""

    def _read(self, request: Request, may_wait: bool) -> Reply:
        body = cast(ReadIn, request.body)
        data = self._fs.read(request.node_id, body.offset, body.size_bytes, may_wait=may_wait)
        self.read_bytes += len(data)
        return data if len(data) <= body.size_bytes else memoryview(data)[: body.size_bytes]

    def _statfs(self, request: Request, may_wait: bool) -> Reply:
        stats = self._fs.statfs()
        total, free = stats.total_bytes // _STATFS_BLOCK_BYTES, stats.free_bytes // _STATFS_BLOCK_BYTES
        size = _STATFS_BLOCK_BYTES
        return STATFS_OUT.pack(total, free, free, stats.files, 0, size, NAME_MAX_BYTES, size, 0)

    def _opendir(self, request: Request, may_wait: bool) -> Reply:
        handle, flags = self._directories.open(request.node_id)
        return OPEN_OUT.pack(handle, flags, 0)

    def _readdir(self, request: Request, may_wait: bool) -> Reply:
        body = cast(ReadIn, request.body)
        return self._directories.read(request.node_id, body.fh, body.offset, body.size_bytes, may_wait=may_wait)

    def _readdirplus(self, request: Request, may_wait: bool) -> Reply:
        body = cast(ReadIn, request.body)
        return self._directories.read_plus(request.node_id, body.fh, body.offset, body.size_bytes, may_wait=may_wait)

    def _pack_ahead(self, request: Request) -> None:
        body = cast(ReadIn, request.body)
        self._directories.pack_ahead(body.fh, body.size_bytes)

    def _releasedir(self, request: Request, may_wait: bool) -> Reply:
        self._directories.release(cast(ReleaseIn, request.body).fh)
        return b""
