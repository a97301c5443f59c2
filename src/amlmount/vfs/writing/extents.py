"""Sets of bytes of a file, as sorted, disjoint, never adjoining ranges.

Pure; which bytes are meant (held here, not yet in the store) is their owner's business.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]


class Extents:
    """Ranges from start to end (exclusive), in bytes."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[Range]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Extents) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Extents({list(self)})"

    def add(self, start: int, end: int) -> bool:
        """Put a range in; False if all of it was in already."""
        if start >= end:
            return False
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            if self._starts[first] <= start and end <= self._ends[first]:
                return False
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        return True

    def update(self, other: "Extents") -> None:
        """Put all of another set in."""
        for start, end in other:
            self.add(start, end)

    def cut(self, end: int) -> None:
        """Take everything from `end` on out."""
        keep = bisect_left(self._starts, end)
        del self._starts[keep:], self._ends[keep:]
        if self._ends and self._ends[-1] > end:
            self._ends[-1] = end

    def covers(self, start: int, end: int) -> bool:
        """Tell whether all of a range is in."""
        if start >= end:
            return True
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and end <= self._ends[index]

    def gaps(self, start: int, end: int) -> Iterator[Range]:
        """Yield what of a range is not in, in order."""
        index = bisect_right(self._ends, start)
        while start < end:
            if index == len(self._starts) or self._starts[index] >= end:
                yield start, end
                return
            if self._starts[index] > start:
                yield start, self._starts[index]
            start = self._ends[index]
            index += 1

    def copy(self) -> "Extents":
        """Return a set of its own."""
        made = Extents()
        made._starts, made._ends = list(self._starts), list(self._ends)
        return made

    @property
    def size_bytes(self) -> int:
        """How many bytes are in."""
        return sum(self._ends) - sum(self._starts)
