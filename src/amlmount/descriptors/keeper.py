"""The keeper: holds descriptors by name over a unix socket, for daemons that come and go. Standard library only.

Run as a script, `keeper.py LISTENER_FD`, it imports nothing of amlmount, so no upgrade can break it while it runs.
One request a packet, as JSON, descriptors beside it: `keep` (names), `drop` (names), `recall`. It ends when it holds
nothing and nobody talks to it.
"""

import array
import json
import os
import select
import signal
import socket
import stat
import sys
from typing import Any

MAX_PACKET_BYTES = 1 << 18
MAX_DESCRIPTORS = 128  # in one packet; the kernel takes 253 (SCM_MAX_FD)
FUSE_DEVICE = os.makedev(10, 229)
IDLE_AT_START_MS = 30_000


class Keeper:
    """Everything that is held, and the connections to those who may ask for it."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._held: dict[str, int] = {}
        self._clients: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._fuse_names: dict[int, str] = {}
        self._is_told_to_end = False

    def run(self, waker: int) -> None:
        """Serve until there is nothing left to keep; `waker` is readable when a signal came."""
        self._poll.register(waker, select.POLLIN)
        patience_ms: int | None = IDLE_AT_START_MS
        while True:
            events = self._poll.poll(patience_ms)
            if not events:  # nobody ever came
                os.unlink(self._listener.getsockname())
                return
            for descriptor, event in events:
                if descriptor == waker:
                    os.read(waker, 64)
                else:
                    self._on_event(descriptor, event)
            if not self._clients and (self._is_told_to_end or not self._held) and not self._waiting():
                os.unlink(self._listener.getsockname())
                return
            patience_ms = None

    def on_signal(self, number: int, frame: object) -> None:
        """End, unless a daemon is there: then it will let go of everything first, if it is told to end as well."""
        self._is_told_to_end = True

    def _waiting(self) -> bool:
        waiter = select.poll()
        waiter.register(self._listener, select.POLLIN)
        return bool(waiter.poll(0))

    def _on_event(self, descriptor: int, event: int) -> None:
        if descriptor == self._listener.fileno():
            self._accept()
        elif descriptor in self._clients:
            self._answer(self._clients[descriptor])
        elif descriptor in self._fuse_names and event & select.POLLERR:
            self._drop(self._fuse_names[descriptor])  # its mount is gone

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.settimeout(10)
        self._clients[client.fileno()] = client
        self._poll.register(client, select.POLLIN)

    def _answer(self, client: socket.socket) -> None:
        try:
            request, descriptors = receive(client)
            if request is None:
                raise ConnectionResetError
            answer = {"keep": self._keep, "drop": self._forget, "recall": self._recall}[request["op"]]
            answer(client, request, descriptors)
        except (OSError, ValueError, KeyError, TypeError):
            self._poll.unregister(client)
            del self._clients[client.fileno()]
            client.close()

    def _keep(self, client: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
        for name, descriptor in zip(request["names"], descriptors, strict=True):
            self._drop(name)
            self._held[name] = descriptor
            about = os.fstat(descriptor)
            if stat.S_ISCHR(about.st_mode) and about.st_rdev == FUSE_DEVICE:
                self._fuse_names[descriptor] = name
                self._poll.register(descriptor, 0)
        send(client, {"held": len(self._held)})

    def _forget(self, client: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
        for name in request["names"]:
            self._drop(name)
        send(client, {"held": len(self._held)})

    def _recall(self, client: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
        names = list(self._held)
        for start in range(0, len(names), MAX_DESCRIPTORS):
            part = names[start : start + MAX_DESCRIPTORS]
            send(client, {"names": part}, [self._held[name] for name in part])
        send(client, {"names": []})

    def _drop(self, name: str) -> None:
        descriptor = self._held.pop(name, None)
        if descriptor is None:
            return
        if self._fuse_names.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)
        os.close(descriptor)


def send(peer: socket.socket, body: dict[str, Any], descriptors: list[int] | None = None) -> None:
    """Send one packet. Raises OSError."""
    socket.send_fds(peer, [json.dumps(body).encode()], descriptors or [])


def receive(peer: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return one packet and the descriptors with it (close-on-exec); None at the end. Raises OSError, ValueError."""
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, _, _ = peer.recvmsg(MAX_PACKET_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    return (json.loads(data) if data else None), list(descriptors)


def main() -> None:
    """Hold what others give."""
    keeper = Keeper(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, keeper.on_signal)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    os.chdir("/")
    keeper.run(reader)


if __name__ == "__main__":
    main()
