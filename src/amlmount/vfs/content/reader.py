"""Bytes of blobs from the network, fetched once, kept on the local disk, and ahead of those who read them.

Memory, whatever is read: MEMORY_BYTES of what the disk did not take, RANGE_WORKERS ranges of 4 MiB and
PREFETCH_WORKERS small blobs on their way, and one read for every request of the kernel that is being answered.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping

from amlmount.config.spec import MountSpec, Policy
from amlmount.vfs.base import WouldBlock
from amlmount.vfs.content import checksum
from amlmount.vfs.content.checksum import Buffer
from amlmount.vfs.content.directory import CacheDirectory
from amlmount.vfs.content.keys import Keys, identity_of
from amlmount.vfs.content.large import LargeBlobs
from amlmount.vfs.content.memory import RecentPieces
from amlmount.vfs.content.prefetch import Children, Limits, Prefetcher
from amlmount.vfs.content.small import Download, SmallBlobs
from amlmount.vfs.content.workers import Workers
from amlmount.vfs.nodes import FileNode

MEMORY_BYTES = 128 << 20
RANGE_WORKERS = 16
PREFETCH_WORKERS = 96
WHOLE_BYTES = 64 << 10  # blobs up to this are fetched whole, prefetch or not: one request is one request
OpenContent = Callable[[Download, Callable[[int], Children | None]], "ContentReader"]
log = logging.getLogger(__name__)


class ContentReader:
    """Reads from stores that are not local, through a cache directory if there is one."""

    def __init__(
        self,
        policy: Policy,
        identities: Mapping[int, str],
        download: Download,
        children_of: Callable[[int], Children | None],
        directory: CacheDirectory | None,
    ) -> None:
        """`download(node, start, length)` returns exactly those bytes or raises OSError."""
        keys, recent = Keys(identities), RecentPieces(MEMORY_BYTES)
        self.directory = directory
        self.hits = self.misses = 0  # of reads that somebody asked for: those that need not wait, and the others
        self._keys = keys
        self._whole_bytes = max(policy.prefetch_small_bytes, WHOLE_BYTES)
        self._range_workers = Workers(RANGE_WORKERS, "ranges")
        self._prefetch_workers = Workers(PREFETCH_WORKERS, "prefetch")
        self._trouble = DiskTrouble()
        packs = directory.packs if directory else None
        self._small = SmallBlobs(keys, download, packs, recent, self._trouble.note)
        window = policy.read_ahead_max_bytes
        self._large = LargeBlobs(
            keys,
            download,
            directory,
            recent,
            self._trouble.note,
            max_window_bytes=window if directory else min(window, MEMORY_BYTES // 2),
            workers=self._range_workers,
        )
        budget = policy.prefetch_budget_bytes
        limits = Limits(policy.prefetch_small_bytes, budget if directory else min(budget, MEMORY_BYTES // 2))
        self._prefetcher = Prefetcher(self._small, children_of, limits, self._prefetch_workers)
        self._small.reached = self._prefetcher.reached

    def read(self, node: FileNode, offset: int, size_bytes: int, *, may_wait: bool) -> Buffer:
        """Return bytes that lie within the blob. Raises WouldBlock, and the OSError of a download that failed."""
        blobs = self._small if node.size_bytes <= self._whole_bytes else self._large
        if may_wait:
            return blobs.read(node, offset, size_bytes, may_wait=True)
        try:
            data = blobs.read(node, offset, size_bytes, may_wait=False)
        except WouldBlock:
            self.misses += 1
            raise
        self.hits += 1
        return data

    def warm_up(self) -> None:
        """Load what the first reader of a large blob would wait for."""
        if self.directory is not None:
            checksum.warm_up()

    def use_page_cache(self, store_page: Callable[[int, Buffer], object]) -> None:
        """Put files that are fetched ahead into the kernel's page cache: `store_page(node_id, bytes)`."""
        self._prefetcher.store_page = store_page

    def opened(self, node: FileNode) -> None:
        """Somebody opened a file: it is not evicted until it is closed as often."""
        if node.size_bytes > self._whole_bytes:
            self._large.hold(node)

    def released(self, node: FileNode) -> None:
        """A handle was closed."""
        if node.size_bytes > self._whole_bytes:
            self._large.release(node)

    def whole_file(self, node: FileNode) -> int | None:
        """Return a descriptor of a file on disk that is exactly this blob, if there is one; the caller closes it."""
        if node.size_bytes <= self._whole_bytes:
            return None
        file = self._large.whole_file(node)
        return os.dup(file.fd) if file else None

    def entry_of(self, node: FileNode) -> str | None:
        """Return the entry of the cache directory that holds a blob, or a part of it."""
        return self.directory.entry_of(self._keys.of(node)) if self.directory else None

    def is_kept(self, node: FileNode) -> bool:
        """Say whether a blob is on disk, whole, as far as can be said without reading it."""
        if self.directory is None:
            return False
        key = self._keys.of(node)
        return key in self.directory.packs or self.directory.kept_bytes(key) >= node.size_bytes > 0

    def close(self) -> None:
        """End what goes on in the background, and let another process have the cache directory."""
        self._prefetcher.close()
        self._range_workers.close()
        self._prefetch_workers.close()
        if self.directory is not None:
            self.directory.close()


class DiskTrouble:
    """Says once that the cache disk does not take what it is given, and once that it does again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.error: OSError | None = None

    def note(self, error: OSError | None) -> None:
        """Take in how a write went."""
        if (error is None) == (self.error is None):
            return
        with self._lock:
            known, self.error = self.error, error
        if error is not None and known is None:
            log.warning("cannot keep what is read on disk: %s; reading goes on without", error)
        elif error is None and known is not None:
            log.info("what is read is kept on disk again")


def open_reader(spec: MountSpec, download: Download, children_of: Callable[[int], Children | None]) -> ContentReader:
    """Make the reader of a mount; a cache directory that cannot be used is said and done without."""
    identities = {index: identity_of(source) for index, source in enumerate(spec.sources)}
    return ContentReader(spec.policy, identities, download, children_of, _open_directory(spec))


def open_late(spec: MountSpec) -> OpenContent | None:
    """Return what makes the reader of a mount that did without its cache directory, None if it cannot have it yet."""
    if spec.cache_dir is None or not spec.policy.cache_on_disk:
        return None
    try:
        directory = CacheDirectory(spec.cache_dir, limit_bytes=spec.cache_max_bytes)
    except OSError:
        return None
    identities = {index: identity_of(source) for index, source in enumerate(spec.sources)}
    return lambda download, children_of: ContentReader(spec.policy, identities, download, children_of, directory)


def _open_directory(spec: MountSpec) -> CacheDirectory | None:
    if spec.cache_dir is None or not spec.policy.cache_on_disk:
        return None
    try:
        return CacheDirectory(spec.cache_dir, limit_bytes=spec.cache_max_bytes)
    except OSError as error:
        log.warning("cannot use the cache directory %s: %s; reading goes on without", spec.cache_dir, error)
        return None
