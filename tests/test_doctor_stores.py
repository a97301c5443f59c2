"""doctor's preflight of stores: each row of the table of errors, told by a service that answers exactly so."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amlmount.config.load import config_from
from amlmount.doctor import Finding, examine, store_checks
from amlmount.doctor.stores import check_store
from amlmount.errors import AmlmountError
from amlmount.secrets import identity as identities
from amlmount.stores.azure.failures import _ROWS
from amlmount.stores.azure.timing import Timing
from fakeblob import FakeBlobService
from world import World

# As the service says it: status, code, its own words, and what doctor must tell to do.
TABLE: list[tuple[int, str, str, str]] = [
    (
        403,
        "AuthenticationFailed",
        "The MAC signature found in the HTTP request is not the same",
        "is wrong or has expired",
    ),
    (403, "AuthenticationFailed", "Signed expiry time [x] must be after signed start time", "is wrong or has expired"),
    (403, "AuthenticationFailed", "sv is not well formed", "is wrong or has expired"),
    (403, "AuthorizationFailure", "This request is not authorized", "firewall refuses this network"),
    (403, "AuthorizationPermissionMismatch", "", "Storage Blob Data Reader"),
    (403, "InsufficientAccountPermissions", "", "Owner is not enough"),
    (403, "UnauthorizedBlobOverwrite", "", "sp=rl to read and rwdl to write"),
    (
        403,
        "KeyBasedAuthenticationNotPermitted",
        "Key based login is not permitted",
        "switched off for this account",
    ),
    (409, "PublicAccessNotPermitted", "Public access is not permitted", "set the credentials of the store"),
    (401, "NoAuthenticationInformation", "", "no login was sent"),
    (401, "InvalidAuthenticationInfo", "", "for another tenant"),
    (403, "AuthorizationSourceIPMismatch", "", "sip="),
    (403, "AuthorizationProtocolMismatch", "", "spr=https"),
    (403, "AuthorizationServiceMismatch", "", "ss=b"),
    (403, "AuthorizationResourceTypeMismatch", "", "srt=sco"),
    (403, "AccountIsDisabled", "", "the account is disabled"),
    (404, "ContainerNotFound", "", "the account has logs"),
    (404, "ResourceNotFound", "", "the account has logs"),
    (409, "ContainerBeingDeleted", "", "wait a minute"),
    (409, "ContainerDisabled", "", "see the container in the portal"),
    (400, "InvalidResourceName", "", "3 to 63 lower-case letters"),
    (400, "OutOfRangeInput", "", "3 to 63 lower-case letters"),
    (404, "BlobNotFound", "", "deleted or renamed"),
    (409, "BlobArchived", "", "archive"),
    (409, "BlobBeingRehydrated", "", "try again in some hours"),
    (412, "LeaseIdMissing", "", "lease"),
    (409, "LeaseIdMismatchWithBlobOperation", "", "lease"),
    (412, "ConditionNotMet", "", "someone else has changed it"),
    (409, "BlobAlreadyExists", "", "someone else has created it"),
    (503, "ServerBusy", "The server is busy", "read with fewer processes"),
    (429, "TooManyRequests", "", "read with fewer processes"),
    (500, "OperationTimedOut", "", "try again in a minute"),
]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBlobService]:
    quick = Timing(connect_s=2, silence_s=2, request_s=3, call_s=4, first_backoff_s=0.01, attempts=1)
    monkeypatch.setattr("amlmount.stores.azure.diagnose.diagnose.__defaults__", (quick,))
    service = FakeBlobService()
    service.put("data", "x.jpg", b"12345")
    yield service
    service.close()


def look(definition: dict[str, Any], **more: Any) -> Finding:
    (found,) = check_store("images", definition, **more)
    return found


def test_a_store_that_is_fine_is_told_with_its_first_blob(fake: FakeBlobService) -> None:
    found = look(fake.definition())
    assert (found.name, found.level, found.fix) == ("store images", "ok", None)
    assert "first blob: 'x.jpg'" in found.text and fake.url in found.text
    assert [asked.method for asked in fake.asked] == ["GET"] * len(fake.asked), "nothing is written"


@pytest.mark.parametrize(("status", "code", "said", "advice"), TABLE, ids=[f"{row[1]}-{row[2][:8]}" for row in TABLE])
def test_each_row(fake: FakeBlobService, status: int, code: str, said: str, advice: str) -> None:
    listing = {"status": status, "code": code, "detail": said}
    fake.fail("status", 50, when=lambda asked: asked.is_list, **listing)
    if status == 404:
        fake.containers = {"logs": {}}
    found = look(fake.definition())
    assert found.level == "fail" and found.text.startswith("cannot ") and code in found.text and said in found.text
    assert advice in (found.fix or "") and "container 'data' of account" in found.text


def test_the_table_has_every_code_that_the_store_knows() -> None:
    assert {row[1] for row in TABLE} >= set(_ROWS)


def test_a_refused_network_is_told_with_the_address_it_came_to(fake: FakeBlobService) -> None:
    fake.fail("status", 50, status=403, code="AuthorizationFailure")
    found = look(fake.definition())
    assert "127.0.0.1 is 127.0.0.1 (private)" in found.text


def test_a_clock_that_is_off(fake: FakeBlobService) -> None:
    fake.clock_offset_s = 11 * 60
    found = look(fake.definition())
    assert found.level == "fail" and "11 minutes behind" in (found.fix or "") and "timedatectl" in (found.fix or "")


def sas(**fields: str) -> tuple[dict[str, Any], str]:
    given = {"sv": "2024-11-04", "ss": "b", "srt": "sco", "sp": "rl", "se": "2099-01-01T00:00:00Z", "sig": "x"} | fields
    return {"sas_token": {"env": "TEST_SAS"}}, "&".join(f"{k}={v}" for k, v in given.items())


@pytest.mark.parametrize(
    ("fields", "text", "advice"),
    [
        ({"se": "2020-01-01T00:00:00Z"}, "expired", "put a new one in the same place"),
        ({"st": "2098-01-01T00:00:00Z"}, "begins only in", "correct this machine's clock"),
        ({"sp": "r"}, "lacks the right to list (sp=r)", "sp=rl"),
    ],
)
def test_a_sas_is_read_before_it_is_sent(
    fake: FakeBlobService, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], text: str, advice: str
) -> None:
    credentials, token = sas(**fields)
    monkeypatch.setenv("TEST_SAS", token)
    found = look(fake.definition(credentials=credentials))
    assert found.level == "fail" and text in found.text and advice in (found.fix or "") and fake.asked == []


def test_names_that_are_near(fake: FakeBlobService) -> None:
    fake.containers["mnist-data"] = {}
    assert "did you mean mnist-data" in (look(fake.definition("mnst-data")).fix or "")


def test_nobody_listens_there(fake: FakeBlobService) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/devstoreaccount1"
        found = look(fake.definition(endpoint=url))
    assert found.level == "fail" and "(at step tcp)" in found.text and "HTTPS_PROXY" in (found.fix or "")


def test_something_else_answers(fake: FakeBlobService) -> None:
    fake.fail("garbage", 50)
    found = look(fake.definition())
    assert found.level == "fail" and "(at step clock)" in found.text


# --- names and private endpoints -----------------------------------------------------------------------------------

HOST = "acct.blob.core.windows.net"
PRIVATE = "acct.privatelink.blob.core.windows.net"


def azure(monkeypatch: pytest.MonkeyPatch, account: str = "acct") -> dict[str, Any]:
    """A definition of a store of Azure's own, which nobody asks: the walk ends at its name."""
    monkeypatch.setattr("amlmount.stores.azure.diagnose._walk", lambda probe: iter([Refused]))
    return {"type": "azure_blob", "account_name": account, "container_name": "data", "credentials": {"anonymous": {}}}


class Refused:
    name, detail, error = "dns", "no", AmlmountError("cannot reach the account", hint="look")


def names(**addresses: list[str]) -> Any:
    known = {HOST: addresses.get("host"), PRIVATE: addresses.get("private")}

    def lookup(host: str) -> tuple[str, list[str], list[str]]:
        if not known[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return (host, addresses.get("aliases", []), known[host] or [])

    return lookup


def test_a_public_address_of_an_account_with_a_private_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = names(host=["20.60.1.2"], aliases=[HOST, PRIVATE])
    found = check_store("s", azure(monkeypatch), lookup)[1]
    assert found.level == "warn" and "leads to a public address (20.60.1.2)" in found.text
    assert "privatelink.blob.core.windows.net" in (found.fix or "") and "168.63.129.16" in (found.fix or "")


@pytest.mark.parametrize("lookup", [names(host=["10.0.0.4"], aliases=[PRIVATE]), names(host=["20.60.1.2"])])
def test_names_that_are_right_are_not_spoken_of(monkeypatch: pytest.MonkeyPatch, lookup: Any) -> None:
    assert len(check_store("s", azure(monkeypatch), lookup)) == 1


def test_a_name_that_only_the_private_zone_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_store("s", azure(monkeypatch), names(private=["10.0.0.4"]))[1]
    assert f"{PRIVATE} is known here, {HOST} is not" in found.text and "must forward" in (found.fix or "")


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_store("s", azure(monkeypatch), names())[1]
    assert "neither" in found.text and "lacks the record acct" in (found.fix or "")


def test_a_private_link_name_is_no_name_to_connect_to() -> None:
    definition = {
        "type": "azure_blob",
        "account_name": "acct",
        "container_name": "data",
        "credentials": {"anonymous": {}},
    }
    found = look(definition | {"endpoint": f"https://{PRIVATE}"})
    assert found.level == "fail" and "leave privatelink out" in (found.fix or "")


# --- logins --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("AADSTS7000215", "client secret is wrong"),
        ("AADSTS7000222", "client secret has expired"),
        ("AADSTS700016", "no such application in this tenant"),
        ("AADSTS90002", "no such tenant"),
        ("AADSTS50076", "second factor"),
        ("AADSTS700024", "federated token has expired"),
    ],
)
def test_what_the_authority_refuses(monkeypatch: pytest.MonkeyPatch, code: str, advice: str) -> None:
    """The same words in the answer of a real fake authority: test_azure_network.py."""
    error = identities._explain("service principal app", f"Authentication failed: {code}: words. Trace ID: 1")
    refused = type("Step", (), {"name": "token", "detail": error.message, "error": error})
    definition = azure(monkeypatch)
    monkeypatch.setattr("amlmount.stores.azure.diagnose._walk", lambda probe: iter([refused]))
    found = check_store("s", definition, names(host=["10.0.0.1"]))[0]
    assert found.level == "fail" and code in found.text and advice in (found.fix or "")


@pytest.mark.parametrize(
    ("answer", "advice"),
    [((400, {"error": "invalid_request", "error_description": "Identity not found"}), "assign a managed identity")],
)
def test_a_machine_without_an_identity(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[int, dict[str, str]], advice: str
) -> None:
    from amlmount.secrets import managed

    endpoint = managed.find_endpoint("https://storage.azure.com")
    error = managed._refusal(endpoint, answer[0], json.dumps(answer[1]).encode())
    assert "Identity not found" in error.message and advice in (error.hint or "")


# --- local stores, and the command ---------------------------------------------------------------------------------


def test_local_stores(tmp_path: Path) -> None:
    assert look({"type": "local", "path": str(tmp_path)}).level == "ok"
    assert look({"type": "local", "path": str(tmp_path / "none")}).level == "fail"


def test_a_store_that_breaks_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = {name: {"type": "local", "path": str(tmp_path / name)} for name in ("a", "b")}
    (tmp_path / "b").mkdir()
    checks = store_checks(config_from({"stores": stores}))
    assert [(found.name, found.level) for found in examine(checks)] == [("store a", "fail"), ("store b", "ok")]


def test_the_command_tries_the_stores_of_the_configuration(world: World, fake: FakeBlobService) -> None:
    fake.fail("status", 50, when=lambda asked: asked.is_list, status=403, code="AuthorizationPermissionMismatch")
    world.write_config(json.dumps({"stores": {"images": fake.definition()}}))
    done = world.cli("doctor", "-o", "json")
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1 and "Storage Blob Data Reader" in found["store images"]["fix"]
    assert "store images" not in world.cli("doctor", "--no-stores").stdout
    world.write_config("stores: [")
    found = {finding["name"]: finding for finding in json.loads(world.cli("doctor", "-o", "json").stdout)}
    assert found["configuration"]["level"] == "fail"


def test_stores_are_tried_side_by_side(world: World, fake: FakeBlobService) -> None:
    """Ten that never answer take as long as one."""
    fake.fail("silence", 1000)
    world.write_config(json.dumps({"stores": {f"s{i}": fake.definition() for i in range(8)}}))
    began = time.monotonic()
    world.cli("doctor", timeout_s=100)
    assert time.monotonic() - began < 60
    connection = http.client.HTTPConnection("127.0.0.1", fake.port)
    connection.close()
