"""What tests of writing need to have a store fail, and to see what comes of it."""

import time

import pytest

from amlmount.errors import AccessDeniedError, NetworkError
from amlmount.stores.base import ObjectStore
from writing.ground import content_of


class Trouble:
    """A store that fails when told to: `MemoryStore(before=trouble)`."""

    def __init__(self) -> None:
        self.failing: dict[str, Exception] = {}
        self.calls: list[str] = []

    def __call__(self, operation: str, name: str) -> None:
        self.calls.append(f"{operation} {name}")
        if operation in self.failing:
            raise self.failing[operation]


DOWN = NetworkError("cannot reach the store")
DENIED = AccessDeniedError("cannot write blob: refused")


def wait_for(what: object, deadline_s: float = 10.0) -> None:
    assert callable(what)
    end = time.monotonic() + deadline_s
    while not what():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def error_of(act: object) -> int | None:
    assert callable(act)
    with pytest.raises(OSError) as caught:
        act()
    return caught.value.errno


def conflicts(store: ObjectStore) -> dict[str, bytes]:
    """Return what was kept beside what another has written."""
    return {name: data for name, data in content_of(store).items() if ".conflict-" in name}
