"""Every container of an account under one folder: each a mount of its own, followed as they come and go."""

import pytest

from daemons import poll
from drivers import Account, Driver, sh
from faulty_proxy import Proxy

pytestmark = pytest.mark.root


def whole(account: Account, *, watch: str | None = None, engine: str = "blobfuse2", **changes: object) -> None:
    """Configure mount `all` of the whole account."""
    account.stores["account"] = account.definition() | changes
    source = {"store": "account", "containers": {"allow": ["mnist-*", "logs"], "deny": ["*-private"]}}
    source |= {"watch": watch} if watch else {}
    account.configure({"all": {"source": source}}, engine=engine)


def states(account: Account) -> dict[str, str]:
    return {mount["name"]: mount["state"] for mount in account.world.cli_json("ps", "-a")}


def test_every_container_that_is_allowed_is_a_mount(driver: Driver, account: Account) -> None:
    for name in ("mnist-data", "mnist-clone", "mnist-private", "logs", "other"):
        account.container(name).put("name.txt", name.encode())
    whole(account)
    account.up()
    names = ["all", "all/logs", "all/mnist-clone", "all/mnist-data"]
    assert states(account) == dict.fromkeys(names, "mounted")
    assert sh(f"cat {account.target('all')}/*/name.txt") == "logsmnist-clonemnist-data"
    account.up("all", "all/logs")
    account.down("all/logs")
    assert states(account)["all/logs"] == "unmounted" and states(account)["all"] == "degraded"
    account.down("all")
    assert account.leftovers() == [] and account.world.mounts() == []


def test_with_the_python_engine_too(account: Account) -> None:
    for name in ("mnist-data", "logs"):
        account.container(name).put("name.txt", name.encode())
    whole(account, engine="python")
    account.up()
    assert sh(f"cat {account.target('all')}/*/name.txt") == "logsmnist-data"
    assert states(account) == dict.fromkeys(["all", "all/logs", "all/mnist-data"], "mounted")
    account.down()


def test_one_that_fails_leaves_the_others(driver: Driver, account: Account, proxy: Proxy) -> None:
    for name in ("mnist-data", "logs"):
        account.container(name).put("name.txt", name.encode())
    whole(account, endpoint=f"{proxy.url}/{account.name}")
    proxy.refuses = lambda method, path: path.endswith("/logs")
    done = account.world.cli("up")
    assert done.returncode == 7 and "all/logs" in done.stderr
    assert states(account) == {"all": "degraded", "all/logs": "failed", "all/mnist-data": "mounted"}
    assert sh(f"cat {account.target('all')}/mnist-data/name.txt") == "mnist-data"
    proxy.refuses = lambda method, path: False
    account.up()
    assert set(states(account).values()) == {"mounted"}
    account.down()


def test_containers_that_come_and_go_are_followed(driver: Driver, account: Account) -> None:
    account.container("mnist-data").put("name.txt", b"data")
    whole(account, watch="1s")
    account.up()
    account.container("mnist-new").put("name.txt", b"new")
    poll(lambda: states(account).get("all/mnist-new") == "mounted", "the new one is not mounted", 30)
    assert sh(f"cat {account.target('all')}/mnist-new/name.txt") == "new"
    account.azurite.request("DELETE", account.name, "mnist-data", {"restype": "container"})
    poll(lambda: "all/mnist-data" not in states(account), "the one that has gone stays", 30)
    assert states(account) == {"all": "mounted", "all/mnist-new": "mounted"}
    account.down()


def test_an_account_that_cannot_be_listed_is_said(driver: Driver, account: Account, proxy: Proxy) -> None:
    account.container("mnist-data").put("name.txt", b"data")
    whole(account, endpoint=f"{proxy.url}/{account.name}")
    proxy.refuses = lambda method, path: True
    done = account.world.cli("up", "all")
    assert done.returncode == 5 and "cannot mount 'all'" in done.stderr
    assert states(account) == {"all": "failed"}
    proxy.refuses = lambda method, path: False
    plan = account.world.cli_json("up", "--dry-run")
    assert [(item["name"], item["action"]) for item in plan] == [("all/mnist-data", "mount")]
    account.up()
    account.down()
