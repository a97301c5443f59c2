"""Threads for what nobody waits for: started when there is work, gone when there has been none for a while."""

import logging
import queue
import threading
from collections.abc import Callable

Job = Callable[[], object]
IDLE_S = 15.0
log = logging.getLogger(__name__)


class Workers:
    """Run jobs in at most `size` daemon threads, first come, first served; any thread may submit.

    The queue takes no Python lock: 64 threads that contend for one cost more than what they do.
    """

    def __init__(self, size: int, name: str, *, idle_s: float = IDLE_S) -> None:
        self.size = size
        self._name = name
        self._idle_s = idle_s
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._is_closed = False

    def submit(self, job: Job) -> bool:
        """Queue a job; False once closed."""
        if self._is_closed:
            return False
        self._jobs.put(job)
        if self._threads < self.size:
            self._grow()
        return True

    def close(self) -> None:
        """Take no more jobs, drop those that wait, and let the threads end; waits for nobody."""
        self._is_closed = True
        with self._lock:
            threads = self._threads
        for _ in range(threads):
            self._jobs.put(None)

    def _grow(self) -> None:
        with self._lock:
            if self._jobs.empty() or self._threads >= self.size:
                return
            self._threads += 1
        threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._idle_s)
            except queue.Empty:
                job = None
            if job is not None and not self._is_closed:
                self._run(job)
            elif self._may_leave():
                return
            job = None  # an idle thread holds nothing

    def _run(self, job: Job) -> None:
        try:
            job()
        except Exception:
            log.exception("a job in the background failed")

    def _may_leave(self) -> bool:
        with self._lock:
            if self._jobs.empty() or self._is_closed:
                self._threads -= 1
                return True
            return False
