"""Parts of a file that are sent while the rest is still being written, so that a close has little left to wait for.

Only of a file that is written from its beginning, and only what nobody has touched since: who overwrites a part makes
it not sent. Nobody sees anything of it before the file is committed, and a crash leaves nothing behind.
"""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from amlmount.errors import AccessDeniedError, AmlmountError, NetworkError, PreconditionFailedError
from amlmount.stores.base import TakesParts
from amlmount.vfs.writing.livefile import LiveFile
from amlmount.vfs.writing.parts import MAX_WAITING, Ahead

THREADS = 3  # each hands our lock of the interpreter back and forth; the requests of the kernel need it, too
HAS_MEANING = (PreconditionFailedError, AccessDeniedError, NetworkError)  # for whoever sends the file
LOOK_S = 0.03  # how often it is looked how far the kernel has got with what it writes by itself
NICE = 10
FULL_SPEED = 1 << 30  # bytes a second: whoever writes so fast is slowed down by what is sent meanwhile,
AT_FULL_SPEED = 3  # parts at once; and done so soon that more hardly shorten the close
FIRST_PARTS = 2  # of a file that is closed before that all parts are sent at once


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
            ahead.send_up_to(end, file.fd(), self._pool)

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
        if ahead is None:
            begun = store.begin(file.state.name)
            if end <= begun.part_bytes * FIRST_PARTS:
                return
            ahead = file.ahead = self._watched[file] = Ahead(begun, file.state.name, is_heard=False)
        at_once = AT_FULL_SPEED if ahead.grows_by(end, time.monotonic()) >= FULL_SPEED else MAX_WAITING
        ahead.send_up_to(end, file.fd(), self._pool, at_once)

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
