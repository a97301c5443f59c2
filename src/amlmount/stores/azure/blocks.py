"""Which blocks a blob shall be made of: those it has, where nothing changed, and new ones for all the rest.

Pure arithmetic; `staging` sends them. Limits: "Put Block List", 50,000 blocks of up to 4,000 MiB.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from amlmount.stores.base import Ranges

BLOCK_BYTES = 8 * 1024 * 1024
MAX_BLOCKS = 50_000


class Committed(NamedTuple):
    """A block of the present version: its id (base64) and its length."""

    id: str
    size_bytes: int


class Part(NamedTuple):
    """A stretch of the new version: a block that is kept (`id`), or one to be sent (`id` empty)."""

    id: str
    start: int
    size_bytes: int


def plan_blocks(
    size_bytes: int, present: Sequence[Committed], unchanged: Ranges, block_bytes: int = BLOCK_BYTES
) -> list[Part]:
    """Cut `size_bytes` into parts, in order and without gaps; present blocks are kept where they are unchanged whole.

    A stretch between kept blocks is cut as the present version was, where it was: an edit in the middle then leaves
    the next one as much to keep.
    """
    kept = list(_kept(size_bytes, present, unchanged))
    plan = list(_fill(size_bytes, kept, block_bytes))
    if len(plan) <= MAX_BLOCKS:
        return plan
    wider = -(-size_bytes // (MAX_BLOCKS - 1))
    return list(_fill(size_bytes, [], max(block_bytes, wider)))


def _kept(size_bytes: int, present: Sequence[Committed], unchanged: Ranges) -> Iterator[Part]:
    start, ranges = 0, iter(unchanged)
    first, last = next(ranges, (0, 0))
    for block in present:
        end = start + block.size_bytes
        while last < end and (following := next(ranges, None)):
            first, last = following
        if first <= start and end <= min(last, size_bytes) and block.size_bytes:
            yield Part(block.id, start, block.size_bytes)
        start = end


def _fill(size_bytes: int, kept: Sequence[Part], block_bytes: int) -> Iterator[Part]:
    position = 0
    for part in [*kept, Part("", size_bytes, 0)]:
        while position < part.start:
            length = min(block_bytes - position % block_bytes, part.start - position)
            yield Part("", position, length)
            position += length
        if part.size_bytes:
            yield part
            position += part.size_bytes
