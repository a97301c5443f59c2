"""What a killed blobfuse2 leaves in its cache: every kind of file, classified, sent or kept, by itself and by hand."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from amlmount.errors import BlobNotFoundError
from daemons import poll
from drivers import Account, Driver, Writers, fails_to_write, sh
from faulty_proxy import Proxy

pytestmark = pytest.mark.root

EVERY_KIND = {
    "clean.bin": ("clean", "removed"),
    "gone.bin": ("stale", "trashed"),
    "replaced.bin": ("stale", "trashed"),
    "big.bin": ("unfinished", "trashed"),
    "sub/stored.txt": ("stored", "removed"),
    "failed.txt": ("new", "sent"),
    "old.txt": ("changed", "sent"),
    "synced.txt": ("stored", "removed"),  # open at the kill: stored when it was closed afterwards
    "open.txt": ("stored", "removed"),
    "flying.txt": ("new", "sent"),
    "empty.txt": ("stored", "removed"),
    "conflict.txt": ("conflict", "kept"),
}


def asides(account: Account, name: str) -> list[Path]:
    base = Path(account.world.state_dir, "blobfuse2", name)
    return sorted(base.glob("aside-*")) if base.exists() else []


def reports(account: Account, name: str) -> list[dict[str, Any]]:
    found = [path / "report.json" for path in asides(account, name)]
    return [json.loads(path.read_text()) for path in found if path.exists()]


def leave_every_kind(account: Account, proxy: Proxy, writers: Writers) -> int:
    """Bring a mount into the state in which its cache holds every kind of file; return who serves it."""
    data = account.container("data")
    for name in ("clean.bin", "gone.bin", "old.txt", "conflict.txt", "replaced.bin"):
        data.put(name, f"first of {name}".encode())
    data.put("big.bin", os.urandom(9 << 20))
    account.go_through(proxy)
    account.configure(engine="blobfuse2", read_only=False)
    account.up()
    here, pid = account.target("data"), int(account.status("data")["pid"])
    sh(f"cd {here}; cat clean.bin gone.bin replaced.bin; mkdir -p sub; echo stored > sub/stored.txt")
    proxy.refuses = lambda method, path: method == "PUT"
    for name in ("failed.txt", "old.txt", "conflict.txt"):
        fails_to_write(f"{here}/{name}", f"second of {name}\n")
    writers.open(f"{here}/synced.txt", "synced", "fsync")
    writers.open(f"{here}/open.txt", "open")
    writers.open(f"{here}/empty.txt", "")
    proxy.refuses = lambda method, path: False
    proxy.holds = lambda method, path: method == "PUT" and path.endswith("/flying.txt")
    writers.open(f"{here}/flying.txt", "flying\n", "close")
    poll(lambda: proxy.held, "the upload is not under way")
    proxy.stop_after_bytes = 1 << 20
    held = proxy.held.total()
    writers.start("cat", f"{here}/big.bin")
    poll(lambda: proxy.held.total() > held, "the download is not under way")
    time.sleep(1.1)  # Last-Modified has whole seconds
    data.put("conflict.txt", b"somebody else's")
    data.put("replaced.bin", b"a new version")
    data.delete("gone.bin")
    return pid


def test_every_kind_of_file_at_kill_9(driver: Driver, account: Account, proxy: Proxy, writers: Writers) -> None:
    pid = leave_every_kind(account, proxy, writers)
    data = account.opened["data"]
    os.kill(pid, signal.SIGKILL)
    proxy.release()
    account.until_replaced("data", pid)
    writers.end()
    [report] = poll(lambda: [one for one in reports(account, "data") if not one["pending"]], "no report", 60)
    found = {file["name"]: (file["verdict"], file["action"]) for file in report["files"]}
    assert found == EVERY_KIND
    for name in ("failed.txt", "old.txt"):
        assert data.get(name) == f"second of {name}\n".encode()
    assert (data.get("synced.txt"), data.get("open.txt"), data.get("flying.txt")) == (b"synced", b"open", b"flying\n")
    assert data.get("conflict.txt") == b"somebody else's" and data.head("big.bin").size_bytes == 9 << 20
    [aside] = asides(account, "data")
    assert (aside / "data/conflict.txt").read_text() == "second of conflict.txt\n"
    again = account.world.cli("recover", "data")
    assert again.returncode == 7 and "conflict.txt" in again.stdout and str(aside) in again.stderr
    account.down()


def test_a_failed_upload_survives_a_clean_unmount(driver: Driver, account: Account, proxy: Proxy) -> None:
    data = account.container("data")
    account.go_through(proxy)
    account.configure(engine="blobfuse2", read_only=False)
    account.up()
    proxy.refuses = lambda method, path: method == "PUT"
    fails_to_write(f"{account.target('data')}/failed.txt", "precious\n")
    sh(f"cat {account.target('data')}/failed.txt")
    proxy.refuses = lambda method, path: False
    account.down()
    poll(lambda: any(page.objects for page in data.list()), "not sent")
    assert data.get("failed.txt") == b"precious\n"
    poll(lambda: account.leftovers() == [], f"left: {account.leftovers()}")


def test_what_cannot_be_sent_waits_for_recover(driver: Driver, account: Account, proxy: Proxy) -> None:
    data = account.container("data")
    account.go_through(proxy)
    account.configure(engine="blobfuse2", read_only=False)
    account.up()
    proxy.refuses = lambda method, path: method == "PUT"
    fails_to_write(f"{account.target('data')}/failed.txt", "precious\n")
    account.down()
    [aside] = asides(account, "data")
    poll(lambda: not account.world.processes(), "something still runs")
    seen = account.world.cli_json("recover", "data", "--dry-run")
    assert [(file["name"], file["verdict"], file["action"]) for file in seen[0]["files"]] == [
        ("failed.txt", "new", "none")
    ]
    refused = account.world.cli("recover", "data")
    assert refused.returncode == 7 and (aside / "data/failed.txt").read_text() == "precious\n"
    proxy.refuses = lambda method, path: False
    done = account.world.cli_json("recover", "data")
    assert [file["action"] for file in done[0]["files"]] == ["sent"]
    assert data.get("failed.txt") == b"precious\n" and asides(account, "data") == []
    assert account.world.cli("recover", "data").returncode == 0
    assert account.world.cli("recover", "dota").returncode == 3


def test_renames_and_links_at_kill_9(driver: Driver, account: Account, proxy: Proxy) -> None:
    """What was renamed is sent under its new name, and a file that takes the place of a link is a file."""
    if not driver.is_real:
        pytest.skip("the stand-in has no links")
    data = account.container("data")
    for name in ("a.txt", "b.txt"):
        data.put(name, f"first of {name}".encode())
    account.go_through(proxy)
    account.configure(engine="blobfuse2", read_only=False)
    account.up()
    here, pid = account.target("data"), int(account.status("data")["pid"])
    sh(f"cd {here}; cat a.txt b.txt; mv a.txt moved.txt; mv b.txt changed.txt")
    sh(f"cd {here}; ln -s moved.txt link; ln -s x was-a-link; rm was-a-link; ls -l")
    proxy.refuses = lambda method, path: method == "PUT"
    for name in ("changed.txt", "was-a-link"):
        fails_to_write(f"{here}/{name}", f"second of {name}\n")
    proxy.refuses = lambda method, path: False
    os.kill(pid, signal.SIGKILL)
    account.until_replaced("data", pid)
    poll(lambda: data_of(data, "changed.txt") == b"second of changed.txt\n", "not sent", 60)
    poll(lambda: data_of(data, "was-a-link"), "not sent", 60)
    assert data.get("moved.txt") == b"first of a.txt"
    assert (data_of(data, "a.txt"), data_of(data, "b.txt")) == (None, None)
    assert data.get("was-a-link") == b"second of was-a-link\n"
    assert "is_symlink" not in {key.lower() for key in data.head("was-a-link").metadata}
    assert sh(f"cd {here}; readlink link; cat link was-a-link").splitlines() == [
        "moved.txt",
        "first of a.txtsecond of was-a-link",
    ]
    assert "link" not in {file["name"] for report in reports(account, "data") for file in report["files"]}
    account.down()


def data_of(store: Any, name: str) -> bytes | None:
    """Return a blob's content, None if there is no such blob."""
    try:
        return bytes(store.get(name))
    except BlobNotFoundError:
        return None
