"""The stores that the contract is held against: one more store is one more entry of CASES.

A case opens an empty store for one test and says where the contract leaves room.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from amlmount.stores.azure import open_azure
from amlmount.stores.base import ObjectStore
from amlmount.stores.local import LocalStore
from amlmount.stores.memory import MemoryStore
from azurite import Azurite
from fakeblob import FakeBlobService

OpenStore = Callable[[pytest.FixtureRequest], AbstractContextManager[ObjectStore]]


@dataclass(frozen=True)
class StoreCase:
    """`open` gives an empty container; `open_missing` one that does not exist.

    `any_name`: names such as `a//b` can be held. `keeps_metadata`: what put was given comes back.
    `needs`: session-wide fixtures that `open` asks for.
    """

    name: str
    open: OpenStore
    open_missing: OpenStore | None = None
    any_name: bool = True
    keeps_metadata: bool = True
    needs: tuple[str, ...] = ()
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


@contextlib.contextmanager
def open_azurite(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """Create a container in Azurite; all tests share an account, because starting to fill one is what is slow."""
    azurite: Azurite = request.getfixturevalue("azurite")
    yield open_azure(azurite.new_container(azurite.shared_account))


@contextlib.contextmanager
def open_missing_azurite(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """Open a container that Azurite does not have."""
    azurite: Azurite = request.getfixturevalue("azurite")
    with contextlib.closing(open_azure(azurite.definition(azurite.shared_account, "nothing"))) as store:
        yield store


@contextlib.contextmanager
def open_fake(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """Open the container of a fake blob service."""
    with contextlib.closing(FakeBlobService()) as fake:
        yield open_azure(fake.definition())


@contextlib.contextmanager
def open_missing_fake(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """Open a container that a fake blob service does not have."""
    with (
        contextlib.closing(FakeBlobService()) as fake,
        contextlib.closing(open_azure(fake.definition("none"))) as store,
    ):
        yield store


CASES = [
    StoreCase("local", open_local, open_missing_local, any_name=False, keeps_metadata=False),
    StoreCase("memory", open_memory),
    StoreCase("azurite", open_azurite, open_missing_azurite, any_name=False, needs=("azurite",)),
    StoreCase("fake-blob-service", open_fake, open_missing_fake, any_name=False),
]
