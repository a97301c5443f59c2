"""The parts of one file that are sent before it is closed, and which of them are still what the file has.

A part counts only if nobody has touched it since: we hear of every write, or its sum has to say so.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from math import inf

from amlmount.stores.base import BegunUpload, Content
from amlmount.vfs.content.checksum import Buffer, tag_by
from amlmount.vfs.writing.disk import read_exactly

THREADS_AT_CLOSE = 8
MAX_WAITING = 16  # parts; what the network is too slow for is sent later, or at the close
KEY_BYTES = 32
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
        self._seen = (0, 0.0)  # up to where it was written, and when
        self._key = os.urandom(KEY_BYTES)

    def send_up_to(self, end: int, data_fd: int, pool: ThreadPoolExecutor, at_once: int = MAX_WAITING) -> None:
        """Begin to send the parts before `end`, which at least a byte follows (it is no small file), while fewer than
        `at_once` are under way."""
        waiting = sum(not job.done() for job in self.sending.values())
        while (self.next_number + 1) * self.begun.part_bytes < end and waiting < at_once:
            fd = os.dup(data_fd)
            job = pool.submit(self._send, self.next_number, partial(read_exactly, fd))
            job.add_done_callback(lambda _, fd=fd: os.close(fd))  # type: ignore[misc]
            self.sending[self.next_number] = job
            self.next_number, waiting = self.next_number + 1, waiting + 1

    def grows_by(self, end: int, now_s: float) -> float:
        """Return how many bytes a second it has grown by since it was asked last; at first no end of them."""
        (before, then_s), self._seen = self._seen, (end, now_s)
        return (end - before) / (now_s - then_s) if then_s and now_s > then_s else inf

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
            jobs = {number: pool.submit(self._rest, number, content) for number in whole if number not in self.sending}
            for number, job in self.sending.items():
                if number in whole and not (_is_there(job) and job.result() == self._tag(number, read)):
                    jobs[number] = pool.submit(self._rest, number, content)
                elif number in whole:
                    jobs[number] = job
            wait(jobs.values())
        return [number for number, job in jobs.items() if _is_there(job)]

    def _send(self, number: int, read: Read) -> bytes:
        data = self._read(number, read)
        self.begun.send(number, data)
        return b"" if self.is_heard else tag_by(self._key, data)

    def _rest(self, number: int, content: Content) -> bytes:
        self.begun.send_from(number, content)
        return b""

    def _tag(self, number: int, read: Read) -> bytes:
        return tag_by(self._key, self._read(number, read))

    def _read(self, number: int, read: Read) -> Buffer:
        return read(number * self.begun.part_bytes, (number + 1) * self.begun.part_bytes)


def _is_there(job: "Future[bytes]") -> bool:
    return not job.cancelled() and job.exception() is None
