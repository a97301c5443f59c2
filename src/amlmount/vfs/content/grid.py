"""A large blob as blocks: the unit in which its bytes are fetched, summed and known to be there."""

from dataclasses import dataclass

MIN_BLOCK_BYTES = 64 << 10
MAX_BLOCKS = 1 << 16  # so a map takes 256 KiB at most; blobs above 4 GiB have larger blocks


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the blocks of a blob begin and end, in bytes."""

    size_bytes: int
    block_bytes: int

    @classmethod
    def of(cls, size_bytes: int) -> "Grid":
        """Return the grid of a blob of `size_bytes`."""
        block_bytes = MIN_BLOCK_BYTES
        while size_bytes > block_bytes * MAX_BLOCKS:
            block_bytes *= 2
        return cls(size_bytes, block_bytes)

    @property
    def count(self) -> int:
        """Number of blocks; the last may be short."""
        return -(-self.size_bytes // self.block_bytes)

    def span(self, offset: int, size_bytes: int) -> tuple[int, int]:
        """Return (first, end) of the blocks that hold `[offset, offset + size_bytes)`."""
        return offset // self.block_bytes, -(-min(offset + size_bytes, self.size_bytes) // self.block_bytes)

    def start(self, block: int) -> int:
        """Return where a block begins."""
        return block * self.block_bytes

    def length(self, first: int, end: int) -> int:
        """Return how many bytes blocks `[first, end)` have together."""
        return min(end * self.block_bytes, self.size_bytes) - first * self.block_bytes
