"""Small blobs: fetched whole, by one request however many ask, and kept in packs, else in memory."""

import threading
from collections.abc import Callable

from amlmount.vfs.base import WouldBlock
from amlmount.vfs.content.checksum import Buffer
from amlmount.vfs.content.flight import Flight
from amlmount.vfs.content.keys import Keys
from amlmount.vfs.content.memory import RecentPieces
from amlmount.vfs.content.packs import Packs
from amlmount.vfs.nodes import FileNode

Download = Callable[[FileNode, int, int], Buffer]
Reached = Callable[[FileNode, bool], None]


class SmallBlobs:
    """Reads small blobs. `reached` is told of every read and whether the blob had to be fetched for it."""

    def __init__(
        self,
        keys: Keys,
        download: Download,
        packs: Packs | None,
        recent: RecentPieces,
        on_disk_trouble: Callable[[OSError | None], None],
    ) -> None:
        self._keys = keys
        self._download = download
        self._packs = packs
        self._recent = recent
        self._on_disk_trouble = on_disk_trouble
        self._lock = threading.Lock()
        self._flights: dict[bytes, Flight] = {}
        self.reached: Reached = lambda node, is_missing: None

    def read(self, node: FileNode, offset: int, size_bytes: int, *, may_wait: bool) -> memoryview:
        """Return bytes within the blob. Raises WouldBlock, and what the download raises."""
        key = self._keys.of(node)
        data = self._held(key)
        self.reached(node, data is None and key not in self._flights)
        if data is None:
            if not may_wait:
                raise WouldBlock
            data = self._wait_for(node, key)
        return memoryview(data)[offset : offset + size_bytes]

    def is_held(self, node: FileNode) -> bool:
        """Tell whether a blob is there, or on its way."""
        key = self._keys.of(node)
        return key in self._flights or (self._packs is not None and key in self._packs) or (key, 0) in self._recent

    def bring(self, node: FileNode) -> Buffer | None:
        """Fetch a blob ahead of its readers; None if somebody already does, or waits for this one by now.

        Only what nobody waits for may be put into the kernel's page cache. Raises what the download raises.
        """
        key = self._keys.of(node)
        with self._lock:
            if key in self._flights:
                return None
            flight = self._flights[key] = Flight()
        data = self._held(key)
        if data is None:
            data = self._fly(node, key, flight)
        else:
            self._land(key, flight, data)
        return None if flight.waiters else data

    def _wait_for(self, node: FileNode, key: bytes) -> Buffer:
        with self._lock:
            flight = self._flights.get(key)
            is_mine = flight is None
            if flight is None:
                flight = self._flights[key] = Flight()
            else:
                flight.waiters += 1
        if not is_mine:
            return flight.result()
        held = self._held(key)  # it may have landed since we looked
        if held is None:
            return self._fly(node, key, flight)
        self._land(key, flight, held)
        return held

    def _held(self, key: bytes) -> Buffer | None:
        found = self._packs.get(key) if self._packs is not None else None
        if found is not None:
            return found
        piece = self._recent.get(key, 0)
        return piece[1] if piece else None

    def _fly(self, node: FileNode, key: bytes, flight: Flight) -> Buffer:
        try:
            data = self._download(node, 0, node.size_bytes)
            self._keep(key, data)
        except BaseException as error:
            with self._lock:
                del self._flights[key]
            flight.fail(error)
            raise
        self._land(key, flight, data)
        return data

    def _land(self, key: bytes, flight: Flight, data: Buffer) -> None:
        with self._lock:
            del self._flights[key]
        flight.land(data)

    def _keep(self, key: bytes, data: Buffer) -> None:
        """Put it where reads find it, before anybody is told that it is there."""
        if self._packs is not None:
            try:
                self._packs.put(key, data)
                self._on_disk_trouble(None)
                return
            except OSError as error:
                self._on_disk_trouble(error)
        self._recent.put(key, 0, data)
