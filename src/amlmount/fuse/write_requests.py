"""The requests of a mount that can be written, from the bytes of a request's body; see `protocol` for all others.

The source of every layout is include/uapi/linux/fuse.h. What is too short, or no name, is a ProtocolError.
"""

import enum
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from amlmount.fuse.protocol import OpaqueIn, ProtocolError, Request

NS = 1_000_000_000
WRITE_OUT = struct.Struct("<II")
_SETATTR = struct.Struct("<I4xQQQQQQIIIIIIII")
_WRITE = struct.Struct("<QQIIQII")
_CREATE = struct.Struct("<IIII")
_MKNOD = struct.Struct("<III4x")
_MKDIR = struct.Struct("<II")
_RENAME = struct.Struct("<Q")
_RENAME2 = struct.Struct("<QI4x")
_HANDLE = struct.Struct("<Q")
_FALLOCATE = struct.Struct("<QQQI4x")
T = TypeVar("T")


class Valid(enum.IntFlag):
    """Which fields of a SETATTR count (FATTR_*)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    MTIME = 1 << 5
    FH = 1 << 6
    MTIME_NOW = 1 << 8


class SetattrIn(NamedTuple):
    """SETATTR: new size, and modification time in nanoseconds since the epoch; `valid` says which of them count."""

    valid: Valid
    size_bytes: int
    mtime_ns: int


class WriteIn(NamedTuple):
    """WRITE; `data` lies in the request's buffer, `flags` are those of the handle, as in open(2)."""

    fh: int
    offset: int
    data: memoryview
    flags: int


class CreateIn(NamedTuple):
    """CREATE: `flags` as in open(2)."""

    flags: int
    name: bytes


class MknodIn(NamedTuple):
    """MKNOD: `mode` with the type of the file."""

    mode: int
    name: bytes


class RenameIn(NamedTuple):
    """RENAME and RENAME2: `flags` as in renameat2(2)."""

    new_parent_id: int
    flags: int
    old_name: bytes
    new_name: bytes


class SymlinkIn(NamedTuple):
    """SYMLINK."""

    name: bytes
    target: bytes


class FallocateIn(NamedTuple):
    """FALLOCATE: `mode` as in fallocate(2)."""

    offset: int
    length: int
    mode: int


def body_of(request: Request, parse: Callable[[memoryview], T]) -> T:
    """Return what a request says. Raises ProtocolError."""
    assert isinstance(request.body, OpaqueIn)
    try:
        return parse(memoryview(request.body.body))
    except struct.error:
        raise ProtocolError(f"opcode {request.opcode}: too short") from None


def parse_setattr(body: memoryview) -> SetattrIn:
    """Read struct fuse_setattr_in."""
    valid, _, size, _, _, mtime_s, _, _, mtime_ns, *_ = _SETATTR.unpack_from(body)
    seconds = mtime_s - (1 << 64) if mtime_s >> 63 else mtime_s
    return SetattrIn(Valid(valid), size, seconds * NS + mtime_ns)


def parse_write(body: memoryview) -> WriteIn:
    """Read struct fuse_write_in and what is to be written."""
    fh, offset, size, _, _, flags, _ = _WRITE.unpack_from(body)
    data = body[_WRITE.size :]
    if len(data) != size:
        raise ProtocolError(f"WRITE of {size} bytes brings {len(data)}")
    return WriteIn(fh, offset, data, flags)


def parse_create(body: memoryview) -> CreateIn:
    """Read struct fuse_create_in and a name."""
    [name] = _names(body[_CREATE.size :], 1)
    return CreateIn(_CREATE.unpack_from(body)[0], name)


def parse_mknod(body: memoryview) -> MknodIn:
    """Read struct fuse_mknod_in and a name."""
    [name] = _names(body[_MKNOD.size :], 1)
    return MknodIn(_MKNOD.unpack_from(body)[0], name)


def parse_mkdir(body: memoryview) -> bytes:
    """Read struct fuse_mkdir_in and return the name."""
    _MKDIR.unpack_from(body)
    [name] = _names(body[_MKDIR.size :], 1)
    return name


def parse_rename(body: memoryview) -> RenameIn:
    """Read struct fuse_rename_in and two names."""
    old, new = _names(body[_RENAME.size :], 2)
    return RenameIn(_RENAME.unpack_from(body)[0], 0, old, new)


def parse_rename2(body: memoryview) -> RenameIn:
    """Read struct fuse_rename2_in and two names."""
    parent, flags = _RENAME2.unpack_from(body)
    old, new = _names(body[_RENAME2.size :], 2)
    return RenameIn(parent, flags, old, new)


def parse_symlink(body: memoryview) -> SymlinkIn:
    """Read a name and a target."""
    return SymlinkIn(*_names(body, 2))


def parse_handle(body: memoryview) -> int:
    """Read the handle that FLUSH and FSYNC begin with."""
    handle: int = _HANDLE.unpack_from(body)[0]
    return handle


def parse_fallocate(body: memoryview) -> FallocateIn:
    """Read struct fuse_fallocate_in."""
    return FallocateIn._make(_FALLOCATE.unpack_from(body)[1:])


def _names(body: memoryview, count: int) -> list[bytes]:
    names = bytes(body).split(b"\0")
    if len(names) != count + 1 or names.pop() or not all(names):
        raise ProtocolError(f"not {count} names that end with NUL")
    return names
