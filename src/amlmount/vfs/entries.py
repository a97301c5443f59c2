"""The entries of a directory as they arrive: whoever lists a long one need not wait for its last page."""

import threading
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from amlmount.errors import AmlmountError
from amlmount.vfs.base import Node, WouldBlock
from amlmount.vfs.errno import as_os_error


class Entries:
    """A listing that may still be going on. `nodes` only ever grows, and not any more once `is_complete`."""

    __slots__ = ("_changed", "error", "is_complete", "nodes")

    def __init__(self, changed: threading.Condition) -> None:
        """`changed` is notified, and its lock held, whenever anything here changes."""
        self._changed = changed
        self.nodes: list[Node] = []
        self.is_complete = False
        self.error: BaseException | None = None

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> "Entries":
        """Return a listing that is complete."""
        entries = cls(_UNUSED)
        entries.nodes, entries.is_complete = list(nodes), True
        return entries

    def wait_for(self, index: int, *, may_wait: bool) -> None:
        """Return once there is an entry at `index`, or none will come. Raises WouldBlock; OSError if listing failed."""
        if index < len(self.nodes) or self.is_complete:
            return
        if not may_wait and self.error is None:
            raise WouldBlock
        with self._changed:
            self._changed.wait_for(lambda: index < len(self.nodes) or self.is_complete or self.error is not None)
        if index >= len(self.nodes) and not self.is_complete:
            raise as_os_error(self.error) if isinstance(self.error, AmlmountError) else OSError(5, "cannot list")


@runtime_checkable
class StreamsDirectories(Protocol):
    """A file system that shows the first entries of a directory before it knows the last."""

    def stream_dir(self, node_id: int, *, may_wait: bool = True) -> Entries:
        """Return the entries of a directory, as `FileSystem.list_dir`, as soon as there are some.

        They are current only once all have come. Of a blob and a directory with one name the blob may be shown, if
        the directory comes on a later page; the change is then reported as any other.
        """
        ...


_UNUSED = threading.Condition()
