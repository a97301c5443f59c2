"""The kernel's requests as calls on a file system that can be written: everything the read-only set refuses.

A write goes to the local disk in the thread that reads requests; what waits for a store is done in the pool. After a
crash the kernel sends again what was not answered: what is noted as done is then only answered.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, cast

from amlmount.config.spec import Ownership, Policy
from amlmount.fuse.adapter import ReadOnlyAdapter
from amlmount.fuse.handles import BackingFiles, Ledger, OpenInodes
from amlmount.fuse.negotiate import Feature, Negotiated, Offer, offer_for
from amlmount.fuse.protocol import (
    ENTRY_OUT,
    NAME_MAX_BYTES,
    OPEN_OUT,
    UNIQUE_RESEND,
    NameIn,
    Opcode,
    OpenFlag,
    OpenIn,
    ReleaseIn,
    Request,
)
from amlmount.fuse.session import Reply
from amlmount.fuse.write_requests import (
    WRITE_OUT,
    Valid,
    body_of,
    parse_create,
    parse_fallocate,
    parse_handle,
    parse_mkdir,
    parse_mknod,
    parse_rename,
    parse_rename2,
    parse_setattr,
    parse_symlink,
    parse_write,
)
from amlmount.vfs.base import Node, NodeKind, WouldBlock
from amlmount.vfs.writing.attempts import ONCE, Attempt
from amlmount.vfs.writing.filesystem import WritableFileSystem
from amlmount.vfs.writing.namespace import Namespace
from amlmount.vfs.writing.renaming import Renaming

MAX_WRITE_BYTES = 1 << 20
_MAX_TURNS, _FIRST_TURN_S = 12, 0.001
RENAME_NOREPLACE = 1  # include/uapi/linux/fs.h
FALLOC_KEEP_SIZE = 1  # include/uapi/linux/falloc.h
_REFUSED = {
    Opcode.LINK: errno.EPERM,  # a blob has one name
    Opcode.TMPFILE: errno.EOPNOTSUPP,
    Opcode.COPY_FILE_RANGE: errno.ENOSYS,  # the kernel then copies by itself
    Opcode.COPY_FILE_RANGE_64: errno.ENOSYS,
    Opcode.SETXATTR: errno.ENOSYS,
    Opcode.REMOVEXATTR: errno.ENOSYS,
}


@dataclass(slots=True)
class _Open:
    node: Node
    is_writer: bool


def writing_offer(policy: Policy) -> Offer:
    """Work out the offer of a mount that can be written.

    Nothing changes in an inode but through this mount (another's change is another inode), so the kernel need not
    drop its pages whenever a time changes. What is written comes to us at once: no WRITEBACK_CACHE.
    """
    offer = offer_for(policy)
    features = offer.features & ~(Feature.NO_OPEN_SUPPORT | Feature.PASSTHROUGH | Feature.AUTO_INVAL_DATA)
    if not policy.direct_io:
        features |= Feature.PASSTHROUGH
    return replace(offer, features=features | Feature.ATOMIC_O_TRUNC, max_write_bytes=MAX_WRITE_BYTES)


class WritingAdapter(ReadOnlyAdapter):
    """A Handler over a writable file system, for one connection."""

    def __init__(
        self,
        fs: WritableFileSystem,
        policy: Policy,
        ownership: Ownership,
        *,
        backings: BackingFiles | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(fs, policy, ownership, backings=backings)
        self._files = fs
        self._inodes = OpenInodes(ledger)
        fs.is_backed, fs.count_handles = self._inodes.is_backed, self._inodes.count
        fs.left_open = self._inodes.counts
        self._names = Namespace(fs)
        self._renaming = Renaming(self._names)
        self._opens: dict[int, _Open] = {}
        waiting: dict[int, Callable[[Request], Reply]] = {
            Opcode.SETATTR: self._setattr,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename,
            Opcode.FSYNC: self._fsync,
            Opcode.FALLOCATE: self._fallocate,
        }
        self._operations |= {opcode: _in_the_pool(operation) for opcode, operation in waiting.items()}
        self._operations |= {Opcode.CREATE: self._create, Opcode.WRITE: self._write, Opcode.FLUSH: self._flush}
        self._operations |= {Opcode.FSYNCDIR: lambda request, may_wait: b""}

    @property
    def constant_errors(self) -> Mapping[int, int]:
        """Requests that get the same errno whatever they say."""
        refused = {int(opcode): number for opcode, number in _REFUSED.items()}
        always = super().constant_errors
        return MappingProxyType(
            {opcode: number for opcode, number in always.items() if opcode not in self._operations} | refused
        )

    def begin(self, negotiated: Negotiated) -> None:
        """Learn whether the kernel can write files by itself; every open is asked for here."""
        if Feature.PASSTHROUGH in negotiated.features:
            self._inodes.backings = self._backings

    def undelivered(self, request: Request, reply: Reply) -> None:
        """Take back the references and handles of a reply whose caller is gone."""
        if reply is None:
            return
        if request.opcode == Opcode.OPEN:
            self._close(int.from_bytes(reply[:8], "little"))
        elif request.opcode == Opcode.CREATE:
            self._close(int.from_bytes(reply[ENTRY_OUT.size : ENTRY_OUT.size + 8], "little"))
            self._take_back(int.from_bytes(reply[:8], "little"))
        elif request.opcode in (Opcode.MKDIR, Opcode.MKNOD, Opcode.SYMLINK):
            self._take_back(int.from_bytes(reply[:8], "little"))
        else:
            super().undelivered(request, reply)

    @property
    def all_written_bytes(self) -> int:
        """See ReadOnlyAdapter."""
        return self.written_bytes + self._files.disk.grown_bytes

    # Files

    def _open(self, request: Request, may_wait: bool) -> Reply:
        flags = cast(OpenIn, request.body).flags
        if not may_wait and self._inodes.is_backed(request.node_id):
            raise WouldBlock
        node = self._files.open_file(request.node_id, flags, who=request.pid, may_wait=may_wait)
        return self._opened(node, flags, request)

    def _opened(self, node: Node, flags: int, request: Request) -> bytes:
        """Return the reply for a new handle. Its number is the request's: sent again, it is the same handle."""
        handle, is_writer = request.unique & ~UNIQUE_RESEND, flags & os.O_ACCMODE != os.O_RDONLY
        if self._inodes.leave(handle):
            self._files.uncount(node)  # a process before us had come so far with this very request
        try:
            backing_id = self._back(node, flags, handle)
        except BaseException:
            self._inodes.leave(handle)
            self._files.close_file(node)
            raise
        self._opens[handle] = _Open(node, is_writer)
        answer = OpenFlag.DIRECT_IO if self._policy.direct_io else OpenFlag.KEEP_CACHE
        if backing_id:
            answer = OpenFlag.PASSTHROUGH
        return OPEN_OUT.pack(handle, answer if is_writer else answer | OpenFlag.NOFLUSH, backing_id)

    def _back(self, node: Node, flags: int, handle: int) -> int:
        """Count a handle, and let the kernel write by itself where it may; each has to be told of the other first."""
        for turn in range(_MAX_TURNS):
            fd, epoch = self._files.empty_file(node, flags) or (None, None)
            try:
                find_file = partial(os.dup, fd) if fd is not None else _no_file
                backing_id, is_first = self._inodes.enter(handle, node.node_id, find_file)
            finally:
                if fd is not None:
                    os.close(fd)
            if not backing_id or self._files.begin_direct(node, flags, epoch if is_first else None):
                return backing_id
            self._inodes.leave(handle)  # it has got another data file meanwhile, or whoever was first is not ready
            time.sleep(_FIRST_TURN_S * 2**turn)
        raise OSError(errno.EBUSY, "cut by somebody else again and again while it was opened")

    def _release(self, request: Request, may_wait: bool) -> Reply:
        handle = cast(ReleaseIn, request.body).fh
        if self._inodes.leave(handle) and handle not in self._opens and (node := self._files.known(request.node_id)):
            self._opens[handle] = _Open(node, is_writer=False)  # a predecessor's
        opened = self._opens.get(handle)  # None: what a process before us took back, and never answered
        if opened is not None and opened.node.kind is NodeKind.FILE:
            self._files.close_file(opened.node, may_wait=may_wait)
        self._opens.pop(handle, None)
        return b""

    def _close(self, handle: int) -> None:
        self._inodes.leave(handle)
        opened = self._opens.pop(handle, None)
        if opened is not None:
            self._files.close_file(opened.node)

    def _write(self, request: Request, may_wait: bool) -> Reply:
        body = body_of(request, parse_write)
        is_append = bool(body.flags & os.O_APPEND)
        written = self._files.write(request.node_id, body.offset, body.data, is_append=is_append, may_wait=may_wait)
        self.written_bytes += written
        return WRITE_OUT.pack(written, 0)

    def _flush(self, request: Request, may_wait: bool) -> Reply:
        opened = self._opens.get(body_of(request, parse_handle))
        if opened is not None and not opened.is_writer:
            return b""
        if not may_wait:
            raise WouldBlock
        self._files.flush(request.node_id)
        return b""

    def _fsync(self, request: Request) -> Reply:
        self._files.flush(request.node_id)
        return b""

    def _setattr(self, request: Request) -> Reply:
        body = body_of(request, parse_setattr)
        if body.valid & Valid.SIZE:
            self._files.resize(request.node_id, body.size_bytes, by_name=not body.valid & Valid.FH)
        if body.valid & Valid.MTIME and not body.valid & Valid.SIZE:
            mtime_ns = time.time_ns() if body.valid & Valid.MTIME_NOW else body.mtime_ns
            self._files.set_mtime(request.node_id, mtime_ns)
        return self._packer.attr(self._files.getattr(request.node_id))

    def _fallocate(self, request: Request) -> Reply:
        body = body_of(request, parse_fallocate)
        if body.mode & ~FALLOC_KEEP_SIZE:
            raise OSError(errno.EOPNOTSUPP, "no holes are punched")
        if not body.mode:
            self._files.lengthen(request.node_id, body.offset + body.length)
        return b""

    # Names

    def _create(self, request: Request, may_wait: bool) -> Reply:
        body = body_of(request, parse_create)
        # Sent again it opens what it finds, as anybody's would: only O_EXCL has to know whose that is.
        attempt = self._attempt(request) if body.flags & os.O_EXCL else ONCE
        node = self._names.create(request.node_id, _checked(body.name), body.flags, attempt, may_wait=may_wait)
        self._files.arrived(node, request.pid)
        return self._entered(attempt, node) + self._opened(node, body.flags, request)

    def _mknod(self, request: Request) -> Reply:
        body, attempt = body_of(request, parse_mknod), self._attempt(request)
        if not stat.S_ISREG(body.mode):
            raise OSError(errno.EPERM, "a container has files and directories only")
        node = self._names.create(request.node_id, _checked(body.name), os.O_RDWR | os.O_EXCL, attempt)
        reply = self._entered(attempt, node)
        self._files.close_file(node)
        return reply

    def _mkdir(self, request: Request) -> Reply:
        name, attempt = _checked(body_of(request, parse_mkdir)), self._attempt(request)
        return self._entered(attempt, self._names.mkdir(request.node_id, name, attempt))

    def _symlink(self, request: Request) -> Reply:
        body, attempt = body_of(request, parse_symlink), self._attempt(request)
        return self._entered(attempt, self._names.symlink(request.node_id, _checked(body.name), body.target, attempt))

    def _unlink(self, request: Request) -> Reply:
        attempt = self._attempt(request)
        if not attempt.was_done:
            self._names.unlink(request.node_id, cast(NameIn, request.body).name, attempt)
        attempt.end()
        return b""

    def _rmdir(self, request: Request) -> Reply:
        attempt = self._attempt(request)
        if not attempt.was_done:
            self._names.rmdir(request.node_id, cast(NameIn, request.body).name, attempt)
        attempt.end()
        return b""

    def _rename(self, request: Request) -> Reply:
        body = body_of(request, parse_rename if request.opcode == Opcode.RENAME else parse_rename2)
        if body.flags & ~RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "names are not exchanged")
        attempt, new_name = self._attempt(request), _checked(body.new_name)
        if not attempt.was_done:
            self._renaming.rename(
                request.node_id,
                body.old_name,
                body.new_parent_id,
                new_name,
                may_replace=not body.flags,
                attempt=attempt,
            )
        attempt.end()
        return b""

    def _attempt(self, request: Request) -> Attempt:
        number, is_again = request.unique & ~UNIQUE_RESEND, bool(request.unique & UNIQUE_RESEND)
        return Attempt(self._files.ledger, number, is_again=is_again)

    def _entered(self, attempt: Attempt, node: Node) -> bytes:
        attempt.end()
        self._files.remember(node)
        return self._packer.entry(node)


def _no_file() -> None:
    return None


def _in_the_pool(operation: Callable[[Request], Reply]) -> Any:
    def operate(request: Request, may_wait: bool) -> Reply:
        if not may_wait:
            raise WouldBlock
        return operation(request)

    return operate


def _checked(name: bytes) -> bytes:
    if len(name) > NAME_MAX_BYTES:
        raise OSError(errno.ENAMETOOLONG, "name too long")
    return name
