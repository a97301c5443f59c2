"""How the room that all caches have together is shared among the mounts. Pure: numbers in, numbers out."""

from collections.abc import Sequence
from dataclasses import dataclass

HEADROOM_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Demand:
    """What one cache takes now. `is_active`: its mount is up, so it may grow; one that is not only wants to stay."""

    name: str
    used_bytes: int
    is_active: bool = True

    @property
    def wanted_bytes(self) -> int:
        """What it would need until it is asked again: half as much more, and room for a start."""
        return self.used_bytes + max(HEADROOM_BYTES, self.used_bytes // 2) if self.is_active else self.used_bytes


def allot(budget_bytes: int, demands: Sequence[Demand]) -> dict[str, int]:
    """Return what each cache may take, together never more than `budget_bytes`.

    Mounts that are up come first, and share so that nobody gets less than an equal part unless it wants less
    (max-min fairness); what is left then goes to those that are not up. What nobody wants goes to the mounts that
    are up, in equal parts, so that one that grows fast need not wait to be asked.
    """
    active = [demand for demand in demands if demand.is_active]
    shares = _fair(budget_bytes, active)
    shares |= _fair(budget_bytes - sum(shares.values()), [demand for demand in demands if not demand.is_active])
    spare = budget_bytes - sum(shares.values())
    for demand in active:
        shares[demand.name] += spare // len(active)
    return shares


def _fair(room_bytes: int, demands: Sequence[Demand]) -> dict[str, int]:
    shares, left = {}, max(0, room_bytes)
    for served, demand in enumerate(sorted(demands, key=lambda demand: demand.wanted_bytes)):
        shares[demand.name] = min(demand.wanted_bytes, left // (len(demands) - served))
        left -= shares[demand.name]
    return shares
