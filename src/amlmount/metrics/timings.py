"""How often something happened and how long it took, counted so cheaply that it may be counted every time.

No lock: under the GIL of CPython nothing is lost between the steps of one addition, and a reader that looks in the
middle sees a count that is one behind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STEPS = 64  # of powers of two, from 1 nanosecond to longer than anybody waits


@dataclass(slots=True)
class Timings:
    """`counts[i]`: how many took less than 2**i nanoseconds, and not less than half of that."""

    counts: list[int] = field(default_factory=lambda: [0] * STEPS)
    total_ns: int = 0
    failed: int = 0

    def note(self, took_ns: int) -> None:
        """Count one that went well."""
        self.counts[took_ns.bit_length()] += 1
        self.total_ns += took_ns

    def to_json(self) -> dict[str, Any]:
        """Return the wire form; trailing zeros are left out."""
        last = max((index for index, count in enumerate(self.counts) if count), default=-1)
        return {"counts": self.counts[: last + 1], "seconds": self.total_ns / 1e9, "failed": self.failed}


@dataclass(frozen=True, slots=True)
class Spread:
    """What was counted, to be read: `counts` as in Timings."""

    counts: tuple[int, ...]
    seconds: float
    failed: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Spread":
        """Rebuild what `Timings.to_json` wrote."""
        return cls(tuple(int(count) for count in data["counts"]), float(data["seconds"]), int(data["failed"]))

    @property
    def count(self) -> int:
        """How many went well."""
        return sum(self.counts)

    @property
    def mean_s(self) -> float | None:
        """What one took on average, None if there was none."""
        return self.seconds / self.count if self.count else None

    def below(self, step: int) -> int:
        """Return how many took less than 2**step nanoseconds."""
        return sum(self.counts[: step + 1])

    def quantile_s(self, share: float) -> float | None:
        """Return the time within which this share of them was done, read off at the next power of two."""
        wanted, seen = share * self.count, 0
        for step, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return float(2**step) / 1e9
        return None

    def minus(self, before: "Spread") -> "Spread":
        """Return what was counted since `before`; all of it if counting began anew in between."""
        if before.count > self.count or before.failed > self.failed:
            return self
        older = before.counts + (0,) * (len(self.counts) - len(before.counts))
        counts = tuple(new - old for new, old in zip(self.counts, older, strict=False))
        return Spread(counts, self.seconds - before.seconds, self.failed - before.failed)


def total(spreads: Sequence[Spread]) -> Spread:
    """Return several as one."""
    length = max((len(one.counts) for one in spreads), default=0)
    counts = tuple(sum(one.counts[step] for one in spreads if step < len(one.counts)) for step in range(length))
    return Spread(counts, sum(one.seconds for one in spreads), sum(one.failed for one in spreads))
