"""One listing of one directory, page by page: entries are shown as they come, and take effect when all have come."""

import itertools
from collections import Counter
from collections.abc import Iterator
from threading import Condition

from amlmount.stores.base import Page
from amlmount.vfs.base import Node, NodeKind
from amlmount.vfs.listing import ListingBuilder
from amlmount.vfs.names import HiddenReason
from amlmount.vfs.nodes import DirectoryNode, Fetch, Source
from amlmount.vfs.tree import Tree

LONG_PAGE = 1000  # names; after a page as long as this another one is likely


class Gathering:
    """Takes pages in, one thread at a time. `listed` is the condition of the tree lock."""

    def __init__(
        self,
        tree: Tree,
        listed: Condition,
        directory: DirectoryNode,
        source: Source,
        pages: Iterator[Page],
        fetch: Fetch,
    ) -> None:
        self._tree = tree
        self._listed = listed
        self._directory = directory
        self._source = source
        self._pages = pages
        self._fetch = fetch
        self._last_key = b""
        self._is_sorted = True
        self.hidden: Counter[HiddenReason] = Counter()
        self.shown_wrongly: dict[bytes, Node] = {}  # what a later page showed to be something else

    def take_page(self) -> int:
        """Take in the next page and return how many names it had, -1 if there was none. Raises the store's errors."""
        page = next(self._pages, None)
        if page is None:
            return -1
        directory = self._directory
        builder = ListingBuilder(directory.blob_name, directory.path, self._source.glob)
        builder.add(page)
        listing = builder.finish()
        self.hidden += listing.hidden
        nodes = self._tree.arrange(directory, listing)
        with self._listed:
            self._tree.settle_all(nodes)
            self._merge(nodes)
            self._listed.notify_all()
        return len(page.objects) + len(page.prefixes)

    def children(self) -> dict[bytes, Node]:
        """Return everything, in the order of `names-sorted`."""
        found = self._fetch.children
        return found if self._is_sorted else dict(sorted(found.items(), key=lambda item: _key(item[1])))

    def abandon(self) -> None:
        """Forget what was shown and never took effect, unless the kernel holds it. Needs the lock."""
        for node in self._fetch.children.values():
            self._tree.abandon(node)

    def _merge(self, nodes: dict[bytes, Node]) -> None:
        known = self._fetch.children
        twice = () if known.keys().isdisjoint(nodes) else known.keys() & nodes.keys()
        for name in twice:
            self._settle_twice(name, known[name], nodes.pop(name))
        if nodes:
            first, last = next(iter(nodes.values())), next(reversed(nodes.values()))
            self._is_sorted &= _key(first) > self._last_key
            self._last_key = max(self._last_key, _key(last))
        known.update(nodes)
        self._fetch.entries.nodes.extend(nodes.values())

    def _settle_twice(self, name: bytes, present: Node, other: Node) -> None:
        """A name came on two pages: a directory wins over a blob, else what came last."""
        if present.kind is not other.kind:
            self.hidden[HiddenReason.SHADOWED] += 1
        if present is other or present.kind is NodeKind.DIRECTORY:
            return
        self._fetch.children[name] = other
        self.shown_wrongly[name] = present
        self._is_sorted = False


def _key(node: Node) -> bytes:
    return node.name + b"/" if node.kind is NodeKind.DIRECTORY else node.name


def one_page(page: Page) -> Iterator[Page]:
    """Return a listing that is known already."""
    return itertools.chain((page,))
