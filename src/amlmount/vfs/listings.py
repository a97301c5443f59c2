"""Listings of directories: each made once however many ask, relied on for the policy's time, shown as it arrives.

Locks: everything here is guarded by the tree lock, which is not held over a store call. Whoever finds a listing under
way waits on the condition, which is notified at every page.
"""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from amlmount.config.spec import Policy
from amlmount.errors import AmlmountError
from amlmount.metrics import Timings
from amlmount.stores.base import Page
from amlmount.vfs.base import Node, WouldBlock
from amlmount.vfs.content.workers import Workers
from amlmount.vfs.entries import Entries
from amlmount.vfs.errno import TroubleLog
from amlmount.vfs.gathering import LONG_PAGE, Gathering, one_page
from amlmount.vfs.nodes import STALE, DirectoryNode, Fetch, Source
from amlmount.vfs.tree import Tree

LONG_LISTINGS = 4  # that go on in the background at once; others wait their turn
Children = dict[bytes, Node]


class Listings:
    """What is known of the directories of one tree.

    `on_installed(directory, children_before)` is called with the lock held when a listing took effect, `on_change`
    with the same and no lock held when it changed what was listed before.
    """

    def __init__(
        self,
        tree: Tree,
        lock: threading.Lock,
        policy: Policy,
        clock: Callable[[], float],
        troubles: TroubleLog,
        timings: Timings,
    ) -> None:
        self._tree = tree
        self._lock = lock
        self._listed = threading.Condition(lock)
        self._policy = policy
        self._clock = clock
        self._troubles = troubles
        self._timings = timings
        self._workers = Workers(LONG_LISTINGS, "listing")
        self.on_installed: Callable[[DirectoryNode, Children], None] = lambda directory, before: None
        self.on_change: Callable[[DirectoryNode, Children], None] = lambda directory, before: None
        # Puts on top of a listing begun at a moment what it cannot know; called with the lock held.
        self.amend: Callable[[DirectoryNode, Children, float], Children] = lambda directory, children, started_at: (
            children
        )

    def entries(self, directory: DirectoryNode, may_wait: bool) -> Children:
        """Return all entries, from a listing begun no longer ago than the policy allows, counted from now.

        Raises WouldBlock, the store's errors, and OSError ESTALE for a directory that is gone.
        """
        source = directory.source
        if source is None:
            return directory.children
        may_list = may_wait or source.store.is_local
        oldest = self._oldest()
        while True:
            with self._lock:
                if self._is_fresh(directory, oldest):
                    return directory.children
                if not may_list or (directory.fetch and not may_wait):
                    raise WouldBlock
                if directory.fetch:
                    self._wait_for(directory.fetch)
                    continue
                fetch = directory.fetch = self._begin()
            self._carry_out(self._gathering(fetch, directory, source), fetch, directory, source)

    def find(self, directory: DirectoryNode, name: bytes, may_wait: bool) -> Node | None:
        """Return one entry, without waiting for the end of a listing that has shown it already. Raises as `entries`."""
        oldest = self._oldest()
        with self._lock:
            fetch = directory.fetch
            if fetch and fetch.started_at >= oldest and not self._is_fresh(directory, oldest):
                found = fetch.children.get(name)
                if found is not None:
                    return found
        return self.entries(directory, may_wait).get(name)

    def stream(self, directory: DirectoryNode, may_wait: bool) -> Entries:
        """Return the entries as they arrive; what is long goes on in the background. Raises as `entries`."""
        source = directory.source
        if source is None or source.store.is_local:
            return Entries.of(self.entries(directory, may_wait).values())
        oldest = self._oldest()
        while True:
            with self._lock:
                if self._is_fresh(directory, oldest):
                    return Entries.of(directory.children.values())
                fetch = directory.fetch
                if fetch and fetch.started_at >= oldest and (may_wait or fetch.entries.nodes):
                    return fetch.entries
                if not may_wait:
                    raise WouldBlock
                if fetch:
                    self._wait_for(fetch)
                    continue
                fetch = directory.fetch = self._begin()
            gathering = self._gathering(fetch, directory, source)
            self._carry_out(gathering, fetch, directory, source, is_patient=False)
            return fetch.entries

    def know(self, directory: DirectoryNode, source: Source, page: Page, started_at: float) -> None:
        """Take over a listing that somebody made who asked for something else: all of it, on one page."""
        with self._lock:
            if directory.fetch or directory.listed_at is not None:
                return
            fetch = directory.fetch = self._begin(started_at)
        gathering = Gathering(self._tree, self._listed, directory, source, one_page(page), fetch)
        self._carry_out(gathering, fetch, directory, source)

    def close(self) -> None:
        """Go on with nothing in the background."""
        self._workers.close()

    def _oldest(self) -> float:
        return STALE if self._policy.pinned else self._clock() - self._policy.list_ttl_s

    def _is_fresh(self, directory: DirectoryNode, oldest: float) -> bool:
        if self._tree.nodes.get(directory.node_id) is not directory:
            raise OSError(errno.ESTALE, "unknown inode")
        listed_at = directory.listed_at
        return listed_at is not None and listed_at > STALE and listed_at >= oldest

    def _begin(self, started_at: float | None = None) -> Fetch:
        return Fetch(self._clock() if started_at is None else started_at, Entries(self._listed))

    def _gathering(self, fetch: Fetch, directory: DirectoryNode, source: Source) -> Gathering:
        pages: Iterator[Page] = source.store.list(directory.blob_name, delimiter=True)
        return Gathering(self._tree, self._listed, directory, source, pages, fetch)

    def _wait_for(self, fetch: Fetch) -> None:
        self._listed.wait_for(lambda: fetch.done)
        if fetch.error is not None:
            raise fetch.error

    def _carry_out(
        self, gathering: Gathering, fetch: Fetch, directory: DirectoryNode, source: Source, *, is_patient: bool = True
    ) -> None:
        """Take in all pages; if not patient, leave it to a thread after the first long one."""
        try:
            while (names := gathering.take_page()) >= 0:
                rest = partial(self._go_on, gathering, fetch, directory, source)
                if names >= LONG_PAGE and not is_patient and self._workers.submit(rest):
                    return
            self._install(gathering, fetch, directory)
        except AmlmountError as error:
            self._failed(gathering, fetch, directory, error)
            self._timings.failed += 1
            self._troubles.failed(source.name, error)
            raise
        except BaseException:
            unknown = AmlmountError(f"cannot list {directory.blob_name!r}: internal error")
            self._failed(gathering, fetch, directory, unknown)
            raise
        self._timings.note(int((self._clock() - fetch.started_at) * 1e9))
        self._troubles.worked(source.name)
        if fetch.before is not None:
            self.on_change(directory, fetch.before)

    def _go_on(self, gathering: Gathering, fetch: Fetch, directory: DirectoryNode, source: Source) -> None:
        with suppress(AmlmountError):  # told to those who wait for it
            self._carry_out(gathering, fetch, directory, source)

    def _install(self, gathering: Gathering, fetch: Fetch, directory: DirectoryNode) -> None:
        children = gathering.children()
        with self._lock:
            children = self.amend(directory, children, fetch.started_at)
            before, was_listed = directory.children, directory.listed_at is not None
            is_changed = self._tree.install(directory, children, gathering.hidden)
            if self._tree.nodes.get(directory.node_id) is not directory:
                gathering.abandon()
            if is_changed and was_listed:
                directory.mtime_ns = time.time_ns()
                fetch.before = before
            elif gathering.shown_wrongly:
                fetch.before = children | gathering.shown_wrongly
            directory.listed_at = STALE if fetch.superseded else fetch.started_at
            if is_changed or not before:
                self.on_installed(directory, before)
            fetch.entries.is_complete = True
            self._end(fetch, directory)

    def _failed(self, gathering: Gathering, fetch: Fetch, directory: DirectoryNode, error: AmlmountError) -> None:
        with self._lock:
            gathering.abandon()
            fetch.error = fetch.entries.error = error
            self._end(fetch, directory)

    def _end(self, fetch: Fetch, directory: DirectoryNode) -> None:
        fetch.done, directory.fetch = True, None
        self._listed.notify_all()


def mark_stale(directory: DirectoryNode) -> None:
    """Have the next use of a directory list it anew. Needs the tree lock."""
    if directory.listed_at is not None:
        directory.listed_at = STALE
    if directory.fetch:
        directory.fetch.superseded = True
