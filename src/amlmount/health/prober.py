"""Questions below mounts, asked by one child for all of them; an answer that does not come is waited for no longer.

Belongs to one event loop. The child is started at the first question, and anew if it has died.
"""

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from amlmount.run import Process, spawn

CHILD = str(Path(__file__).with_name("prober_child.py"))
LINE_BYTES = 4096
STUCK_S = 10.0  # how long questions find no room in the pipe before the child is replaced


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question. `error`: the errno, 0 if it went well, None if there has been no answer."""

    error: int | None
    value: int = 0

    @property
    def text(self) -> str:
        """Say it to a person."""
        if self.error is None:
            return "no answer"
        return os.strerror(self.error).lower() if self.error else "answered"


SILENCE = Answer(None)


class Prober:
    """Asks. At most one question of a kind waits below each place; who asks again waits for the same answer."""

    def __init__(self) -> None:
        self._child: Process | None = None
        self._dead: list[Process] = []
        self._questions = -1
        self._answers = -1
        self._rest = b""
        self._number = 0
        self._unsent = bytearray()
        self._full_since: float | None = None
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._asked: dict[tuple[str, str, int], asyncio.Future[Answer]] = {}

    async def ask(self, kind: str, path: str, timeout_s: float, *, mount_id: int = 0) -> Answer:
        """Ask `attributes`, `list`, `free` (bytes) or `write` of a path, and wait for `timeout_s` seconds at most.

        `mount_id`: which mount is meant; another one in its place is asked anew. Never raises for what is found.
        """
        key = (kind, path, mount_id)
        answer = self._asked.get(key)
        if answer is None:
            answer = self._asked[key] = self._send(kind, path)
            answer.add_done_callback(lambda _: self._asked.pop(key, None))
        done, _ = await asyncio.wait({answer}, timeout=timeout_s)
        return answer.result() if done else SILENCE

    def close(self) -> None:
        """Let the child end, and never wait for it: it may hang below a mount."""
        self._unsent.clear()
        self._silence_all()
        self._lose_child()

    def _send(self, kind: str, path: str) -> "asyncio.Future[Answer]":
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._number += 1
        self._waiting[self._number] = answer
        if not self._unsent or self._full_since is not None:
            asyncio.get_running_loop().call_soon(self._send_all)
        self._unsent += f"{self._number} {kind} {os.fsencode(path).hex()}\n".encode()
        return answer

    def _send_all(self) -> None:
        """Send all questions of this turn of the loop at once: each write wakes the child, and that costs most."""
        if self._unsent and self._child is None:
            self._start()
        try:
            while self._unsent:
                del self._unsent[: os.write(self._questions, self._unsent)]
        except BlockingIOError:
            self._wait_for_room()
        except OSError:  # it has died: the next question starts another one
            self._lose_child()
            self._silence_all()
        else:
            self._no_more_waiting()

    def _wait_for_room(self) -> None:
        loop = asyncio.get_running_loop()
        if self._full_since is None:
            self._full_since = loop.time()
            loop.add_writer(self._questions, self._send_all)
        elif loop.time() - self._full_since > STUCK_S:  # it reads nothing any more
            self._lose_child()
            self._silence_all()

    def _no_more_waiting(self) -> None:
        if self._full_since is not None:
            self._full_since = None
            asyncio.get_running_loop().remove_writer(self._questions)

    def _start(self) -> None:
        self._bury()
        child_in, self._questions = os.pipe2(os.O_CLOEXEC)
        self._answers, child_out = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._questions, False)
        os.set_blocking(self._answers, False)
        try:
            self._child = spawn([sys.executable, "-I", "-S", CHILD], stdin=child_in, stdout=child_out, cwd="/")
        finally:
            os.close(child_in)
            os.close(child_out)
        self._rest = b""
        asyncio.get_running_loop().add_reader(self._answers, self._on_answers)

    def _on_answers(self) -> None:
        try:
            data = os.read(self._answers, LINE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._lose_child()
            self._silence_all()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            number, error, value = (int(part) for part in line.split())
            answer = self._waiting.pop(number, None)
            if answer is not None and not answer.done():
                answer.set_result(Answer(error, value))

    def _silence_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_result(SILENCE)

    def _lose_child(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        self._unsent.clear()
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(self._answers)
            self._no_more_waiting()
        os.close(self._questions)
        os.close(self._answers)
        child.send_signal(9)
        self._dead.append(child)
        self._bury()

    def _bury(self) -> None:
        """Collect those that have ended; one that hangs in the kernel is left to it."""
        for child in [child for child in self._dead if child.poll() is not None]:
            child.close()
            self._dead.remove(child)
