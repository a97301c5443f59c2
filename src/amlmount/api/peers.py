"""Who asks, by the kernel's word (SO_PEERCRED and SO_PEERGROUPS, unix(7)), and what they may ask for.

The socket's mode keeps everybody else out; this decides among those whom it lets in, and does not rely on the mode.
"""

import array
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from amlmount.errors import AccessDeniedError

_PEERGROUPS = 59  # SO_PEERGROUPS, include/uapi/asm-generic/socket.h; Linux 4.13
_CREDENTIALS = struct.Struct("3i")
_GROUPS_BYTES = 1024  # as much as Python asks for; who is in more than 256 groups counts with the first of them alone
# Ending the daemon takes mounts from others, or leaves them without anybody who looks after them.
OWNER_ONLY = frozenset({"/v1/shutdown", "/v1/handover"})
GROUP: "web.AppKey[int | None]" = web.AppKey("group")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end, as it was when it connected."""

    pid: int
    uid: int
    groups: frozenset[int]

    @property
    def is_owner(self) -> bool:
        """Say whether it is root or the user whose daemon this is."""
        return self.uid in (0, os.geteuid())

    def is_admitted(self, group: int | None) -> bool:
        """Say whether it may ask for anything at all; `group` may, besides the owner."""
        return self.is_owner or (group is not None and group in self.groups)


def peer_of(sock: socket.socket) -> Peer:
    """Return who is at the other end of a unix socket. Raises OSError."""
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(packed)
    groups = array.array("I")
    with contextlib.suppress(OSError):
        groups.frombytes(sock.getsockopt(socket.SOL_SOCKET, _PEERGROUPS, _GROUPS_BYTES))
    return Peer(pid, uid, frozenset([gid, *groups]))


@web.middleware
async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a request through if whoever asks may."""
    peer = peer_of(request.get_extra_info("socket"))
    if not peer.is_admitted(request.app[GROUP]):
        raise AccessDeniedError(
            f"cannot use the daemon as user {peer.uid}: it is for root and the group amlmount",
            hint="sudo usermod -aG amlmount USER, and a new login",
        )
    if request.path in OWNER_ONLY and not peer.is_owner:
        raise AccessDeniedError(f"cannot end the daemon as user {peer.uid}: that is root's", hint="use sudo")
    return await handler(request)


def refuse_borrowed_identity(request: web.Request, sudo_uid: int | None) -> None:
    """Only root may say that it acts for somebody else: mounts are given to whom it names. Raises AccessDeniedError."""
    if sudo_uid is not None and not peer_of(request.get_extra_info("socket")).is_owner:
        raise AccessDeniedError("cannot act for another user: that is root's", hint="use sudo, or leave sudo_uid away")
