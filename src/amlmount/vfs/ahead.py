"""Listing ahead of a walk: `find`, `os.walk` and data sets list one directory after the other; the next come meanwhile.

It fetches names, never content, and only once a reader has come through siblings in their order.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from amlmount.errors import AmlmountError
from amlmount.vfs.base import Node
from amlmount.vfs.content.workers import Workers
from amlmount.vfs.nodes import DirectoryNode

MAX_WALKS = 16


class _Walk:
    """The sub-directories of one parent in their order; valid for as long as its children are these."""

    def __init__(self, children: dict[bytes, Node]) -> None:
        self.children = children
        self.order = [node for node in children.values() if isinstance(node, DirectoryNode)]
        self.places = {node.node_id: place for place, node in enumerate(self.order)}


class ListAhead:
    """Keeps `width` directories ahead of a walk listed. Called from any thread; owns no lock.

    Two threads that come at once do at worst the same work twice: `list_now` shares a listing under way.
    """

    def __init__(self, list_now: Callable[[DirectoryNode], object], width: int) -> None:
        self._list_now = list_now
        self._width = width
        self._walks: dict[int, _Walk] = {}
        self._workers = Workers(width, "list-ahead")

    def came_to(self, directory: DirectoryNode, parent: Node | None) -> None:
        """Note that somebody lists `directory`, and list what a walk would come to next."""
        if self._width == 0 or not isinstance(parent, DirectoryNode) or parent is directory:
            return
        walk = self._walk(parent)
        place = walk.places.get(directory.node_id)
        if place is None or (place > 0 and walk.order[place - 1].listed_at is None):
            return
        for following in walk.order[place + 1 : place + 1 + self._width]:
            if following.listed_at is None and following.fetch is None:
                self._workers.submit(partial(self._list, following))

    def close(self) -> None:
        """List no more."""
        self._workers.close()

    def _walk(self, parent: DirectoryNode) -> _Walk:
        walk = self._walks.get(parent.node_id)
        if walk is None or walk.children is not parent.children:
            if len(self._walks) >= MAX_WALKS:
                self._walks.clear()
            walk = self._walks[parent.node_id] = _Walk(parent.children)
        return walk

    def _list(self, directory: DirectoryNode) -> None:
        # Nobody asked for it: whoever comes to it gets the error, or an answer that is right by then.
        if directory.listed_at is None:
            with suppress(AmlmountError, OSError):
                self._list_now(directory)
