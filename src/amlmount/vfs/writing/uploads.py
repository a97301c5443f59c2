"""When live files are sent: at once for whoever waits, in the background for what was promised, however long it takes.

A failure reaches whoever waits; then the data is made to last here, and sending it is tried again and again.
"""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

from amlmount.errors import AccessDeniedError, AmlmountError, UsageError
from amlmount.metrics import Timings
from amlmount.vfs.writing.disk import DATA
from amlmount.vfs.writing.ledger import Ledger
from amlmount.vfs.writing.livefile import LiveFile
from amlmount.vfs.writing.sending import ConflictError, Sender

INLINE_BYTES = 64 << 10
THREADS = 4
CLOSE_S = 4.0
DRAIN_POLL_S = 0.05
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
REFUSED_PAUSE_S = 20.0
MAPPED_S = 2.0  # until a mapping that nobody tells us of is looked at again
LOUDER_AFTER_S = (60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0)
log = logging.getLogger(__name__)


class Uploads:
    """Sends files. Methods may be called from any thread that may wait.

    `tell(file, error)` is called after each attempt, error None if it went well. `refused` is why the store lets
    nothing be written at present.
    """

    def __init__(
        self,
        ledger: Ledger,
        sender: Sender,
        tell: Callable[[LiveFile, AmlmountError | None], None],
        on_unmapped: Callable[[LiveFile], None] = lambda file: None,
        *,
        threads: int = THREADS,
    ) -> None:
        self._ledger, self._sender, self._tell, self._on_unmapped = ledger, sender, tell, on_unmapped
        self._wanted = threading.Condition()
        self._queue: list[tuple[float, int, LiveFile]] = []
        self._queued: set[int] = set()
        self._order = itertools.count()
        self._failing: dict[int, tuple[float, int]] = {}  # file id -> first failure (monotonic), attempts
        self._is_closed = False
        self._size, self._threads = threads, list[threading.Thread]()
        self.refused: AccessDeniedError | None = None
        self.timings = Timings()

    def promise(self, file: LiveFile) -> None:
        """Make the present state of a file last on the local disk. Raises OSError: then nothing was promised."""
        with file.lock:
            state = file.state
            file.notice()
            if not file.is_dirty or state.promised == state.change:
                return
            before, state.promised = state.promised, state.change
            try:
                place = self._ledger.promise(file, self._made_last(file))
                self._ledger.journal.sync(place)
            except BaseException:
                state.promised = before
                raise
            file.forget_outdated()

    def promise_again(self, file: LiveFile) -> None:
        """Make a promise last that a change of mind had taken back. Raises OSError."""
        with file.lock:
            file.state.promised = file.state.stored
        self.promise(file)
        self.enqueue(file)

    def _made_last(self, file: LiveFile) -> bytes | None:
        state, disk = file.state, self._ledger.disk
        if state.whole and state.size <= INLINE_BYTES:
            return file.read_local(0, state.size) if state.size else b""
        disk.sync(file.fd())
        disk.sync_directory(disk.path(DATA))
        return None

    def send_now(self, file: LiveFile, timeout_s: float) -> None:
        """Bring a file into the store. Raises AmlmountError, OSError; what failed is kept and sent later."""
        deadline, pause_s = time.monotonic() + timeout_s, FIRST_PAUSE_S
        while True:
            try:
                self._attempt(file)
                return
            except (AmlmountError, OSError) as error:
                left_s = deadline - time.monotonic()
                if not _may_pass(error) or left_s <= 0:
                    if not isinstance(error, ConflictError):
                        self.promise(file)
                        self.enqueue(file, pause_s)
                    raise
            time.sleep(min(pause_s, max(left_s, 0.01)))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def enqueue(self, file: LiveFile, pause_s: float = 0.0) -> None:
        """Have a file sent in the background, again and again until the store has it."""
        with self._wanted:
            if file.state.id in self._queued or self._is_closed:
                return
            self._queued.add(file.state.id)
            heapq.heappush(self._queue, (time.monotonic() + pause_s, next(self._order), file))
            if len(self._threads) < min(self._size, len(self._queue)):
                thread = threading.Thread(target=self._work, name="upload", daemon=True)
                self._threads.append(thread)
                thread.start()
            if self._queue[0][2] is file:  # else one thread waits for what is due before it, and calls the next then
                self._wanted.notify()

    def hurry(self) -> None:
        """Try everything that waits for its next attempt now."""
        with self._wanted:
            self._queue = [(0.0, order, file) for _, order, file in self._queue]
            self._wanted.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Have everything sent; False if something is not in the store after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        self.hurry()
        for file in list(self._ledger.files.values()):
            file.notice_now()
        while dirty := [file for file in list(self._ledger.files.values()) if file.is_dirty]:
            for file in dirty:
                self.promise(file)
                self.enqueue(file)
            self.work_off()
            if time.monotonic() > deadline:
                return False
            time.sleep(DRAIN_POLL_S)
        return True

    def work_off(self) -> None:
        """Make every attempt that is due now, in the calling thread."""
        while True:
            with self._wanted:
                if self._is_closed or not self._queue or self._queue[0][0] > time.monotonic():
                    return
                file = self._take()
            self._in_background(file)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Begin no further attempt, and wait for those under way, `timeout_s` seconds at most."""
        with self._wanted:
            self._is_closed = True
            self._wanted.notify_all()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (file := self._next()) is not None:
            try:
                self._in_background(file)
            except Exception:
                log.exception("sending '%s' failed", file.blob_name)
                self.enqueue(file, LONGEST_PAUSE_S)

    def _next(self) -> LiveFile | None:
        with self._wanted:
            while not self._is_closed:
                wait_s = self._queue[0][0] - time.monotonic() if self._queue else None
                if wait_s is not None and wait_s <= 0:
                    file = self._take()
                    if self._queue:
                        self._wanted.notify()
                    return file
                self._wanted.wait(wait_s)
            return None

    def _take(self) -> LiveFile:
        file = heapq.heappop(self._queue)[2]
        self._queued.discard(file.state.id)
        return file

    def _in_background(self, file: LiveFile) -> None:
        with file.lock:
            file.notice()
            is_being_rewritten = file.promise is not None and file.promise.epoch != file.state.epoch
        if is_being_rewritten and file.opens:
            self.enqueue(file, 1.0)
            return
        if file.state.mapped and not file.is_dirty:
            self._look_again(file)
            return
        try:
            self._attempt(file)
        except ConflictError:
            return
        except (AmlmountError, OSError) as error:
            self.enqueue(file, self._pause_after(file, error))
            return
        if file.state.mapped:
            self.enqueue(file, MAPPED_S)

    def _look_again(self, file: LiveFile) -> None:
        """See to a file that may be written into through a mapping until the kernel forgets it."""
        if file.nlookup > 0:
            self.enqueue(file, MAPPED_S)
            return
        file.unmap()
        self._on_unmapped(file)

    def _attempt(self, file: LiveFile) -> None:
        begun_ns = time.perf_counter_ns()
        try:
            self._sender.send(file)
        except AmlmountError as error:
            file.trouble = error
            self.timings.failed += 1
            if isinstance(error, AccessDeniedError):
                self.refused = error
            self._tell(file, error)
            raise
        except OSError as error:
            file.trouble = error
            raise
        self.timings.note(time.perf_counter_ns() - begun_ns)
        self._failing.pop(file.state.id, None)
        self.refused = None
        self._tell(file, None)

    def _pause_after(self, file: LiveFile, error: Exception) -> float:
        now = time.monotonic()
        first, count = self._failing.get(file.state.id, (now, 0))
        self._failing[file.state.id] = (first, count + 1)
        self._say(file, error, count, now - first)
        if isinstance(error, AccessDeniedError | UsageError):
            return REFUSED_PAUSE_S
        return min(FIRST_PAUSE_S * 2.0 ** min(count, 10), LONGEST_PAUSE_S)

    def _say(self, file: LiveFile, error: Exception, count: int, lasting_s: float) -> None:
        """Say it at the first failure, and louder when it has lasted long."""
        text = getattr(error, "message", str(error))
        if count == 0:
            log.warning("'%s' is not in the store yet: %s", file.blob_name, text)
        elif any(lasting_s - LONGEST_PAUSE_S < limit <= lasting_s for limit in LOUDER_AFTER_S):
            log.error("'%s' has not got into the store for %.0f minutes: %s", file.blob_name, lasting_s / 60, text)


def _may_pass(error: Exception) -> bool:
    return isinstance(error, AmlmountError) and not isinstance(error, AccessDeniedError | UsageError | ConflictError)
