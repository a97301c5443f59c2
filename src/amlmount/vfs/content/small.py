"""Small blobs: fetched whole, by one request however many ask, and kept in packs, else in memory."""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

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
        flight = self._flights.get(key)
        data = flight.landed() if flight else self._held(key)
        self.reached(node, data is None and flight is None)
        if data is None:
            if not may_wait:
                raise WouldBlock
            data = self._wait_for(node, key)
        elif flight:
            flight.waiters += 1
        return memoryview(data)[offset : offset + size_bytes]

    def board(self, node: FileNode) -> "Boarded | None":
        """Announce that a blob will be fetched ahead; None if it is there or on its way already."""
        key = self._keys.of(node)
        if (self._packs is not None and key in self._packs) or (key, 0) in self._recent:
            return None
        with self._lock:
            if key in self._flights:
                return None
            flight = self._flights[key] = Flight()
        return Boarded(node, key, flight)

    def carry(self, boarded: "Boarded") -> None:
        """Fetch what was announced, and hand it to those who wait for it by now; an error goes to them alone."""
        try:
            boarded.flight.land(self._download(boarded.node, 0, boarded.node.size_bytes))
        except BaseException as error:
            boarded.flight.fail(error)
            if not isinstance(error, Exception):
                raise

    def keep(self, arrived: "Sequence[Boarded]") -> None:
        """Put what was carried where it stays. Until then it is found in its flight."""
        self._keep([(one.key, data) for one in arrived if (data := one.flight.landed()) is not None])
        with self._lock:
            for one in arrived:
                del self._flights[one.key]

    def _wait_for(self, node: FileNode, key: bytes) -> Buffer:
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                flight.waiters += 1
        if flight is not None:
            return flight.result()
        boarded = self.board(node)
        if boarded is None:  # it came, or somebody else began, since we looked
            held = self._held(key)
            return held if held is not None else self._wait_for(node, key)
        self.carry(boarded)
        self.keep([boarded])
        return boarded.flight.result()

    def _held(self, key: bytes) -> Buffer | None:
        found = self._packs.get(key) if self._packs is not None else None
        if found is not None:
            return found
        piece = self._recent.get(key, 0)
        return piece[1] if piece else None

    def _keep(self, blobs: list[tuple[bytes, Buffer]]) -> None:
        if self._packs is not None:
            try:
                self._packs.put(blobs)
                self._on_disk_trouble(None)
                return
            except OSError as error:
                self._on_disk_trouble(error)
        for key, data in blobs:
            self._recent.put(key, 0, data)


class Boarded(NamedTuple):
    """A small blob that is on its way."""

    node: FileNode
    key: bytes
    flight: Flight
