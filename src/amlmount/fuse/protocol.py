"""The kernel's FUSE protocol as numbers, structs and parsers; the source of all of it is include/uapi/linux/fuse.h.

Parsing never trusts a length: bytes become a typed request or a ProtocolError, nothing else.
"""

import enum
import struct
from collections.abc import Callable
from typing import NamedTuple

ROOT_ID = 1
MAJOR = 7
NAME_MAX_BYTES = 1024  # FUSE_NAME_MAX; a longer dirent makes the kernel refuse the whole directory
MIN_READ_BUFFER_BYTES = 8192  # FUSE_MIN_READ_BUFFER
UNIQUE_RESEND = 1 << 63  # marks a request that comes again after FUSE_NOTIFY_RESEND


class ProtocolError(Exception):
    """Bytes that are not a request of the protocol."""


class Opcode(enum.IntEnum):
    """Requests the kernel sends (enum fuse_opcode, up to 7.45)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class NotifyCode(enum.IntEnum):
    """Messages we send unasked (enum fuse_notify_code)."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7


class OpenFlag(enum.IntFlag):
    """What an OPEN or OPENDIR reply tells the kernel (FOPEN_*)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
INIT_OUT = struct.Struct("<IIIIHHIIHHIIH22x")
ENTRY_OUT = struct.Struct("<4Q2I6Q10I")
ATTR_OUT = struct.Struct("<QII6Q10I")
OPEN_OUT = struct.Struct("<QIi")
STATFS_OUT = struct.Struct("<5Q4I24x")
DIRENT_HEADER = struct.Struct("<QQII")
DIRENTPLUS_HEADER_BYTES = ENTRY_OUT.size + DIRENT_HEADER.size

_INIT_IN = struct.Struct("<4I")
_U32X2 = struct.Struct("<II")
_U64 = struct.Struct("<Q")
_U64X2 = struct.Struct("<QQ")
_GETATTR_IN = struct.Struct("<IIQ")
_READ_IN = struct.Struct("<QQIIQII")
_RELEASE_IN = struct.Struct("<QIIQ")


class Header(NamedTuple):
    """Struct fuse_in_header, with the end of the body (extensions cut off) worked out."""

    opcode: int
    unique: int
    node_id: int
    uid: int
    gid: int
    pid: int
    body_end: int


class InitIn(NamedTuple):
    """INIT: what the kernel offers; `flags` holds flags2 in its upper half."""

    major: int
    minor: int
    max_readahead_bytes: int
    flags: int


class NameIn(NamedTuple):
    """A request about one name in the directory `node_id`: LOOKUP, UNLINK, RMDIR."""

    name: bytes


class ForgetIn(NamedTuple):
    """FORGET and BATCH_FORGET: (node id, number of references) pairs."""

    items: tuple[tuple[int, int], ...]


class GetattrIn(NamedTuple):
    """GETATTR; `fh` counts only with bit 0 of `flags` (FUSE_GETATTR_FH)."""

    flags: int
    fh: int


class OpenIn(NamedTuple):
    """OPEN and OPENDIR; `flags` as in open(2)."""

    flags: int
    open_flags: int


class ReadIn(NamedTuple):
    """READ, READDIR, READDIRPLUS."""

    fh: int
    offset: int
    size_bytes: int
    read_flags: int
    lock_owner: int
    flags: int


class ReleaseIn(NamedTuple):
    """RELEASE and RELEASEDIR."""

    fh: int
    flags: int
    release_flags: int
    lock_owner: int


class InterruptIn(NamedTuple):
    """INTERRUPT: the request whose caller has a signal."""

    unique: int


class OpaqueIn(NamedTuple):
    """A request whose body nobody here looks at; it lies in the request's buffer, until that is given back."""

    body: bytes | memoryview


Body = InitIn | NameIn | ForgetIn | GetattrIn | OpenIn | ReadIn | ReleaseIn | InterruptIn | OpaqueIn


class Request(NamedTuple):
    """One request: who asks for what, about which node. `unique` names it in the reply."""

    opcode: int
    unique: int
    node_id: int
    uid: int
    gid: int
    pid: int
    body: Body


def parse_header(data: memoryview) -> Header:
    """Read the header of a request that is exactly `data`; raises ProtocolError."""
    if len(data) < IN_HEADER.size:
        raise ProtocolError(f"request of {len(data)} bytes is shorter than its header")
    length, opcode, unique, node_id, uid, gid, pid, ext_units, _ = IN_HEADER.unpack_from(data)
    body_end = length - 8 * ext_units
    if length != len(data) or body_end < IN_HEADER.size:
        raise ProtocolError(f"request says {length} bytes ({ext_units} x 8 of them extensions), {len(data)} came")
    return Header(opcode, unique, node_id, uid, gid, pid, body_end)


def parse_body(header: Header, data: memoryview) -> Request:
    """Read what follows `header`; raises ProtocolError."""
    parser = _PARSERS.get(header.opcode, _parse_opaque)
    try:
        body = parser(header, data[IN_HEADER.size : header.body_end])
    except struct.error as error:
        raise ProtocolError(f"opcode {header.opcode}: body of {header.body_end - IN_HEADER.size} bytes") from error
    opcode, unique, node_id, uid, gid, pid, _ = header
    return Request(opcode, unique, node_id, uid, gid, pid, body)


def parse_request(data: memoryview) -> Request:
    """Turn the bytes of one read from /dev/fuse into a request; raises ProtocolError."""
    return parse_body(parse_header(data), data)


def _parse_init(header: Header, body: memoryview) -> InitIn:
    major, minor, readahead, flags = _INIT_IN.unpack_from(body)
    # fuse_init_in grew to 64 bytes in 7.36; flags2 counts only when FUSE_INIT_EXT says so.
    flags2 = int.from_bytes(body[16:20], "little") if flags & (1 << 30) and len(body) >= 20 else 0
    return InitIn(major, minor, readahead, flags | flags2 << 32)


def _parse_name(header: Header, body: memoryview) -> NameIn:
    raw = bytes(body)
    if raw.find(0) != len(raw) - 1 or len(raw) < 2:
        raise ProtocolError(f"opcode {header.opcode}: not one name that ends with NUL")
    return NameIn(raw[:-1])


def _parse_forget(header: Header, body: memoryview) -> ForgetIn:
    return ForgetIn(((header.node_id, _U64.unpack_from(body)[0]),))


def _parse_batch_forget(header: Header, body: memoryview) -> ForgetIn:
    count, _ = _U32X2.unpack_from(body)
    items = body[8:]
    if len(items) != count * _U64X2.size:
        raise ProtocolError(f"BATCH_FORGET of {count} nodes in {len(items)} bytes")
    return ForgetIn(tuple(_U64X2.iter_unpack(items)))


def _parse_getattr(header: Header, body: memoryview) -> GetattrIn:
    flags, _, fh = _GETATTR_IN.unpack_from(body)
    return GetattrIn(flags, fh)


def _parse_open(header: Header, body: memoryview) -> OpenIn:
    return OpenIn._make(_U32X2.unpack_from(body))


def _parse_read(header: Header, body: memoryview) -> ReadIn:
    return ReadIn._make(_READ_IN.unpack_from(body)[:6])


def _parse_release(header: Header, body: memoryview) -> ReleaseIn:
    return ReleaseIn._make(_RELEASE_IN.unpack_from(body))


def _parse_interrupt(header: Header, body: memoryview) -> InterruptIn:
    return InterruptIn(_U64.unpack_from(body)[0])


def _parse_opaque(header: Header, body: memoryview) -> OpaqueIn:
    return OpaqueIn(body)


_PARSERS: dict[int, Callable[[Header, memoryview], Body]] = {
    Opcode.INIT: _parse_init,
    Opcode.LOOKUP: _parse_name,
    Opcode.UNLINK: _parse_name,
    Opcode.RMDIR: _parse_name,
    Opcode.FORGET: _parse_forget,
    Opcode.BATCH_FORGET: _parse_batch_forget,
    Opcode.GETATTR: _parse_getattr,
    Opcode.OPEN: _parse_open,
    Opcode.OPENDIR: _parse_open,
    Opcode.READ: _parse_read,
    Opcode.READDIR: _parse_read,
    Opcode.READDIRPLUS: _parse_read,
    Opcode.RELEASE: _parse_release,
    Opcode.RELEASEDIR: _parse_release,
    Opcode.INTERRUPT: _parse_interrupt,
}
