"""In the PYTHONPATH of a worker: its threads take turns at other moments. Whoever takes the lock of a file naps.

So sending in the background meets what programs do in orders that are rare otherwise; it has found a rename whose
content was replaced by an older one, and closes that counted twice.
"""

import random
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

NAPS = 0.3  # of all moments; of these nine in ten are short
SHORT_S, LONG_S = 0.003, 0.03


def nap() -> None:
    """Let others go first, now and then."""
    if random.random() < NAPS:
        time.sleep(SHORT_S * random.random() if random.random() < 0.9 else LONG_S)


class NappingLock:
    """A lock; whoever waits for it naps before, and whoever had it afterwards."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._lock = make()

    def acquire(self, blocking: bool = True) -> bool:
        """Take it."""
        if blocking:
            nap()
        return bool(self._lock.acquire(blocking))

    def release(self) -> None:
        """Give it back."""
        self._lock.release()
        nap()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def change_the_order() -> None:
    """Have files made with napping locks, and naps where a handle is forgotten and its file not yet closed."""
    from amlmount.fuse.handles import OpenInodes
    from amlmount.vfs.writing import livefile

    locks = SimpleNamespace(RLock=lambda: NappingLock(threading.RLock), Lock=lambda: NappingLock(threading.Lock))
    vars(livefile)["threading"] = locks
    leave = OpenInodes.leave

    def leave_and_nap(self: OpenInodes, handle: int) -> bool:
        found = leave(self, handle)
        nap()
        return found

    OpenInodes.leave = leave_and_nap  # type: ignore[method-assign]


if "amlmount.worker" in sys.orig_argv:
    change_the_order()
    print("threads nap", file=sys.stderr)  # so that it can be seen in the log
