"""INIT: what we want, what the kernel offers, and what comes of it as a value that a successor can be handed.

Every feature is asked for only if the kernel offers it; nothing here assumes a kernel newer than 5.4 (7.31).
"""

import enum
import os
from dataclasses import asdict, dataclass
from typing import Any, Self

from amlmount.config.spec import Policy
from amlmount.errors import MountFailedError, UsageError
from amlmount.fuse.protocol import INIT_OUT, MAJOR, MIN_READ_BUFFER_BYTES, InitIn

OLDEST_MINOR = 31  # Linux 5.4
NEWEST_MINOR = 45  # Linux 6.18, the newest this was tried with
CAP_VARIABLE = "AMLMOUNT_FUSE_MINOR"
PAGE_BYTES = 4096
MAX_BACKGROUND = 64
CONGESTION_THRESHOLD = 48


def _buffer_bytes(max_write_bytes: int) -> int:
    return max(max_write_bytes + PAGE_BYTES, MIN_READ_BUFFER_BYTES)


class Feature(enum.IntFlag):
    """INIT flags (FUSE_*); bits from 32 on travel in flags2."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    INIT_EXT = 1 << 30
    HAS_EXPIRE_ONLY = 1 << 35
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39


# The protocol's minor version that brought a feature, for those newer than OLDEST_MINOR: what a cap takes away.
_SINCE_MINOR = {
    Feature.INIT_EXT: 36,
    Feature.HAS_EXPIRE_ONLY: 38,
    Feature.PASSTHROUGH: 40,
    Feature.HAS_RESEND: 40,
}
_ALWAYS = (
    Feature.ASYNC_READ
    | Feature.BIG_WRITES
    | Feature.ASYNC_DIO
    | Feature.PARALLEL_DIROPS
    | Feature.ABORT_ERROR
    | Feature.MAX_PAGES
    | Feature.CACHE_SYMLINKS
    | Feature.DO_READDIRPLUS
    | Feature.INIT_EXT
    | Feature.HAS_EXPIRE_ONLY
    | Feature.HAS_RESEND
)


@dataclass(frozen=True, slots=True)
class Offer:
    """What we ask of the kernel. Sizes in bytes; `minor_cap` hides whatever is newer than 7.`minor_cap` (5.15: 34)."""

    features: Feature = _ALWAYS
    max_readahead_bytes: int = 1 << 20
    max_read_bytes: int = 1 << 20
    max_write_bytes: int = 128 << 10
    minor_cap: int = NEWEST_MINOR

    @property
    def buffer_bytes(self) -> int:
        """The smallest read from /dev/fuse that will do, whatever comes of the offer."""
        return _buffer_bytes(self.max_write_bytes)


def offer_for(policy: Policy, *, cap: int | None = None) -> Offer:
    """Work out the offer of a read-only mount; without `cap`, the variable AMLMOUNT_FUSE_MINOR may set one."""
    features = _ALWAYS
    if policy.no_open and not policy.direct_io:
        features |= Feature.NO_OPEN_SUPPORT
    elif policy.cache_on_disk and not policy.direct_io:
        features |= Feature.PASSTHROUGH
    if not policy.pinned:
        features |= Feature.AUTO_INVAL_DATA
    if cap is None:
        cap = minor_cap()
    return Offer(
        features=features,
        max_readahead_bytes=policy.read_ahead_max_bytes,
        max_read_bytes=policy.max_read_bytes,
        minor_cap=min(cap, NEWEST_MINOR),
    )


def minor_cap() -> int:
    """Return the newest protocol minor version to use; the variable AMLMOUNT_FUSE_MINOR makes it an older kernel's.

    Raises UsageError.
    """
    text = os.environ.get(CAP_VARIABLE, "")
    if not text:
        return NEWEST_MINOR
    if not text.isdecimal() or int(text) < OLDEST_MINOR:
        raise UsageError(
            f"cannot use {CAP_VARIABLE}={text!r}: it is the minor version of the oldest kernel to imitate",
            hint=f"a number from {OLDEST_MINOR} (Linux 5.4) to {NEWEST_MINOR} (6.18); 34 is Linux 5.15",
        )
    return int(text)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What holds for the life of the connection. Whoever takes it over gets no INIT and must support all of it."""

    minor: int
    features: Feature
    max_readahead_bytes: int
    max_write_bytes: int
    max_pages: int
    max_background: int = MAX_BACKGROUND
    congestion_threshold: int = CONGESTION_THRESHOLD

    @property
    def buffer_bytes(self) -> int:
        """The smallest read from /dev/fuse that no request is too large for."""
        return _buffer_bytes(self.max_write_bytes)

    def to_json(self) -> dict[str, int]:
        """Return what `from_json` understands; only numbers."""
        return {key: int(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Rebuild what `to_json` wrote; raises TypeError, ValueError or KeyError for anything else."""
        values = {key: int(value) for key, value in data.items()}
        return cls(features=Feature(values.pop("features")), **values)

    def pack(self) -> bytes:
        """The body of the INIT reply (struct fuse_init_out, 64 bytes)."""
        low, high = int(self.features) & 0xFFFFFFFF, int(self.features) >> 32
        return INIT_OUT.pack(
            MAJOR,
            self.minor,
            self.max_readahead_bytes,
            low,
            self.max_background,
            self.congestion_threshold,
            self.max_write_bytes,
            1,  # time_gran: nanoseconds
            self.max_pages,
            0,
            high,
            int(Feature.PASSTHROUGH in self.features),  # max_stack_depth: our files lie on no other stacked system
            0,
        )


def negotiate(init: InitIn, offer: Offer) -> Negotiated:
    """Choose what both sides can do; raises MountFailedError for a kernel older than 7.31 (Linux 5.4)."""
    if (init.major, init.minor) < (MAJOR, OLDEST_MINOR):
        raise MountFailedError(
            f"cannot serve a mount: this kernel speaks FUSE {init.major}.{init.minor}, "
            f"and {MAJOR}.{OLDEST_MINOR} is the oldest that will do",
            hint="use Linux 5.4 or newer (Ubuntu 20.04 has it)",
        )
    features = _common(init, offer)
    return Negotiated(
        minor=min(init.minor, offer.minor_cap),
        features=features,
        max_readahead_bytes=min(init.max_readahead_bytes, offer.max_readahead_bytes),
        max_write_bytes=max(offer.max_write_bytes, PAGE_BYTES),
        max_pages=max(1, offer.max_read_bytes // PAGE_BYTES) if Feature.MAX_PAGES in features else 0,
    )


def _common(init: InitIn, offer: Offer) -> Feature:
    hidden = Feature(0)
    for feature, since in _SINCE_MINOR.items():
        if since > offer.minor_cap:
            hidden |= feature
    return Feature(init.flags & int(offer.features & ~hidden))
