"""A bounded pool of threads for requests that wait for a store; started one by one, as they are needed.

Its threads are daemons: a store that never answers must not keep a process alive (concurrent.futures would).
"""

import queue
import threading
import time
from collections.abc import Callable

Job = Callable[[], None]


class Pool:
    """Run jobs in at most `size` threads. A job must not raise: there is nobody to tell."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)

    def submit(self, job: Job) -> None:
        """Queue a job, with a thread more if none is idle. Called from one thread only."""
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._size:
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)

    def close(self, timeout_s: float) -> bool:
        """Let the threads end after the jobs already queued; False if some still run after `timeout_s`."""
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job
            self._idle.release()
