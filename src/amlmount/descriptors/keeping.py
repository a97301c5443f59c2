"""The keeper as a daemon sees it: found by its socket in the runtime directory, started if there is none."""

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from amlmount.descriptors import keeper
from amlmount.descriptors.base import close_all
from amlmount.descriptors.keeper import MAX_DESCRIPTORS, receive, send
from amlmount.errors import AmlmountError
from amlmount.run import base_env, spawn

SOCKET_NAME = "keeper.sock"
ANSWER_TIMEOUT_S = 10.0
ENDS_WITHIN_S = 2.0
log = logging.getLogger(__name__)


class KeeperStore:
    """A connection to the keeper of a runtime directory (which only its owner can enter)."""

    kind = "keeper"

    def __init__(self, runtime_dir: str) -> None:
        self._path = os.path.join(runtime_dir, SOCKET_NAME)
        self._peer: socket.socket | None = None
        self._held: int | None = None  # how much the keeper had when it answered last
        self._lock = threading.Lock()  # one exchange at a time

    def recall(self) -> dict[str, int]:
        """See DescriptorStore. Does not start a keeper."""
        found: dict[str, int] = {}
        with self._lock:
            if not self._connected(start=False):
                return {}
            self._ask({"op": "recall"})
            while (part := self._answer())[0]["names"]:
                found.update(zip(part[0]["names"], part[1], strict=True))
        return found

    def keep(self, descriptors: Mapping[str, int], *, instead_of: Iterable[str] = ()) -> None:
        """See DescriptorStore."""
        names = list(descriptors)
        for start in range(0, len(names), MAX_DESCRIPTORS):
            part = names[start : start + MAX_DESCRIPTORS]
            with self._lock:
                self._tell({"op": "keep", "names": part}, [descriptors[name] for name in part])
        self.drop(instead_of)

    def drop(self, names: Iterable[str]) -> None:
        """See DescriptorStore."""
        with self._lock, contextlib.suppress(AmlmountError):
            if self._connected(start=False):
                self._tell({"op": "drop", "names": list(names)})

    def close(self) -> None:
        """See DescriptorStore. A keeper that holds nothing ends then with its socket, which is waited for."""
        self._hang_up()
        deadline = time.monotonic() + ENDS_WITHIN_S
        while self._held == 0 and os.path.lexists(self._path) and time.monotonic() < deadline:
            time.sleep(0.005)

    def _hang_up(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def _tell(self, body: dict[str, Any], descriptors: list[int] | None = None) -> None:
        for attempt in (1, 2):
            self._connected(start=True)
            try:
                self._ask(body, descriptors)
                self._held = self._answer()[0]["held"]
                return
            except AmlmountError:
                self._hang_up()
                if attempt == 2:
                    raise

    def _ask(self, body: dict[str, Any], descriptors: list[int] | None = None) -> None:
        assert self._peer
        try:
            send(self._peer, body, descriptors)
        except OSError as error:
            raise AmlmountError(f"cannot reach the keeper of descriptors: {error.strerror or error}") from error

    def _answer(self) -> tuple[dict[str, Any], list[int]]:
        assert self._peer
        try:
            body, descriptors = receive(self._peer)
        except (OSError, ValueError) as error:
            raise AmlmountError(f"cannot understand the keeper of descriptors: {error}") from error
        if body is None:
            close_all(descriptors)
            raise AmlmountError("cannot reach the keeper of descriptors: it has ended")
        return body, descriptors

    def _connected(self, *, start: bool) -> bool:
        if self._peer is None:
            self._peer = self._connect()
        if self._peer is None and start:
            self._start()
            self._peer = self._connect()
            if self._peer is None:
                raise AmlmountError("cannot start the keeper of descriptors: nobody listens on its socket")
        return self._peer is not None

    def _connect(self) -> socket.socket | None:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        peer.settimeout(ANSWER_TIMEOUT_S)
        try:
            peer.connect(self._path)
        except OSError:
            peer.close()
            return None
        return peer

    def _start(self) -> None:
        """Listen for it before it runs, so that nobody comes too early."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as listener:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            before = os.umask(0o177)
            try:
                listener.bind(self._path)
            finally:
                os.umask(before)
            listener.listen(8)
            argv = [sys.executable, "-I", "-S", keeper.__file__, str(listener.fileno())]
            process = spawn(argv, env=base_env(), pass_fds=[listener.fileno()], cwd="/")
        log.info("keeper of descriptors: process %d", process.pid)
        process.close()
