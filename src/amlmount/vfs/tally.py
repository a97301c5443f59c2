"""What a file system has asked of its stores, and how long that took."""

from dataclasses import dataclass, field

from amlmount.metrics import Timings


@dataclass(slots=True)
class StoreTally:
    """Reads of bytes, listings of whole directories, uploads of files. Counted without a lock, see `Timings`."""

    reads: Timings = field(default_factory=Timings)
    listings: Timings = field(default_factory=Timings)
    uploads: Timings = field(default_factory=Timings)
    read_bytes: int = 0
