"""Credentials that change under a mount that is read all the while: nobody notices, and the new ones are in use."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from azurite import KEY
from daemons import poll
from drivers import Account, Driver, sh
from faulty_proxy import Proxy

pytestmark = pytest.mark.root

READER = """
import os, sys, time
folder, stop = sys.argv[1:]
reads = errors = 0
while not os.path.exists(stop):
    for number in range(20):
        if os.path.exists(stop):
            break
        try:
            with open(f"{folder}/{number:03d}", "rb") as file:
                assert file.read() == str(number).encode() * 100
            reads += 1
        except OSError as error:
            errors += 1
            print(error, file=sys.stderr)
print(reads, errors)
"""


def make_sas(account: Account, hours: float) -> str:
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    return str(
        generate_container_sas(
            account.name,
            "data",
            account_key=KEY,
            permission=ContainerSasPermissions(read=True, list=True, write=True, create=True, delete=True),
            expiry=datetime.now(UTC) + timedelta(hours=hours),
        )
    )


def signature_of(sas: str) -> str:
    from urllib.parse import parse_qs

    return parse_qs(sas)["sig"][0]


def put_secret(path: str, value: str) -> None:
    with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(value)
    os.replace(f"{path}.new", path)


def test_a_sas_rotated_under_load_fails_no_read(driver: Driver, account: Account, proxy: Proxy) -> None:
    data = account.container("data")
    for number in range(20):
        data.put(f"{number:03d}", str(number).encode() * 100)
    path = f"{account.world.root}/sas"
    signatures = []
    sas = make_sas(account, 1)
    put_secret(path, sas)
    account.stores["data"] |= {"credentials": {"sas_token": {"file": path}}}
    account.go_through(proxy)
    account.configure(engine="blobfuse2", profile="fresh")
    account.up()
    pid = account.status("data")["pid"]
    stop = f"{account.world.root}/stop"
    argv = [sys.executable, "-c", READER, account.target("data"), stop]
    readers = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]

    def nobody_reads() -> bool:
        return any(reader.poll() is not None for reader in readers)

    refused: set[str] = set()
    proxy.refuses_signature = lambda signature: signature in refused
    for hours in (2, 3):
        signatures.append(signature_of(sas))
        sas = make_sas(account, hours)
        put_secret(path, sas)
        poll(lambda: "a new SAS is in use" in tail(account, len(signatures)), "not taken over", 30)
        refused.add(signatures[-1])  # as if it had been revoked
        until_in_use(proxy, signature_of(sas), nobody_reads)
    with open(stop, "w"):
        pass
    results = [reader.communicate(timeout=60)[0].split() for reader in readers]
    reads, errors = sum(int(r[0]) for r in results), sum(int(r[1]) for r in results)
    print(f"reads {reads}, errors {errors}, requests {proxy.signatures}")
    assert errors == 0 and reads > 5
    assert account.status("data")["pid"] == pid
    assert not any(old in log for old in signatures for log in [account.daemon_log()])
    account.down()


def until_in_use(proxy: Proxy, signature: str, nobody_reads: Callable[[], bool]) -> None:
    before = proxy.signatures[signature]
    poll(lambda: nobody_reads() or proxy.signatures[signature] > before + 5, "the new one is not in use", 60)
    assert not nobody_reads(), "a reader ended"


def tail(account: Account, times: int) -> str:
    log = account.daemon_log()
    return log if log.count("a new SAS is in use") >= times else ""


def test_a_bad_new_sas_is_not_handed_over(driver: Driver, account: Account, proxy: Proxy) -> None:
    account.container("data").put("a", b"a")
    path = f"{account.world.root}/sas"
    put_secret(path, make_sas(account, 1))
    account.stores["data"] |= {"credentials": {"sas_token": {"file": path}}}
    account.configure(engine="blobfuse2", profile="fresh")
    account.up()
    put_secret(path, make_sas(account, -1))
    poll(lambda: "going on with the old credentials" in account.daemon_log(), "not said", 30)
    assert sh(f"cat {account.target('data')}/a") == "a"
    account.down()


def test_a_key_that_does_not_work_changes_nothing(driver: Driver, account: Account, proxy: Proxy) -> None:
    account.container("data").put("a", b"a")
    account.configure(engine="blobfuse2")
    account.up()
    before = account.status("data")["pid"]
    time.sleep(0.01)
    put_secret(account.key_file, f"{KEY}\n ")  # the same key: Azurite has but one; what is read is what counts
    time.sleep(3)
    assert account.status("data")["pid"] == before
    account.azurite.request("PUT", account.name, "other", {"restype": "container"})
    put_secret(account.key_file, KEY[:-4] + "bad=")
    poll(lambda: "going on with the old credentials" in account.daemon_log(), "not said", 30)
    assert account.status("data")["pid"] == before and sh(f"cat {account.target('data')}/a") == "a"
    account.down()
