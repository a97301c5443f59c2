"""Parts of a file that are sent while the rest is still being written, so that a close has little left to wait for.

Only of a file that is written from its beginning, and only what nobody has touched since: who overwrites a part makes
it not sent. Nobody sees anything of it before the file is committed, and a crash leaves nothing behind.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

from amlmount.errors import AccessDeniedError, AmlmountError, NetworkError, PreconditionFailedError
from amlmount.stores.base import BegunUpload, Content, TakesParts
from amlmount.vfs.content.checksum import Buffer, tag_by
from amlmount.vfs.writing.livefile import LiveFile, read_exactly

THREADS = 3  # each hands our lock of the interpreter back and forth; the requests of the kernel need it, too
THREADS_AT_CLOSE = 8
MAX_WAITING = 16  # parts; what the network is too slow for is sent later, or at the close
HAS_MEANING = (PreconditionFailedError, AccessDeniedError, NetworkError)  # for whoever sends the file
KEY_BYTES = 32
LOOK_S = 0.03  # how often it is looked how far the kernel has got with what it writes by itself
NICE = 10
FIRST_PARTS = 2  # of a file that is closed before that all parts are sent at once
Read = Callable[[int, int], Buffer]


class Ahead:
    """The parts of one file; needs the file's lock.

    `is_heard`: what is written afterwards is told by `drop`. Else a part's sum has to say whether it is what was sent.
    """

    def __init__(self, begun: BegunUpload, name: str, *, is_heard: bool = True) -> None:
        self.begun, self.name, self.is_heard = begun, name, is_heard
        self.next_offset = 0  # up to where it was written without a gap
        self.next_number = 0
        self.sending: dict[int, Future[bytes]] = {}
        self._key = os.urandom(KEY_BYTES)

    def send_up_to(self, file: LiveFile, end: int, pool: ThreadPoolExecutor) -> None:
        """Begin to send the parts before `end`, which at least a byte follows: it is no small file."""
        waiting = sum(not job.done() for job in self.sending.values())
        while (self.next_number + 1) * self.begun.part_bytes < end and waiting < MAX_WAITING:
            fd = os.dup(file.fd())
            job = pool.submit(self._send, self.next_number, partial(read_exactly, fd))
            job.add_done_callback(lambda _, fd=fd: os.close(fd))  # type: ignore[misc]
            self.sending[self.next_number] = job
            self.next_number, waiting = self.next_number + 1, waiting + 1

    def drop(self, start: int, end: int) -> None:
        """Take back the parts that a range touches; they are never sent ahead again."""
        size = self.begun.part_bytes
        for number in [number for number in self.sending if number * size < end and start < (number + 1) * size]:
            self.sending.pop(number).cancel()

    def sent(self, content: Content) -> list[int]:
        """Wait for what is under way and return the parts that have arrived. Needs no lock once it was taken."""
        if not self.is_heard:
            return self._compared(content)
        wait(self.sending.values())
        return [number for number, job in self.sending.items() if _is_there(job)]

    def _compared(self, content: Content) -> list[int]:
        """Send what was not sent, and while that is under way look for what is not what was."""
        size = self.begun.part_bytes

        def read(start: int, end: int) -> Buffer:
            return content.read(start, end - start)

        with ThreadPoolExecutor(THREADS_AT_CLOSE, "rest") as pool:
            whole = range(content.size_bytes // size)
            jobs = {number: pool.submit(self._send, number, read) for number in whole if number not in self.sending}
            for number, job in self.sending.items():
                if number in whole and not (_is_there(job) and job.result() == self._tag(number, read)):
                    jobs[number] = pool.submit(self._send, number, read)
                elif number in whole:
                    jobs[number] = job
            wait(jobs.values())
        return [number for number, job in jobs.items() if _is_there(job)]

    def _send(self, number: int, read: Read) -> bytes:
        data = self._read(number, read)
        self.begun.send(number, data)
        return b"" if self.is_heard else tag_by(self._key, data)

    def _tag(self, number: int, read: Read) -> bytes:
        return tag_by(self._key, self._read(number, read))

    def _read(self, number: int, read: Read) -> Buffer:
        return read(number * self.begun.part_bytes, (number + 1) * self.begun.part_bytes)


class SendingAhead:
    """Sends parts of all files of one mount."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "ahead", _stand_back)
        self._watched: dict[LiveFile, Ahead | None] = {}
        self._watching = threading.Condition()
        self._is_closed = False

    def wrote(self, file: LiveFile, start: int, end: int) -> None:
        """Learn that a range was written, and dropped before; needs the file's lock."""
        ahead = file.ahead
        if ahead is None:
            if start or not file.state.whole or not isinstance(file.source.store, TakesParts):
                return
            ahead = file.ahead = Ahead(file.source.store.begin(file.state.name), file.state.name)
        if ahead.is_heard and start == ahead.next_offset:
            ahead.next_offset = end
            ahead.send_up_to(file, end, self._pool)

    def watch(self, file: LiveFile) -> None:
        """Look from now on how far a file has got that the kernel writes by itself, until it is sent."""
        if not isinstance(file.source.store, TakesParts):
            return
        with self._watching:
            self._watched[file] = None
            if len(self._watched) == 1 and not self._is_closed:
                threading.Thread(target=self._look, name="ahead-look", daemon=True).start()

    def _look(self) -> None:
        with self._watching:
            while not self._watching.wait_for(lambda: self._is_closed, LOOK_S):
                for file, ahead in list(self._watched.items()):
                    if not file.lock.acquire(blocking=False):
                        continue
                    try:
                        self._look_at(file, ahead)
                    finally:
                        file.lock.release()
                if not self._watched:
                    return

    def _look_at(self, file: LiveFile, ahead: Ahead | None) -> None:
        """Begin to send what has come; only what takes room on the disk: a hole may be filled later. Needs the lock."""
        store = file.source.store
        assert isinstance(store, TakesParts)
        if not file.state.is_direct or file.is_unlinked or file.is_displaced or (ahead and file.ahead is not ahead):
            self._watched.pop(file, None)
            return
        size_bytes, taken_bytes = file.measure_taken()
        end = min(size_bytes, taken_bytes)
        if file.sending.locked():
            return  # it is being sent as it is
        if ahead is None and end > store.begin(file.state.name).part_bytes * FIRST_PARTS:
            ahead = Ahead(store.begin(file.state.name), file.state.name, is_heard=False)
            file.ahead = self._watched[file] = ahead
        if ahead is not None:
            ahead.send_up_to(file, end, self._pool)

    def close(self) -> None:
        """Begin nothing more."""
        with self._watching:
            self._is_closed = True
            self._watching.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)


def cut(file: LiveFile, size_bytes: int) -> None:
    """Learn that a file was cut or lengthened to a size; needs its lock."""
    if file.ahead is not None:
        file.ahead.drop(size_bytes, max(file.ahead.next_offset, size_bytes) + 1)
        file.ahead.next_offset = min(file.ahead.next_offset, size_bytes)


def take(file: LiveFile) -> Ahead | None:
    """Return what was sent of a file under its present name; from here on it counts anew. Needs its lock."""
    ahead, file.ahead = file.ahead, None
    return ahead if ahead is not None and ahead.sending and ahead.name == file.state.name else None


def is_worth_asking_again(error: AmlmountError) -> bool:
    """Say whether the store may merely have lost parts, as when another has written the blob meanwhile."""
    return not isinstance(error, HAS_MEANING)


def _stand_back() -> None:
    """Leave the processors to whoever writes: it is for what is left over that a thread sends ahead."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # of one thread, as Linux has it


def _is_there(job: "Future[bytes]") -> bool:
    return not job.cancelled() and job.exception() is None
