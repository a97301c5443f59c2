"""The smallest FUSE server that is any use: a root with one file `hello`, for tests that need a mount and not ours.

Run as a script (`tiny_fuse.py FD`) it serves an inherited descriptor until the mount is gone. Numbers: linux/fuse.h.
"""

import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable

CONTENT = b"hello, world\n"
ROOT, HELLO = 1, 2
IN_HEADER, OUT_HEADER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = (
    1, 2, 3, 14, 15, 17, 18, 25, 26, 27, 28, 29,
)  # fmt: skip
BATCH_FORGET = 42


def start(fuse_fd: int) -> "subprocess.Popen[bytes]":
    """Serve `fuse_fd` in a process of its own (a mount must never be used by the process that serves it)."""
    return subprocess.Popen([sys.executable, "-I", "-S", __file__, str(fuse_fd)], pass_fds=[fuse_fd])


def attributes(node: int) -> bytes:
    """Return fuse_attr of a node."""
    mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o644
    size = 0 if node == ROOT else len(CONTENT)
    return struct.pack("<6Q10I", node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def on_lookup(node: int, body: bytes) -> bytes | int:
    """Find `hello`, and nothing else."""
    if body.rstrip(b"\0") != b"hello":
        return errno.ENOENT
    return struct.pack("<4Q2I", HELLO, 0, 60, 60, 0, 0) + attributes(HELLO)


def on_read(node: int, body: bytes) -> bytes | int:
    """Return a piece of the content."""
    _, offset, size = struct.unpack_from("<QQI", body)
    return CONTENT[offset : offset + size]


def on_readdir(node: int, body: bytes) -> bytes | int:
    """List `hello` once."""
    _, offset = struct.unpack_from("<QQ", body)
    return b"" if offset else struct.pack("<QQII5s3x", HELLO, 1, 5, stat.S_IFREG >> 12, b"hello")


ANSWERS: dict[int, Callable[[int, bytes], bytes | int]] = {
    INIT: lambda node, body: struct.pack("<IIIIHHIIHH", 7, 31, 131072, 0, 12, 9, 131072, 1, 32, 0) + bytes(32),
    LOOKUP: on_lookup,
    GETATTR: lambda node, body: struct.pack("<QII", 60, 0, 0) + attributes(node),
    OPEN: lambda node, body: struct.pack("<QIi", 0, 0, 0),
    OPENDIR: lambda node, body: struct.pack("<QIi", 0, 0, 0),
    READ: on_read,
    READDIR: on_readdir,
    STATFS: lambda node, body: struct.pack("<5Q4I6I", 0, 0, 0, 0, 0, 4096, 255, 4096, *[0] * 7),
    RELEASE: lambda node, body: b"",
    RELEASEDIR: lambda node, body: b"",
    FLUSH: lambda node, body: b"",
}


def serve(fuse_fd: int) -> None:
    """Answer requests until the kernel says that the mount is gone."""
    while True:
        try:
            request = os.read(fuse_fd, 1 << 18)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            raise
        _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
        if opcode in (FORGET, BATCH_FORGET):
            continue
        handler = ANSWERS.get(opcode)
        answer = handler(node, request[IN_HEADER.size :]) if handler else errno.ENOSYS
        number, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
        try:
            os.write(fuse_fd, OUT_HEADER.pack(OUT_HEADER.size + len(body), number, unique) + body)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # nobody waits for this answer any more
                raise


if __name__ == "__main__":
    serve(int(sys.argv[1]))
