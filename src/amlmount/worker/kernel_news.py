"""Tells the kernel which names mean something else now, from one thread that answers no request.

The kernel may first wait for an inode or a page that only an answer of ours releases: fuse/notify.py says why.
"""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from amlmount.fuse.notify import Notifier
from amlmount.vfs.base import Node
from amlmount.vfs.nodes import DirectoryNode
from amlmount.vfs.tree import Change, changes_between

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Relisted:
    directory: DirectoryNode
    before: dict[bytes, Node]
    after: dict[bytes, Node]


class KernelNews:
    """Passes changes of directories on. `relisted` may be called from any thread, at any time."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._queue: queue.SimpleQueue[_Relisted | Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="news", daemon=True).start()

    def relisted(self, directory: DirectoryNode, before: dict[bytes, Node]) -> None:
        """Pass on how a new listing of `directory` differs from `before`; returns at once."""
        self._queue.put(_Relisted(directory, before, directory.children))

    def settle(self, timeout_s: float) -> bool:
        """Wait until the kernel has been told all that came before; False if it has not in `timeout_s` seconds."""
        told = threading.Event()
        self._queue.put(told.set)
        return told.wait(timeout_s)

    def _run(self) -> None:
        while True:
            news = self._queue.get()
            if not isinstance(news, _Relisted):
                news()
                continue
            try:
                self._tell(news.directory.node_id, changes_between(news.directory.node_id, news.before, news.after))
            except Exception:
                log.exception("cannot tell the kernel of changes")

    def _tell(self, parent_id: int, changes: list[Change]) -> None:
        for change in changes:
            self._notifier.inval_entry(change.parent_id, change.name)
            if change.old_node_id is not None:
                self._notifier.inval_inode(change.old_node_id)
        if changes:
            self._notifier.inval_inode(parent_id)
