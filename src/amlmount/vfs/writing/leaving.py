"""Inodes that lose their names, by an unlink or a rename over them: who has one open keeps it, who opens it waits.

ESTALE makes the kernel walk the path once more (namei.c, retry_estale), but only once: so whoever would take the name
away next waits until it has come.
"""

import contextlib
import errno
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from amlmount.vfs.base import Node, WouldBlock
from amlmount.vfs.nodes import FileNode
from amlmount.vfs.writing.livefile import LiveFile
from amlmount.vfs.writing.reading import LiveReading

EXPECTED_S = 0.5  # within which the kernel comes again
LONGEST_TURN_S = 2.0
_Name = tuple[int, bytes]


@dataclass(slots=True)
class _Turn:
    until: float
    limit: float


class Expected:
    """Who is expected to open a name (of a directory) once more, and until when (time.monotonic): by the number of the
    program. Needs the tree lock."""

    def __init__(self) -> None:
        self._turns: dict[_Name, dict[int, _Turn]] = {}

    def add(self, name: _Name, who: int) -> None:
        """Expect one."""
        now = time.monotonic()
        for other in list(self._turns):
            self._drop_past(other, now)
        self._turns.setdefault(name, {})[who] = _Turn(now + EXPECTED_S, now + LONGEST_TURN_S)

    def _drop_past(self, name: _Name, now: float) -> None:
        left = {who: turn for who, turn in self._turns.pop(name).items() if turn.until > now}
        if left:
            self._turns[name] = left

    def prolong(self, name: _Name) -> None:
        """Learn that somebody is on the way."""
        now = time.monotonic()
        for turn in self._turns.get(name, {}).values():
            if turn.until > now:
                turn.until = min(now + EXPECTED_S, turn.limit)

    def take(self, name: _Name, who: int) -> None:
        """Learn that one has come."""
        turns = self._turns.get(name)
        if turns is not None:
            turns.pop(who, None)
            if not turns:
                del self._turns[name]

    def until(self, name: _Name) -> float:
        """Return until when anybody is expected; what is past if nobody is."""
        return max((turn.until for turn in self._turns.get(name, {}).values()), default=0.0)

    def __bool__(self) -> bool:
        return bool(self._turns)


class LeavingNames(LiveReading):
    """LiveReading in which handles are counted, and names taken away."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._changed = threading.Condition(self._lock)
        self._leaving: set[int] = set()
        self._lost: set[int] = set()  # ordinary inodes whose name was taken away, as long as the kernel knows them
        self._coming: Counter[_Name] = Counter()  # how many are just opening a name
        self._expected = Expected()

    # Who opens

    @contextlib.contextmanager
    def coming(self, node: Node, who: int, may_wait: bool) -> Iterator[None]:
        """Open an inode in the block, for a program (its number), unless it is lost: ESTALE. Waits while that is being
        decided, and who would take the name away waits until it is opened."""
        name = _name_of(node)
        with self._lock:
            self._coming[name] += 1
        try:
            with self._lock:
                self._wait_for_leaving(node, may_wait)
                self._refuse_lost(node)
            yield
            self.arrived(node, who)
        except OSError as error:
            if error.errno == errno.ESTALE:
                with self._lock:
                    self._expected.add(name, who)
            raise
        finally:
            with self._lock:
                self._coming[name] -= 1
                if not self._coming[name]:
                    del self._coming[name]
                self._changed.notify_all()

    def arrived(self, node: Node, who: int) -> None:
        """Learn that a name was opened, or made anew."""
        if self._expected:
            with self._lock:
                self._expected.take(_name_of(node), who)
                self._changed.notify_all()

    def _wait_for_leaving(self, node: Node, may_wait: bool = True) -> None:
        deadline = time.monotonic() + LONGEST_TURN_S
        while node.node_id in self._leaving or (self._is_left_over(node) and time.monotonic() < deadline):
            if not may_wait:
                raise WouldBlock
            self._changed.wait(None if node.node_id in self._leaving else LONGEST_TURN_S)

    def _is_left_over(self, node: Node) -> bool:
        """Say whether a process that died had taken a name away and not said so: the kernel asks for that once more."""
        present = self._tree.nodes.get(node.node_id)
        return (
            isinstance(present, LiveFile)
            and present.is_unlinked
            and not present.opens
            and self._tree.is_current(present)
        )

    def _refuse_lost(self, node: Node) -> None:
        present = self._tree.nodes.get(node.node_id, node)
        if isinstance(present, LiveFile):
            is_lost, handles = present.is_unlinked, present.opens
        else:
            is_lost, handles = False, self._readers[node.node_id]
        if not handles and (is_lost or node.node_id in self._lost):
            raise OSError(errno.ESTALE, "no name leads to it any more, and nobody has it open")

    def alive(self, node_id: int, *, is_emptied: bool) -> LiveFile:
        """Do what `enliven` does; what this mount makes of the inode meanwhile (it has another name) is no error."""
        while True:
            node = self.node(node_id)
            assert isinstance(node, FileNode)
            before = (node.blob_name, node.etag)
            try:
                return self.enliven(node, is_emptied=is_emptied)
            except OSError as error:
                now = self._tree.nodes.get(node_id)
                if error.errno != errno.ESTALE or now is None:
                    raise
                if now is node and (now.blob_name, now.etag) == before:
                    raise

    def count_reader(self, node: Node, may_wait: bool) -> Node:
        """Count a handle that only reads, and return what the inode is now. Raises ESTALE, WouldBlock."""
        with self._lock:
            self._wait_for_leaving(node, may_wait)
            self._refuse_lost(node)
            present = self._known(node.node_id)
            if isinstance(present, LiveFile):
                present.opens += 1
            else:
                self._readers[node.node_id] += 1
            return present

    def discount_reader(self, node: Node) -> LiveFile | None:
        """Take back a handle of an ordinary inode; the live file, whose handle it is then, if it has become one."""
        with self._lock:
            present = self._tree.nodes.get(node.node_id)
            if isinstance(present, LiveFile):
                return present
            self._readers[node.node_id] -= 1
            if self._readers[node.node_id] <= 0:
                del self._readers[node.node_id]
            return None

    def count_writer(self, file: LiveFile) -> None:
        """Count a handle, and see that no listing takes the name away. Raises ESTALE if another has it by now."""
        with self._lock:
            self._wait_for_leaving(file)
            self._refuse_lost(file)
            self._keep_name(file)
            file.opens += 1

    def keep_name(self, file: LiveFile) -> None:
        """Do what `count_writer` does before something changes that nobody has open; no handle is counted."""
        with self._lock:
            self._refuse_lost(file)
            self._keep_name(file)

    def _keep_name(self, file: LiveFile) -> None:
        """See that no listing takes the name away from a file that is about to change; ESTALE if one has by now."""
        if file.is_unlinked:
            return
        if not self._tree.is_current(file):
            raise OSError(errno.ESTALE, "another inode has its name by now")
        self.own.note(self._parent(file), file.name, file, self._clock())

    def lookup(self, parent_id: int, name: bytes, *, may_wait: bool = True) -> Node:
        """See FileSystem.lookup."""
        if self._expected:
            with self._lock:
                self._expected.prolong((parent_id, name))
        return super().lookup(parent_id, name, may_wait=may_wait)

    def forget(self, node_id: int, nlookup: int) -> None:
        """See FileSystem.forget."""
        super().forget(node_id, nlookup)
        if node_id not in self._tree.nodes:
            self._lost.discard(node_id)

    # Who takes a name away

    @contextlib.contextmanager
    def leaving(self, node: FileNode) -> Iterator[LiveFile | None]:
        """Take an inode's name away in the block; if that raises, it is left as it was.

        Yields its live file, with `sending` held, if it is one or somebody has it open: then all of it is here.
        Raises OSError.
        """
        file = self._mark(node)
        is_lost = False
        try:
            yield file
            is_lost = file is None
        finally:
            if file is not None:
                file.sending.release()
            with self._lock:
                self._leaving.discard(node.node_id)
                if is_lost:
                    self._lost.add(node.node_id)
                self._changed.notify_all()

    def _mark(self, node: FileNode) -> LiveFile | None:
        deadline = time.monotonic() + LONGEST_TURN_S
        while True:
            with self._lock:
                self._let_come(node, deadline)
                present = self._tree.nodes.get(node.node_id, node)
                if not isinstance(present, LiveFile) and not self._readers[node.node_id]:
                    self._leaving.add(node.node_id)
                    return None
            assert isinstance(present, FileNode)
            file = self.enliven(present, is_emptied=False)
            file.sending.acquire()
            try:
                if self._mark_live(file, deadline):
                    return file
                if file.opens:
                    self.fetch_rest(file)
            except BaseException:
                file.sending.release()
                raise
            file.sending.release()

    def _mark_live(self, file: LiveFile, deadline: float) -> bool:
        with file.lock, self._lock:
            if self._wait_s(file, deadline) > 0 or (file.opens and not file.state.whole):
                return False
            self._leaving.add(file.node_id)
            return True

    def _let_come(self, node: Node, deadline: float) -> None:
        """Wait until whoever is just opening this name has it open, or was told ESTALE and has come again."""
        while (wait_s := self._wait_s(node, deadline)) > 0:
            self._changed.wait(wait_s)

    def _wait_s(self, node: Node, deadline: float) -> float:
        if self._is_left_over(node):
            return 0.0
        name = _name_of(node)
        until = deadline if self._coming[name] else self._expected.until(name)
        return min(until, deadline) - time.monotonic()


def _name_of(node: Node) -> _Name:
    return node.parent_id, node.name
