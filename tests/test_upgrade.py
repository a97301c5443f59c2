"""`amlmount restart --upgrade`: after an upgrade of amlmount or blobfuse2, what older programs serve is served anew."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import amlmount
from amlmount.worker import program
from daemons import Pair, make_pair, poll
from drivers import Account, Driver
from mounting import make_source
from readers import Readers
from world import World

SOURCE = Path(amlmount.__file__).parent


def would(pair: Pair, env: dict[str, str], *args: str) -> dict[str, list[str]]:
    done = pair.world.cli("restart", "--dry-run", "-o", "json", *args, env=env)
    assert done.returncode == 0, done.stderr
    return {change["name"]: change["fields"] for change in json.loads(done.stdout)}


@pytest.mark.root
def test_a_new_amlmount(world: World, tmp_path: Path) -> None:
    """Daemon and workers are replaced under readers; what is as new as what is installed is left alone."""
    pair, copy = make_pair(world), tmp_path / "amlmount"
    make_source(f"{world.root}/red")
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    env = {"PYTHONPATH": str(tmp_path)}
    assert world.cli("up", env=env).returncode == 0
    before = {name: pair.mount(name)["pid"] for name in ("red", "blue")}
    assert would(pair, env, "--upgrade") == {} and would(pair, env) == {"red": [], "blue": []}
    done = world.cli("restart", "--upgrade", env=env)
    assert done.returncode == 0 and "nothing has changed" in done.stderr, done.stderr
    with open(copy / "__init__.py", "a") as file:
        file.write("# another build\n")
    found = would(pair, env, "--upgrade")
    assert set(found) == {"red", "blue"} and " -> 0.1.0 (" in found["red"][0]
    old_daemon = pair.daemon()
    readers = Readers(f"{world.root}/red", pair.target("red"))
    try:
        readers.wait_until_ready()
        assert {name: pair.mount(name)["pid"] for name in ("red", "blue")} == before, "a dry run does nothing"
        done = world.cli("restart", "--upgrade", env=env)
        assert done.returncode == 0, done.stderr
        tally = readers.tally()
    finally:
        readers.kill()
    assert not tally["errors"] and not tally["wrong"]
    assert pair.daemon() != old_daemon
    assert all(pair.mount(name)["pid"] != pid for name, pid in before.items())
    assert would(pair, env, "--upgrade") == {}
    world.cli("down")
    pair.assert_as_before()


def test_a_build_is_told_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "amlmount"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(amlmount, "__file__", str(copy / "__init__.py"))
    first = program.installed()
    assert first == program.installed() and first.version == amlmount.__version__
    (copy / "run.py").touch()
    second = program.installed()
    assert second.stamp != first.stamp and second.version == first.version
    text = (copy / "__init__.py").read_text().replace(f'__version__ = "{amlmount.__version__}"', '__version__ = "9.9"')
    (copy / "__init__.py").write_text(text)
    assert program.installed().version == "9.9"


def replace_binary(path: str) -> None:
    """As a package manager does it: another file, under the same name at once."""
    shutil.copy2(path, f"{path}.new")
    os.replace(f"{path}.new", path)


@pytest.mark.root
def test_a_new_blobfuse2(driver: Driver, account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = driver.binary
    if driver.is_real:
        (tmp_path / "own").mkdir()
        binary = shutil.copy2(driver.binary, f"{tmp_path}/own/blobfuse2")
        monkeypatch.setenv("PATH", f"{tmp_path / 'own'}:{os.environ['PATH']}")
    account.container("data").put("file", b"content")
    account.configure(engine="blobfuse2")
    account.up()

    def plan() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = account.world.cli_json("restart", "--upgrade", "--dry-run")
        return found

    assert plan() == []
    pid = account.status("data")["pid"]
    if not driver.is_real:
        time.sleep(0.05)  # of a script only its time of change tells
    replace_binary(binary)
    [change] = plan()
    assert change["action"] == "replace" and change["gap"] is None and change["fields"][0].startswith("blobfuse2: ")
    script = f"while cat {account.target('data')}/file >/dev/null; do :; done; echo failed"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as reader:
        try:
            done = account.world.cli("restart", "--upgrade")
            assert done.returncode == 0 and "nothing" not in done.stderr, done.stderr
            assert reader.poll() is None, "a reader had an error"
        finally:
            reader.kill()
    assert account.status("data")["pid"] != pid and plan() == []
    account.down()
    poll(lambda: account.leftovers() == [], f"left: {account.leftovers()}")
