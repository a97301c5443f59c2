"""Whatever a command prints as JSON says which version of its form that is."""

import inspect
import json
import os
from collections.abc import Callable, Iterator

import pytest
import typer

from amlmount.cli.app import app
from fakeblob import FakeBlobService
from world import World

# The arguments of every command that takes -o json, in an order in which they work: each is run once.
RUNS = {
    "store ls": "",
    "store show": "blobs",
    "store test": "blobs",
    "doctor": "--no-stores",
    "install": "--dry-run --engine python",
    "uninstall": "--dry-run",
    "up": "",
    "ps": "",
    "wait": "m",
    "check": "m",
    "stats": "",
    "events": "",
    "refresh": "m",
    "flush": "rw",
    "cache warm": "m",
    "cache pin": "m **",
    "cache unpin": "m **",
    "cache ls": "",
    "cache du": "",
    "reload": "--dry-run",
    "restart": "--dry-run",
    "recover": "m",
    "down": "",
    "cache clear": "",
    "cache prune": "",
}
MAY_BE_EMPTY = {"cache prune", "recover", "reload"}
A_CONFIGURATION = {"config show"}  # prints one, which has no place for it


def commands(group: typer.Typer, before: str = "") -> Iterator[tuple[str, Callable[..., object]]]:
    """Return every command by its words, with the function behind it."""
    for one in group.registered_commands:
        assert one.callback is not None
        yield f"{before}{one.name or one.callback.__name__.replace('_', '-')}", one.callback
    for below in group.registered_groups:
        assert below.typer_instance is not None
        yield from commands(below.typer_instance, f"{before}{below.name} ")


def takes_json(command: Callable[..., object]) -> bool:
    output = inspect.signature(command).parameters.get("output")
    return output is not None and hasattr(type(output.default), "JSON")


def with_json() -> set[str]:
    return {name for name, command in commands(app) if takes_json(command)}


def test_every_command_that_prints_json_is_known_here() -> None:
    assert with_json() - A_CONFIGURATION == set(RUNS)


@pytest.fixture
def configured(world: World) -> Iterator[World]:
    service = FakeBlobService()
    service.put("data", "d/file", b"x" * 5000)
    os.mkdir(f"{world.root}/out")
    stores = {"blobs": service.definition(), "out": {"type": "local", "path": f"{world.root}/out"}}
    mounts = {
        "m": {"source": "blobs", "target": f"{world.root}/mnt/m", "engine": "python"},
        "rw": {"source": "out", "target": f"{world.root}/mnt/rw", "engine": "python", "read_only": False},
    }
    world.write_config(json.dumps({"stores": stores, "mounts": mounts, "cache": {"keep_free": "1MiB"}}))
    yield world
    service.close()


@pytest.mark.timeout(120)
def test_every_object_that_is_printed_says_its_version(configured: World) -> None:
    for name, how in RUNS.items():
        done = configured.cli(*name.split(), *how.split(), "-o", "json")
        assert done.returncode == (1 if name == "doctor" and '"fail"' in done.stdout else 0), f"{name}: {done.stderr}"
        found = json.loads(done.stdout)
        objects = found if isinstance(found, list) else [found]
        assert objects or name in MAY_BE_EMPTY, name
        assert all(one.get("schema_version") == 1 for one in objects), f"{name}: {done.stdout[:300]}"
