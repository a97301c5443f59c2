"""`amlmount render` shows what blobfuse2 is started with: the very file while one runs, and the same place before."""

from pathlib import Path

import pytest
import yaml

from drivers import Account, Driver

pytestmark = pytest.mark.root


def shown(account: Account, name: str, *args: str) -> str:
    done = account.world.cli("render", name, *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_shown_is_what_it_was_started_with(driver: Driver, account: Account) -> None:
    for name in ("read", "written"):
        account.container(name).put("file", b"content")
    mounts = {name: {"source": name, "read_only": name == "read"} for name in account.stores}
    account.configure(mounts, engine="blobfuse2")
    before = {name: yaml.safe_load(shown(account, name)) for name in mounts}
    assert not list(Path(account.world.state_dir, "blobfuse2").glob("*")), "it makes nothing"
    account.up()
    for name in mounts:
        [used] = Path(account.world.runtime_dir, "blobfuse2", name).rglob("blobfuse2.yaml")
        assert shown(account, name, "--show-secrets").splitlines() == used.read_text().rstrip("\n").splitlines()
        assert "***" in shown(account, name)
        cache = Path(yaml.safe_load(used.read_text())["file_cache"]["path"])
        promised = Path(before[name]["file_cache"]["path"])
        assert promised.parent.name == "run-ID" and promised.parent.parent == cache.parent.parent
    account.down()
