"""Small files ahead of their readers: once one of a directory is read, the others follow, in listing order.

How much: FIRST_FILES after the first read in a directory, `budget_bytes` after every later one, counted anew each
time, so a reader that goes away leaves no more than that behind. What the kernel reads from its page cache it does
not tell; therefore one file in every quarter of the budget is left out of the page cache, to hear of its reader.
"""

import bisect
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from amlmount.vfs.base import Node, NodeKind
from amlmount.vfs.content.checksum import Buffer
from amlmount.vfs.content.small import SmallBlobs
from amlmount.vfs.content.workers import Workers
from amlmount.vfs.nodes import FileNode

FIRST_FILES = 64
IDLE_S = 10.0  # without any read that long, what was begun is not gone on with
MAX_DIRECTORIES = 256
MAX_FAILURES = 8
Children = dict[bytes, Node]
log = logging.getLogger(__name__)


class _Ahead:
    """One directory: which of its small files have had their turn."""

    __slots__ = ("bytes_left", "children", "cursor", "files_left", "nodes", "reads", "visited")

    def __init__(self, children: Children, max_bytes: int) -> None:
        self.children = children
        self.nodes = [
            node for node in children.values() if node.kind is NodeKind.FILE and 0 < node.size_bytes <= max_bytes
        ]
        self.visited = bytearray(len(self.nodes))
        self.cursor = 0
        self.reads = 0
        self.files_left = self.bytes_left = 0

    def reached(self, node: FileNode, is_missing: bool, budget_bytes: int) -> None:
        """Take in that a file was read: what follows it comes next."""
        self.reads += 1
        self.files_left = FIRST_FILES if self.reads == 1 else len(self.nodes)
        self.bytes_left = budget_bytes
        position = bisect.bisect_left(self.nodes, node.name, key=lambda one: one.name)
        if position == len(self.nodes) or self.nodes[position] is not node:
            return
        if is_missing and self.visited[position] and 0 not in self.visited:
            self.visited = bytearray(len(self.nodes))  # it went out of the cache, and others may have too
        self.visited[position] = 1
        if is_missing:
            self.cursor = position + 1

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
        return node


@dataclass(frozen=True, slots=True)
class Limits:
    """Which files count as small, and how many bytes may be fetched ahead; zero of either turns prefetch off."""

    max_file_bytes: int
    budget_bytes: int


class Prefetcher:
    """Fetches ahead in `workers`, and hands what nobody waits for to `store_page`."""

    def __init__(
        self, blobs: SmallBlobs, children_of: Callable[[int], Children | None], limits: Limits, workers: Workers
    ) -> None:
        """`children_of` returns the present children of a directory by node id, None for an unknown one."""
        self._blobs = blobs
        self._children_of = children_of
        self._limits = limits
        self._workers = workers
        self._lock = threading.Lock()
        self._touches: deque[tuple[FileNode, bool]] = deque()
        self._directories: OrderedDict[int, _Ahead] = OrderedDict()
        self._active: deque[_Ahead] = deque()
        self._running = 0
        self._failures = 0
        self._since_mark_bytes = 0
        self._last_read_s = 0.0
        self.store_page: Callable[[int, Buffer], object] | None = None

    def reached(self, node: FileNode, is_missing: bool) -> None:
        """Take in a read; costs the reader next to nothing."""
        if not self._limits.budget_bytes or node.size_bytes > self._limits.max_file_bytes:
            return
        self._touches.append((node, is_missing))
        self._last_read_s = time.monotonic()
        if self._running < self._workers.size:
            self._start(1 if self._running else 2)

    def _start(self, count: int) -> None:
        for _ in range(count):
            with self._lock:
                if self._running >= self._workers.size:
                    return
                self._running += 1
            if not self._workers.submit(self._run):
                with self._lock:
                    self._running -= 1
                return

    def _run(self) -> None:
        """Fetch one file after the other until there is none; grow the number of those who do while there is."""
        while True:
            with self._lock:
                self._take_in()
                node = self._next()
                is_more = node is not None and bool(self._active) and self._running < self._workers.size
                if node is None:
                    self._running -= 1
            if node is None:
                if self._touches:  # came between our look and our leaving
                    self._start(1)
                return
            if is_more:
                self._start(2)
            self._bring(node)

    def _take_in(self) -> None:
        while self._touches:
            node, is_missing = self._touches.popleft()
            ahead = self._directory(node.parent_id)
            if ahead is None:
                continue
            ahead.reached(node, is_missing, self._limits.budget_bytes)
            if is_missing or ahead not in self._active:
                if ahead in self._active:
                    self._active.remove(ahead)
                self._active.appendleft(ahead)
            self._failures = 0

    def _directory(self, node_id: int) -> _Ahead | None:
        children = self._children_of(node_id)
        ahead = self._directories.get(node_id)
        if children is None or (ahead is not None and ahead.children is children):
            return ahead
        ahead = self._directories[node_id] = _Ahead(children, self._limits.max_file_bytes)
        if len(self._directories) > MAX_DIRECTORIES:
            self._directories.popitem(last=False)
        return ahead

    def _next(self) -> FileNode | None:
        if self._failures >= MAX_FAILURES or time.monotonic() - self._last_read_s > IDLE_S:
            self._active.clear()
        while self._active:
            node = self._active[0].next()
            if node is not None:
                return node
            self._active.popleft()
        return None

    def _bring(self, node: FileNode) -> None:
        try:
            if self._blobs.is_held(node):
                return
            data = self._blobs.bring(node)
        except OSError as error:
            self._failures += 1
            log.debug("cannot fetch %r ahead: %s", node.blob_name, error)
            return
        if data is not None and self.store_page is not None and not self._is_mark(node):
            self.store_page(node.node_id, data)

    def _is_mark(self, node: FileNode) -> bool:
        """Tell whether this is a file whose reader we want to hear of."""
        with self._lock:
            self._since_mark_bytes += node.size_bytes
            if self._since_mark_bytes < self._limits.budget_bytes // 4:
                return False
            self._since_mark_bytes = 0
            return True
