"""Containers of a real Azurite, mounted for real: the seed's exercise, data and its clone side by side."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

import amlmount
from amlmount.stores.azure import open_azure
from azurite import Azurite

pytestmark = pytest.mark.timeout(60)
CLASSES = ["0 - zero", "1 - one", "2 - two"]


def fill(definition: dict[str, Any], salt: str) -> dict[str, bytes]:
    files = {
        f"MNIST_FLAT/{name}/{name}_{i}.jpg": f"{salt}{name}{i}".encode() * 30 for name in CLASSES for i in range(8)
    }
    with closing(open_azure(definition)) as store:
        for name, data in files.items():
            store.put(name, data)
    return files


def test_data_and_its_clone_are_two_child_directories(azurite: Azurite, tmp_path: Path, mountpoint: str) -> None:
    account = azurite.new_account()
    stores = {"mnist-data": azurite.new_container(account), "mnist-data-clone": azurite.new_container(account)}
    expected = {name: fill(definition, name) for name, definition in stores.items()}
    config = tmp_path / "amlmount.yaml"
    config.write_text(yaml.safe_dump({"stores": stores}))
    sources = [{"store": name} for name in stores]
    with amlmount.mount(sources, mountpoint, engine="python", config=config):
        # Another process reads: a mount that hangs must not take the test's own process with it.
        script = (
            "import pathlib, sys\nfor p in sorted(pathlib.Path(sys.argv[1]).rglob('*.jpg')): print(p, p.read_text())"
        )
        read = subprocess.run([sys.executable, "-c", script, mountpoint], capture_output=True, text=True, timeout=40)
    assert read.returncode == 0, read.stderr
    lines = [
        f"{mountpoint}/{child}/{name} {data.decode()}"
        for child, files in expected.items()
        for name, data in files.items()
    ]
    assert sorted(read.stdout.splitlines()) == sorted(lines)
