"""Gives every contract test each store in turn."""

from collections.abc import Iterator

import pytest

from amlmount.stores.base import ObjectStore
from contract.store_cases import CASES, StoreCase


@pytest.fixture(scope="session", params=[pytest.param(case, id=case.name, marks=case.marks) for case in CASES])
def case(request: pytest.FixtureRequest) -> StoreCase:
    """Return the store under test, not opened; what it needs runs from here on, so no test has left it behind."""
    found: StoreCase = request.param
    for name in found.needs:
        request.getfixturevalue(name)
    return found


@pytest.fixture
def store(case: StoreCase, request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """Return an empty store."""
    with case.open(request) as opened:
        try:
            yield opened
        finally:
            opened.close()
            opened.close()
