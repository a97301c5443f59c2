"""How the room is shared: never more than there is, no mount starved, nothing wasted."""

from hypothesis import given
from hypothesis import strategies as some

from amlmount.cache import Demand, allot

GIB = 1 << 30
SIZES = some.integers(0, 1 << 50)
CACHES = some.lists(some.tuples(SIZES, some.booleans()), max_size=12)


def demands(caches: list[tuple[int, bool]]) -> list[Demand]:
    return [Demand(str(number), used, is_active=active) for number, (used, active) in enumerate(caches)]


@given(SIZES, CACHES)
def test_never_more_than_there_is_and_everything_if_anyone_is_up(budget: int, caches: list[tuple[int, bool]]) -> None:
    asked = demands(caches)
    shares = allot(budget, asked)
    active = [demand for demand in asked if demand.is_active]
    assert shares.keys() == {demand.name for demand in asked} and all(share >= 0 for share in shares.values())
    assert sum(shares.values()) <= budget
    if active:
        assert budget - sum(shares.values()) < len(active) + len(asked)


@given(SIZES, CACHES)
def test_nobody_gets_less_than_an_equal_part_unless_it_wants_less(budget: int, caches: list[tuple[int, bool]]) -> None:
    asked = [demand for demand in demands(caches) if demand.is_active]
    shares = allot(budget, asked)
    for demand in asked:
        assert shares[demand.name] >= min(demand.wanted_bytes, budget // len(asked))


@given(SIZES, CACHES)
def test_what_is_not_mounted_never_gets_more_than_it_has(budget: int, caches: list[tuple[int, bool]]) -> None:
    shares = allot(budget, demands(caches))
    assert all(shares[d.name] <= d.used_bytes for d in demands(caches) if not d.is_active)


def test_one_mount_gets_everything() -> None:
    assert allot(100 * GIB, [Demand("a", 0)]) == {"a": 100 * GIB}


def test_a_new_mount_gets_its_part_of_a_full_cache_in_a_few_rounds() -> None:
    """Both would fill any room they get; the first one has it all."""
    used = {"old": 100 * GIB, "new": 0}
    for _ in range(20):
        used = allot(100 * GIB, [Demand(name, size) for name, size in used.items()])
    assert abs(used["old"] - used["new"]) <= 2


def test_a_mount_that_stopped_growing_keeps_what_it_has() -> None:
    shares = allot(100 * GIB, [Demand("small", 10 * GIB), Demand("large", 85 * GIB)])
    assert shares["small"] >= 10 * GIB and sum(shares.values()) == 100 * GIB


def test_what_is_not_mounted_stays_until_its_room_is_wanted() -> None:
    idle = Demand("idle", 40 * GIB, is_active=False)
    assert allot(100 * GIB, [Demand("a", 10 * GIB), idle])["idle"] == 40 * GIB
    assert allot(100 * GIB, [Demand("a", 90 * GIB), idle])["idle"] == 0
