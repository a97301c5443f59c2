"""`amlmount store ls | show | test`: what people see, and where the first red step stops."""

import datetime
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from amlmount.cli.store_commands import store_app
from amlmount.errors import AccessDeniedError, NotFoundError
from amlmount.stores.azure import open_azure
from amlmount.stores.azure.diagnose import check_sas, diagnose
from azurite import KEY, Azurite
from fakeblob import FakeBlobService

STEPS = ["name", "secret", "dns", "tcp", "tls", "clock", "token", "list"]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake() -> Iterator[FakeBlobService]:
    service = FakeBlobService()
    yield service
    service.close()


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def run_it(stores: dict[str, Any], *arguments: str, mounts: dict[str, Any] | None = None) -> Result:
        config = tmp_path / "amlmount.yaml"
        config.write_text(yaml.safe_dump({"stores": stores, "mounts": mounts or {}}))
        return CliRunner().invoke(store_app, arguments, obj={"config": config})

    return run_it


def steps_of(definition: dict[str, Any]) -> tuple[list[str], Any]:
    steps = list(diagnose(definition))
    assert [step.error for step in steps[:-1]] == [None] * (len(steps) - 1)
    return [step.name for step in steps], steps[-1]


LOCAL = {"type": "local", "path": "/srv"}
BLOB = {
    "type": "azure_blob",
    "account_name": "acct",
    "container_name": "data",
    "credentials": {"account_key": {"env": "NOT_SET"}},
}


def test_ls_lists_stores_logins_and_mounts(run: Any) -> None:
    mounts = {"m": {"target": "/media/m", "source": "blob"}, "two": {"target": "/media/t", "source": ["blob", "lake"]}}
    account = {"type": "azure_data_lake_gen2", "account_name": "lake", "filesystem": "raw"}
    stores = {"here": LOCAL, "blob": BLOB, "lake": account}
    result = run(stores, "ls", mounts=mounts)
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["NAME", "TYPE", "WHERE", "LOGIN", "MOUNTS"],
        ["blob", "azure_blob", "acct/data", "account_key", "m,", "two"],
        ["here", "local", "/srv", "-", "-"],
        ["lake", "azure_data_lake_gen2", "lake/raw", "found", "on", "the", "machine", "two"],
    ]
    rows = json.loads(run(stores, "ls", "-o", "json", mounts=mounts).stdout)
    assert rows[0] == {
        "schema_version": 1,
        "name": "blob",
        "type": "azure_blob",
        "where": "acct/data",
        "login": "account_key",
        "mounts": ["m", "two"],
    }


def test_show_has_references_and_no_secret(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOT_SET", KEY)
    result = run({"blob": BLOB}, "show", "blob")
    assert "https://acct.blob.core.windows.net/data" in result.stdout and '{"env": "NOT_SET"}' in result.stdout
    assert KEY not in result.stdout
    fields = json.loads(run({"blob": BLOB}, "show", "blob", "-o", "json").stdout)
    assert fields["credentials"] == {"account_key": {"env": "NOT_SET"}} and fields["mounts"] == []


@pytest.mark.parametrize("command", ["show", "test"])
def test_a_name_that_is_not_there_is_met_with_one_that_is(run: Any, command: str) -> None:
    result = run({"mnist_data": BLOB}, command, "mnist-data")
    assert isinstance(result.exception, NotFoundError)
    assert result.exception.hint == "did you mean mnist_data?"


def test_a_store_that_works_is_green_all_through(run: Any, azurite: Azurite) -> None:
    definition = azurite.new_container()
    store = open_azure(definition)
    store.put("a.jpg", b"")
    store.close()
    result = run({"s": definition}, "test", "s")
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [["ok", step] for step in STEPS]
    assert "first blob: 'a.jpg'" in result.stdout and KEY not in result.stdout
    report = json.loads(run({"s": definition}, "test", "s", "-o", "json").stdout)
    assert report["ok"] and [step["step"] for step in report["steps"]] == STEPS


def test_a_missing_container_is_met_with_near_names(run: Any, azurite: Azurite) -> None:
    account = azurite.new_account()
    for name in ("mnist-data", "labels"):
        azurite.request("PUT", account, name, {"restype": "container"})
    result = run({"s": azurite.definition(account, "mnist-dat")}, "test", "s")
    assert result.exit_code == 3
    assert result.stdout.splitlines()[-1].split() == ["hint:", "did", "you", "mean", "mnist-data?"]
    _, last = steps_of(azurite.definition(account, "zzz"))
    assert last.error.hint == "the account has labels, mnist-data"


def test_an_account_without_container_counts_its_containers(azurite: Azurite) -> None:
    account = azurite.new_account()
    azurite.new_container(account)
    names, last = steps_of(azurite.definition(account))
    assert names == STEPS and last.detail == "1 container"


def test_each_step_can_be_the_one_that_fails(
    azurite: Azurite, fake: FakeBlobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed_port = server.getsockname()[1]
    good = azurite.new_container()
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("name", {**good, "container_name": "Bad_Name"}, "3 to 63"),
        ("secret", {**good, "credentials": {"account_key": {"env": "NOT_SET_AT_ALL"}}}, "export"),
        ("dns", {**good, "endpoint": "http://nobody.invalid/x"}, "check account_name"),
        ("tcp", {**good, "endpoint": f"http://127.0.0.1:{closed_port}/x"}, "right host and port"),
        ("tls", {**good, "endpoint": fake.url.replace("http://", "https://")}, "store test"),
        ("list", {**good, "credentials": {"anonymous": {}}}, "anonymous"),
    ]
    for step, definition, hint in cases:
        names, last = steps_of(definition)
        assert names == STEPS[: STEPS.index(step) + 1] and hint in last.error.hint, (step, last)
    monkeypatch.setenv("WRONG", "d3Jvbmc=")
    names, last = steps_of({**good, "credentials": {"account_key": {"env": "WRONG"}}})
    assert names == STEPS and "account key is wrong" in last.error.hint


@pytest.mark.parametrize(("offset_s", "words"), [(3600, "60 minutes behind"), (-3600, "60 minutes ahead of")])
def test_a_wrong_clock_is_found_before_it_looks_like_a_wrong_key(
    fake: FakeBlobService, offset_s: float, words: str
) -> None:
    fake.clock_offset_s = offset_s
    names, last = steps_of(fake.definition())
    assert names[-1] == "clock" and isinstance(last.error, AccessDeniedError) and words in (last.error.hint or "")


def test_a_token_that_cannot_be_had_stops_at_its_step(
    azurite_oauth: tuple[Azurite, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    azurite, ca_file = azurite_oauth
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:9")
    for name in ("MSI_ENDPOINT", "MSI_SECRET"):
        monkeypatch.delenv(name, raising=False)
    definition = azurite.definition(azurite.new_account(), "data", credentials={"managed_identity": {}})
    names, last = steps_of(definition)
    assert names == STEPS[:7] and "no managed identity" in last.error.hint


def test_a_local_store_is_one_step(run: Any, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.csv").write_text("")
    assert "'a.csv'" in run({"l": {"type": "local", "path": str(tmp_path / "labels")}}, "test", "l").stdout
    result = run({"l": {"type": "local", "path": str(tmp_path / "absent")}}, "test", "l")
    assert result.exit_code == 3 and "FAIL" in result.stdout


NOW = datetime.datetime(2025, 11, 20, 12, tzinfo=datetime.UTC).timestamp()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"se": "2025-11-20T09:00:00Z", "sp": "rl"}, "expired 3 hours ago"),
        ({"se": "2025-11-30", "st": "2025-11-20T12:30:00Z", "sp": "rl"}, "begins only in 30 minutes"),
        ({"se": "2025-11-30", "sp": "r"}, "lacks the right to list"),
        ({"se": "2025-11-30", "sp": "w"}, "lacks the right to read and list"),
    ],
)
def test_a_sas_is_read_before_it_is_sent(fields: dict[str, str], expected: str) -> None:
    with pytest.raises(AccessDeniedError, match=expected):
        check_sas(fields, NOW)


def test_a_good_sas_says_how_long_it_is_good() -> None:
    assert check_sas({"se": "2025-11-30", "sp": "rl"}, NOW) == "SAS with sp=rl, good for 10 days"
    assert check_sas({"si": "readers"}, NOW) == "SAS by the policy 'readers'"
