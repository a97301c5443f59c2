"""Slowing down together: when a store asks one request to wait, all requests of this process to it do.

After the wait requests go out spaced; each success shortens the space until there is none.
"""

import random
import threading
import time

from amlmount.errors import ThrottledError
from amlmount.stores.azure.timing import Deadline, Timing

_FIRST_INTERVAL_S = 0.005
_SHRINK = 0.8


class Gate:
    """Stands before every request to one store; `max_interval_s` is the slowest it gets between two of them."""

    def __init__(self, max_interval_s: float) -> None:
        self._max_interval_s = max_interval_s
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._interval_s = 0.0

    def enter(self, deadline: Deadline) -> None:
        """Wait for one's turn. Raises ThrottledError when it would come after the deadline."""
        if not self._interval_s:
            return
        with self._lock:
            now = time.monotonic()
            wait_s = max(self._next_at - now, 0.0)
            if wait_s >= deadline.left_s():
                raise ThrottledError(
                    f"cannot reach the store in time: it asks everybody to wait {wait_s:.0f} s more",
                    hint="read with fewer processes, or spread the data over several accounts",
                )
            self._next_at = max(self._next_at, now) + self._interval_s
        time.sleep(wait_s)

    def throttled(self, wait_s: float) -> None:
        """The store said 503 or 429: nobody asks again for `wait_s` seconds, and slower after that."""
        with self._lock:
            now = time.monotonic()
            if now >= self._next_at or not self._interval_s:  # else: one more answer to the burst that closed it
                self._interval_s = min(max(self._interval_s * 2, _FIRST_INTERVAL_S), self._max_interval_s)
            self._next_at = max(self._next_at, now + wait_s)

    def succeeded(self) -> None:
        """A request went through: come a little closer to full speed."""
        if not self._interval_s:
            return
        with self._lock:
            shorter = self._interval_s * _SHRINK
            self._interval_s = shorter if shorter > _FIRST_INTERVAL_S / 10 else 0.0


def backoff_s(attempt: int, timing: Timing) -> float:
    """Return how long to wait after the failed attempt number `attempt` (from 0): doubled each time, with jitter."""
    longest = min(timing.max_backoff_s, timing.first_backoff_s * float(2**attempt))
    return longest * random.uniform(0.5, 1.0)
