"""Parts of a file that are sent while the rest is still being written, so that a close has little left to wait for.

Only of a file that is written from its beginning, and only what nobody has touched since: who overwrites a part makes
it not sent. Nobody sees anything of it before the file is committed, and a crash leaves nothing behind.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor, wait

from amlmount.errors import AccessDeniedError, AmlmountError, NetworkError, PreconditionFailedError
from amlmount.stores.base import BegunUpload, TakesParts
from amlmount.vfs.writing.livefile import LiveFile, read_exactly

THREADS = 3  # each hands our lock of the interpreter back and forth; the requests of the kernel need it, too
MAX_WAITING = 16  # parts; what the network is too slow for is sent at the close
HAS_MEANING = (PreconditionFailedError, AccessDeniedError, NetworkError)  # for whoever sends the file


class Ahead:
    """The parts of one file; needs the file's lock."""

    def __init__(self, begun: BegunUpload, name: str) -> None:
        self.begun, self.name = begun, name
        self.next_offset = 0  # up to where it was written without a gap
        self.next_number = 0
        self.sending: dict[int, Future[None]] = {}

    def drop(self, start: int, end: int) -> None:
        """Take back the parts that a range touches; they are never sent ahead again."""
        size = self.begun.part_bytes
        for number in [number for number in self.sending if number * size < end and start < (number + 1) * size]:
            self.sending.pop(number).cancel()

    def sent(self) -> list[int]:
        """Wait for what is under way and return the parts that have arrived. Needs no lock once it was taken."""
        wait(self.sending.values())
        return [number for number, job in self.sending.items() if not job.cancelled() and job.exception() is None]


class SendingAhead:
    """Sends parts of all files of one mount."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "ahead")

    def wrote(self, file: LiveFile, start: int, end: int) -> None:
        """Learn that a range was written, and dropped before; needs the file's lock."""
        ahead = file.ahead
        if ahead is None:
            if start or not file.state.whole or not isinstance(file.source.store, TakesParts):
                return
            ahead = file.ahead = Ahead(file.source.store.begin(file.state.name), file.state.name)
        if start == ahead.next_offset:
            ahead.next_offset = end
            self._send(file, ahead)

    def _send(self, file: LiveFile, ahead: Ahead) -> None:
        size = ahead.begun.part_bytes
        while (ahead.next_number + 1) * size < ahead.next_offset:  # at least a byte follows: it is no small file
            number, ahead.next_number = ahead.next_number, ahead.next_number + 1
            if sum(not job.done() for job in ahead.sending.values()) < MAX_WAITING:
                fd = os.dup(file.fd())
                job = self._pool.submit(_send_part, ahead.begun, fd, number)
                job.add_done_callback(lambda _, fd=fd: os.close(fd))  # type: ignore[misc]
                ahead.sending[number] = job

    def close(self) -> None:
        """Begin nothing more."""
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


def _send_part(begun: BegunUpload, fd: int, number: int) -> None:
    size = begun.part_bytes
    begun.send(number, read_exactly(fd, number * size, (number + 1) * size))


def is_worth_asking_again(error: AmlmountError) -> bool:
    """Say whether the store may merely have lost parts, as when another has written the blob meanwhile."""
    return not isinstance(error, HAS_MEANING)
