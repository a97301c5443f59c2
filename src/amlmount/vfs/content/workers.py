"""Threads for what nobody waits for: started when there is work, gone when there has been none for a while."""

import logging
import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]
IDLE_S = 15.0
log = logging.getLogger(__name__)


class Workers:
    """Run jobs in at most `size` daemon threads, first come, first served; any thread may submit."""

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._pending = 0  # submitted and not finished
        self._is_closed = False

    def submit(self, job: Job) -> bool:
        """Queue a job, with a thread more if all are busy; False once closed."""
        with self._lock:
            if self._is_closed:
                return False
            self._pending += 1
            is_more = self._pending > self._threads and self._threads < self.size
            self._threads += is_more
        self._jobs.put(job)
        if is_more:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return True

    def close(self) -> None:
        """Take no more jobs and let the threads end after the present one; waits for nobody."""
        with self._lock:
            self._is_closed = True
            threads = self._threads
        for _ in range(threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            if not self._is_closed:
                self._run(job)
            del job
            with self._lock:
                self._pending -= 1

    def _run(self, job: Job) -> None:
        try:
            job()
        except Exception:
            log.exception("a job in the background failed")

    def _next(self) -> Job | None:
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                job = None
            with self._lock:
                if job is None and (self._is_closed or self._pending < self._threads):
                    self._threads -= 1
                    return None
            if job is not None:
                return job
