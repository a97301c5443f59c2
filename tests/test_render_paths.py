"""`amlmount render` shows what blobfuse2 is started with: the very file while one runs, and the same place before."""

from pathlib import Path

import pytest
import yaml

from drivers import Account, Driver

pytestmark = pytest.mark.root


def shown(account: Account, *args: str) -> str:
    done = account.world.cli("render", "data", *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("read_only", [True, False])
def test_what_is_shown_is_what_it_was_started_with(driver: Driver, account: Account, read_only: bool) -> None:
    account.container("data").put("file", b"content")
    account.configure(engine="blobfuse2", read_only=read_only)
    before = yaml.safe_load(shown(account))
    assert not list(Path(account.world.state_dir, "blobfuse2").glob("*")), "it makes nothing"
    account.up()
    [used] = Path(account.world.runtime_dir, "blobfuse2").rglob("blobfuse2.yaml")
    assert shown(account, "--show-secrets").splitlines() == used.read_text().rstrip("\n").splitlines()
    assert "***" in shown(account)
    cache = Path(yaml.safe_load(used.read_text())["file_cache"]["path"])
    promised = Path(before["file_cache"]["path"])
    assert promised.parent.name == "run-ID" and promised.parent.parent == cache.parent.parent
    account.down()
