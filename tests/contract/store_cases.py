"""The stores that the contract is held against: one more store is one more entry of CASES.

A case opens an empty store for one test and says where the contract leaves room.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from amlmount.stores.base import ObjectStore
from amlmount.stores.local import LocalStore
from amlmount.stores.memory import MemoryStore

OpenStore = Callable[[pytest.FixtureRequest], AbstractContextManager[ObjectStore]]


@dataclass(frozen=True)
class StoreCase:
    """`open` gives an empty container; `open_missing` one that does not exist.

    `any_name`: names such as `a//b` can be held. `keeps_metadata`: what put was given comes back.
    """

    name: str
    open: OpenStore
    open_missing: OpenStore | None = None
    any_name: bool = True
    keeps_metadata: bool = True
    marks: tuple[pytest.MarkDecorator, ...] = ()


@contextlib.contextmanager
def open_local(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """Open an empty directory."""
    root: Path = request.getfixturevalue("tmp_path") / "container"
    root.mkdir()
    yield LocalStore(str(root))


@contextlib.contextmanager
def open_missing_local(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """Open a directory that is not there."""
    yield LocalStore(str(request.getfixturevalue("tmp_path") / "nothing"))


@contextlib.contextmanager
def open_memory(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """Open a dictionary."""
    yield MemoryStore()


CASES = [
    StoreCase("local", open_local, open_missing_local, any_name=False, keeps_metadata=False),
    StoreCase("memory", open_memory),
]
