"""Small files ahead of their readers: once one of a directory is read, the others follow, in listing order.

How much: FIRST_FILES after the first read in a directory, then up to `budget_bytes` ahead of where the reader was
seen last: no more than that is left behind by one that goes away. What the kernel reads from its page cache it does
not tell; therefore one file in every quarter of the budget is left out of the page cache, to hear of its reader.
"""

import bisect
import queue
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from amlmount.vfs.base import Node, NodeKind
from amlmount.vfs.content.checksum import Buffer
from amlmount.vfs.content.small import Boarded, SmallBlobs
from amlmount.vfs.content.workers import Workers
from amlmount.vfs.nodes import FileNode

FIRST_FILES = 64
IDLE_S = 10.0  # without any read that long, what was begun is not gone on with
MAX_DIRECTORIES = 256
MAX_FAILURES = 8
MAX_AT_ONCE = 64
SPARE = 16
Children = dict[bytes, Node]


class _Ahead:
    """One directory: which of its small files have had their turn, and how much of that is ahead of its reader."""

    __slots__ = ("bytes_left", "children", "cursor", "files_left", "front", "nodes", "reads", "unread_bytes", "visited")

    def __init__(self, children: Children, max_bytes: int) -> None:
        self.children = children
        self.nodes = [
            node for node in children.values() if node.kind is NodeKind.FILE and 0 < node.size_bytes <= max_bytes
        ]
        self.visited = bytearray(len(self.nodes))
        self.cursor = self.front = 0  # what comes next; what the reader has not come to yet
        self.reads = self.unread_bytes = 0
        self.files_left = self.bytes_left = 0

    def reached(self, node: FileNode, is_missing: bool, budget_bytes: int) -> None:
        """Take in that a file was read: what follows it comes next."""
        self.reads += 1
        position = bisect.bisect_left(self.nodes, node.name, key=lambda one: one.name)
        if position < len(self.nodes) and self.nodes[position] is node:
            self._move(position, is_missing)
        self.files_left = FIRST_FILES if self.reads == 1 else len(self.nodes)
        self.bytes_left = budget_bytes - self.unread_bytes

    def _move(self, position: int, is_missing: bool) -> None:
        if is_missing:  # a jump, or the first read here
            if self.visited[position] and 0 not in self.visited:
                self.visited = bytearray(len(self.nodes))  # it went out of the cache, and others may have too
            self.visited[position] = 1
            self.cursor = self.front = position + 1
            self.unread_bytes = 0
        elif self.front <= position < self.cursor:
            read = sum([node.size_bytes for node in self.nodes[self.front : position + 1]])
            self.unread_bytes = max(self.unread_bytes - read, 0)
            self.front = position + 1

    def next(self) -> FileNode | None:
        """Return the next file to fetch, None when there is none or the budget is used up."""
        index = self.visited.find(0, self.cursor)
        if index < 0:
            index = self.visited.find(0)
        if index < 0 or self.files_left <= 0 or self.bytes_left < self.nodes[index].size_bytes:
            return None
        node = self.nodes[index]
        assert isinstance(node, FileNode)
        self.visited[index], self.cursor = 1, index + 1
        self.files_left -= 1
        self.bytes_left -= node.size_bytes
        self.unread_bytes += node.size_bytes
        return node


@dataclass(frozen=True, slots=True)
class Limits:
    """Which files count as small, and how many bytes may be fetched ahead; zero of either turns prefetch off."""

    max_file_bytes: int
    budget_bytes: int


class Prefetcher:
    """Fetches ahead in `workers`, and hands what nobody waits for to `store_page`.

    One thread conducts: it alone decides what comes next, writes what arrived, and fills the page cache. The workers
    do nothing but ask the store, so there are hardly any locks to contend for. It goes when it has nothing to do.
    """

    def __init__(
        self, blobs: SmallBlobs, children_of: Callable[[int], Children | None], limits: Limits, workers: Workers
    ) -> None:
        """`children_of` returns the present children of a directory by node id, None for an unknown one."""
        self._blobs = blobs
        self._children_of = children_of
        self._limits = limits
        self._workers = workers
        self._conductor = Workers(1, "conductor")
        self._inbox: queue.SimpleQueue[Boarded | tuple[FileNode, bool] | None] = queue.SimpleQueue()
        self._is_conducting = False
        self._directories: OrderedDict[int, _Ahead] = OrderedDict()
        self._active: deque[_Ahead] = deque()
        self._on_the_way = 0
        self._failures = 0
        self._since_mark_bytes = 0
        self._last_read_s = 0.0
        self.store_page: Callable[[int, Buffer], object] | None = None

    def reached(self, node: FileNode, is_missing: bool) -> None:
        """Take in a read; costs the reader next to nothing."""
        if not self._limits.budget_bytes or node.size_bytes > self._limits.max_file_bytes:
            return
        self._inbox.put((node, is_missing))
        self._call_conductor()

    def close(self) -> None:
        """Begin nothing new."""
        self._limits = Limits(0, 0)
        self._conductor.close()
        self._inbox.put(None)

    def _conduct(self) -> None:
        try:
            while self._limits.budget_bytes and (self._on_the_way or not self._inbox.empty()):
                arrived = self._take_in()
                self._send_out()
                self._blobs.keep(arrived)
                self._fill_pages(arrived)
        finally:
            self._is_conducting = False
        if not self._inbox.empty():  # a read came between our last look and our leaving
            self._call_conductor()

    def _call_conductor(self) -> None:
        if not self._is_conducting:
            self._is_conducting = True
            self._conductor.submit(self._conduct)

    def _take_in(self) -> list[Boarded]:
        """Wait for something to come, and take what else is there."""
        arrived: list[Boarded] = []
        message = self._inbox.get()
        while message is not None:
            if isinstance(message, Boarded):
                arrived.append(message)
                self._on_the_way -= 1
            else:
                self._reached(*message)
            if len(arrived) >= MAX_AT_ONCE or self._inbox.empty():
                break
            message = self._inbox.get()
        return arrived

    def _reached(self, node: FileNode, is_missing: bool) -> None:
        self._last_read_s = time.monotonic()
        self._failures = 0
        ahead = self._directory(node.parent_id)
        if ahead is None:
            return
        ahead.reached(node, is_missing, self._limits.budget_bytes)
        if is_missing or ahead not in self._active:
            if ahead in self._active:
                self._active.remove(ahead)
            self._active.appendleft(ahead)

    def _directory(self, node_id: int) -> _Ahead | None:
        children = self._children_of(node_id)
        ahead = self._directories.get(node_id)
        if children is None or (ahead is not None and ahead.children is children):
            return ahead
        ahead = self._directories[node_id] = _Ahead(children, self._limits.max_file_bytes)
        if len(self._directories) > MAX_DIRECTORIES:
            self._directories.popitem(last=False)
        return ahead

    def _send_out(self) -> None:
        """Have as many on the way as there are workers, and a few more so that none waits for us."""
        if self._failures >= MAX_FAILURES or time.monotonic() - self._last_read_s > IDLE_S:
            self._active.clear()
        while self._active and self._on_the_way < self._workers.size + SPARE:
            node = self._active[0].next()
            if node is None:
                self._active.popleft()
            elif (boarded := self._blobs.board(node)) is not None:
                self._on_the_way += 1
                self._workers.submit(partial(self._carry, boarded))

    def _carry(self, boarded: Boarded) -> None:
        try:
            self._blobs.carry(boarded)
        finally:
            self._inbox.put(boarded)

    def _fill_pages(self, arrived: list[Boarded]) -> None:
        for one in arrived:
            data = one.flight.landed()
            if data is None:
                self._failures += 1
            elif self.store_page is not None and not one.flight.waiters and not self._is_mark(one.node):
                self.store_page(one.node.node_id, data)

    def _is_mark(self, node: FileNode) -> bool:
        """Tell whether this is a file whose reader we want to hear of."""
        self._since_mark_bytes += node.size_bytes
        if self._since_mark_bytes < self._limits.budget_bytes // 4:
            return False
        self._since_mark_bytes = 0
        return True
