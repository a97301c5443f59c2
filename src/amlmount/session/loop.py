"""An event loop in a thread of its own, so that code with or without a loop of its own can use the engines.

One a process, started when first needed; a forked child starts another and never touches its parent's.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
UNDO_TIMEOUT_S = 15.0


class LoopThread:
    """Runs coroutines for callers of other threads, which wait for them."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="amlmount-loop", daemon=True).start()

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the coroutine that `make` returns and return its result.

        If the wait is interrupted (Ctrl-C), the coroutine is cancelled and given time to undo what it began.
        """
        over = threading.Event()

        async def guarded() -> T:
            try:
                return await make()
            finally:
                over.set()

        future = asyncio.run_coroutine_threadsafe(guarded(), self.loop)
        try:
            return future.result()
        except BaseException:
            if not over.is_set():
                future.cancel()
                over.wait(UNDO_TIMEOUT_S)
            raise


_lock = threading.Lock()
_threads: dict[int, LoopThread] = {}


def loop_thread() -> LoopThread:
    """Return this process's loop thread."""
    with _lock:
        if os.getpid() not in _threads:
            _threads[os.getpid()] = LoopThread()
        return _threads[os.getpid()]


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # the one we inherited may be held by a thread we did not inherit


os.register_at_fork(after_in_child=_after_fork_in_child)
