"""What a worker tells its starter unasked: events of the mount, which pass through the daemon's hub like all others.

A starter that does not listen holds nobody up: what it does not take is dropped, and the worker's log has it too.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from amlmount.events import Kind
from amlmount.worker.orders import NEWS

MAX_EARLY = 100


class News:
    """Passes on what happens, once the starter can hear it (`open`). `send` must not wait."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._early: list[dict[str, Any]] | None = []

    def tell(self, kind: Kind, message: str, details: Mapping[str, Any]) -> None:
        """Tell of one event; before `open` it waits for that."""
        body = {"op": NEWS, "kind": kind.name, "message": message, "details": dict(details)}
        with self._lock:
            if self._early is None:
                self._send(body)
            elif len(self._early) < MAX_EARLY:
                self._early.append(body)

    def open(self) -> None:
        """Tell what has waited, and from now on everything at once."""
        with self._lock:
            early, self._early = self._early or [], None
            for body in early:
                self._send(body)
