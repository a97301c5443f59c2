"""Sums that tell whether what a cache file holds is what was once written there; no defence against a forger.

Blocks of large blobs are summed by Poly1305 (5-9 GB/s here, where crc32 does 1-2), small blobs by crc32.
"""

import zlib
from array import array
from collections.abc import Callable
from functools import cache

_KEY = b"amlmount: sums of cached blocks."  # fixed: 32 bytes, as Poly1305 wants
Buffer = bytes | memoryview


def record_sum(data: Buffer) -> int:
    """Return the sum of a small blob, 32 bits."""
    return zlib.crc32(data)


def block_sum(data: Buffer) -> int:
    """Return the sum of a block, 32 bits and never 0 (0 stands for a block that is not there)."""
    return int.from_bytes(_poly1305()(_KEY, data)[:4], "little") or 1


def block_sums(data: Buffer, block_bytes: int) -> "array[int]":
    """Return the sum of every block of `data`; the last block may be short."""
    view, tag = memoryview(data), _poly1305()
    sums = array("I", bytes(4 * -(-len(view) // block_bytes)))
    for index in range(len(sums)):
        start = index * block_bytes
        sums[index] = int.from_bytes(tag(_KEY, view[start : start + block_bytes])[:4], "little") or 1
    return sums


def tag_by(key: bytes, data: Buffer) -> bytes:
    """Return a sum of 128 bits by a key of 32 bytes that nobody else knows: other bytes have another one."""
    return _poly1305()(key, data)


def warm_up() -> None:
    """Load what sums blocks: 5 to 30 ms, in which the first reader would wait."""
    _poly1305()


@cache
def _poly1305() -> Callable[[bytes, Buffer], bytes]:
    from cryptography.hazmat.primitives.poly1305 import Poly1305  # 1.3 MB of its own, 5 MB shared; not for local stores

    return Poly1305.generate_tag
