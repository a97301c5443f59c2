"""The Azure store against a real Azurite: names, listings, conditions, and each way to be refused."""

import datetime
import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amlmount.errors import (
    AccessDeniedError,
    AmlmountError,
    BlobNotFoundError,
    ConfigError,
    ContainerNotFoundError,
    NetworkError,
    PreconditionFailedError,
    UsageError,
)
from amlmount.stores.azure import bulk, open_azure
from amlmount.stores.azure.location import locate
from amlmount.stores.azure.store import AzureStore
from amlmount.stores.azure.timing import Timing
from azurite import KEY, Azurite

ODD_NAMES = [
    "sp ace", "a%20b", "q?x", "h#x", "p+s", "ünï/日本", '"q"', "a&b;&amp;", "a<b>", "c:d", "til~de", "[x]*{y}",
    "d/.hidden", "trail.", "trail ", "nl\nx", "tab\tx", "\U0001f600", "it's", "semi;x,y=@!$()", "x" * 1000,
]  # fmt: skip
NOBODY = {
    "type": "azure_blob",
    "account_name": "nobody",
    "container_name": "data",
    "credentials": {"anonymous": {}},
}


@pytest.fixture(scope="module")
def container(azurite: Azurite) -> dict[str, Any]:
    return azurite.new_container()


Opener = Callable[..., AzureStore]


@pytest.fixture
def opened() -> Iterator[Opener]:
    stores: list[AzureStore] = []

    def open_it(definition: dict[str, Any], **options: Any) -> AzureStore:
        stores.append(open_azure(definition, **options))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


@pytest.fixture
def store(container: dict[str, Any], opened: Opener) -> AzureStore:
    return opened(container)


def sas(definition: dict[str, Any], permission: str, **changes: Any) -> str:
    from azure.storage.blob import generate_container_sas

    now = datetime.datetime.now(datetime.UTC)
    options: dict[str, Any] = {
        "account_key": KEY,
        "permission": permission,
        "expiry": now + datetime.timedelta(hours=1),
    }
    return generate_container_sas(
        definition["account_name"], definition["container_name"], **{**options, **changes}, api_version="2022-11-02"
    )


def every_call(store: AzureStore) -> list[Callable[[], object]]:
    return [
        lambda: list(store.list()),
        lambda: store.get("x"),
        lambda: store.head("x"),
        lambda: store.put("x", b""),
        lambda: store.delete("x"),
    ]


def names_in(store: AzureStore, prefix: str, **options: Any) -> tuple[list[str], list[str]]:
    pages = list(store.list(prefix, **options))
    return [info.name for page in pages for info in page.objects], [name for page in pages for name in page.prefixes]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_odd_names_go_round(store: AzureStore, name: str) -> None:
    store.put(f"odd/{name}", name.encode())
    assert store.get(f"odd/{name}") == name.encode()
    assert store.head(f"odd/{name}").size_bytes == len(name.encode())
    assert names_in(store, f"odd/{name}")[0] == [f"odd/{name}"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "./a", "a//b", "/a", "a/", "x" * 1025])
def test_names_that_a_url_would_change_are_refused(store: AzureStore, name: str) -> None:
    with pytest.raises(UsageError, match="cannot use blob name"):
        store.put(name, b"x")
    for call in (store.get, store.head, store.delete):
        with pytest.raises(BlobNotFoundError):
            call(name)


def test_ranges_end_where_the_blob_ends(store: AzureStore) -> None:
    etag = store.put("ranges", b"0123456789").etag
    store.put("empty", b"")
    assert store.get("ranges", 2, 3) == b"234"
    assert store.get("ranges", 8, 100) == b"89"
    assert store.get("ranges", 4) == b"456789"
    assert [store.get("ranges", start, 5) for start in (10, 11, 1000)] == [b"", b"", b""]
    assert [store.get("empty", start, length) for start, length in ((0, None), (0, 5), (7, 5))] == [b"", b"", b""]
    assert store.get("ranges", 10, 5, if_match=etag) == b""
    with pytest.raises(PreconditionFailedError):
        store.get("ranges", 10, 5, if_match="0x1")
    with pytest.raises(PreconditionFailedError):
        store.get("ranges", 3, 0, if_match="0x1")


def test_bytes_come_by_the_fast_way(store: AzureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    etag = store.put("fast", b"x" * 700).etag
    monkeypatch.setattr("amlmount.stores.azure.store.Download", None)
    assert store.get("fast", 0, 700, if_match=etag) == b"x" * 700
    assert bytes(store.get_buffer("fast", 1, 2)) == b"xx"


def test_listing_says_the_same_as_head_and_the_sdk(azurite: Azurite, opened: Opener) -> None:
    definition = azurite.new_container()
    store = opened(definition)
    for number in range(12):
        store.put(f"d{number % 3}/f{number:02d} & <co>", b"y" * number, metadata={"Key": f"v & {number}"})
    store.put("hdi", b"", metadata={"hdi_isfolder": "true"})
    listed = {info.name: info for page in store.list(page_size=5) for info in page.objects}
    assert len(listed) == 13
    for name, info in listed.items():
        assert info == store.head(name)
    from azure.storage.blob import ContainerClient

    with ContainerClient(definition["endpoint"], definition["container_name"], credential=KEY) as client:
        for blob in client.list_blobs(include=["metadata"]):
            info = listed.pop(blob.name)
            assert (blob.size, blob.etag, blob.metadata or {}) == (info.size_bytes, info.etag, dict(info.metadata))
            assert blob.last_modified.timestamp() * 1e9 == info.mtime_ns
    assert not listed
    assert names_in(store, "", delimiter=True) == (["hdi"], ["d0/", "d1/", "d2/"])
    assert names_in(store, "", delimiter=True, page_size=1) == (["hdi"], ["d0/", "d1/", "d2/"])
    assert names_in(store, "d1/f0") == (["d1/f01 & <co>", "d1/f04 & <co>", "d1/f07 & <co>"], [])
    assert names_in(store, "nothing") == ([], [])


def test_a_listing_left_early_leaves_the_store_usable(store: AzureStore) -> None:
    for number in range(4):
        store.put(f"early/{number}", b"")
    assert next(iter(store.list("early/", page_size=1))).objects[0].name == "early/0"
    assert len(names_in(store, "early/", page_size=1)[0]) == 4


def test_conditions_hold_and_leave_what_was_there(store: AzureStore) -> None:
    first = store.put("cond", b"1", if_none_match=True)
    with pytest.raises(PreconditionFailedError):
        store.put("cond", b"2", if_none_match=True)
    second = store.put("cond", b"2", if_match=first.etag)
    for attempt in (
        lambda: store.put("cond", b"3", if_match=first.etag),
        lambda: store.delete("cond", if_match=first.etag),
        lambda: store.get("cond", if_match=first.etag),
        lambda: store.put("absent", b"3", if_match=first.etag),
    ):
        with pytest.raises(PreconditionFailedError):
            attempt()
    assert (store.get("cond"), store.head("cond").etag) == (b"2", second.etag)
    store.delete("cond", if_match=second.etag)
    with pytest.raises(BlobNotFoundError):
        store.delete("cond")


def test_a_blob_of_many_blocks_is_one_conditional_step(store: AzureStore) -> None:
    data = os.urandom(17 * 1024 * 1024 + 5)
    info = store.put("big", data, if_none_match=True, metadata={"a": "b"})
    assert store.head("big") == info and store.get("big") == data
    with pytest.raises(PreconditionFailedError):
        store.put("big", b"z" * len(data), if_none_match=True)
    assert store.get("big", len(data) - 3) == data[-3:]


def test_metadata_that_no_header_can_carry_is_refused(store: AzureStore) -> None:
    with pytest.raises(UsageError, match="printable ASCII"):
        store.put("meta", b"", metadata={"a": "line\r\nbreak"})


def test_a_missing_container_is_not_a_missing_blob(azurite: Azurite, opened: Opener) -> None:
    store = opened(azurite.definition(azurite.new_account(), "absent"))
    for call in (
        lambda: list(store.list()),
        lambda: store.get("x"),
        lambda: store.head("x"),
        lambda: store.put("x", b""),
    ):
        with pytest.raises(ContainerNotFoundError, match="'absent'"):
            call()


def test_containers_of_an_account(azurite: Azurite, opened: Opener) -> None:
    account = azurite.new_account()
    made = [azurite.new_container(account)["container_name"] for _ in range(3)]
    assert opened(azurite.definition(account)).list_containers() == made


def test_a_wrong_key_says_so_and_never_shows_it(
    container: dict[str, Any], monkeypatch: pytest.MonkeyPatch, opened: Opener
) -> None:
    wrong = b64encode(b"wrong").decode()
    monkeypatch.setenv("WRONG_KEY", wrong)
    store = opened({**container, "credentials": {"account_key": {"env": "WRONG_KEY"}}})
    for call in (
        lambda: store.get("x"),
        lambda: list(store.list()),
        lambda: store.put("x", b""),
        lambda: store.head("x"),
    ):
        with pytest.raises(AccessDeniedError) as caught:
            call()
        assert "account key is wrong" in (caught.value.hint or "")
        assert wrong not in str(caught.value.to_json())


def test_a_key_that_is_no_base64_is_a_matter_of_configuration(
    container: dict[str, Any], monkeypatch: pytest.MonkeyPatch, opened: Opener
) -> None:
    monkeypatch.setenv("BAD_KEY", "not base64!")
    with pytest.raises(ConfigError, match="not base64"):
        opened({**container, "credentials": {"account_key": {"env": "BAD_KEY"}}}).get("x")


def test_a_rotated_key_is_taken_up(container: dict[str, Any], monkeypatch: pytest.MonkeyPatch, opened: Opener) -> None:
    monkeypatch.setenv("ROTATED", b64encode(b"old").decode())
    store = opened({**container, "credentials": {"account_key": {"env": "ROTATED"}}})
    with pytest.raises(AccessDeniedError):
        list(store.list())
    monkeypatch.setenv("ROTATED", KEY)
    store.put("rotated", b"1")
    assert store.get("rotated") == b"1"
    monkeypatch.setattr("amlmount.stores.azure.store.Download", None)
    assert store.get("rotated") == b"1", "obstore has the new key as well"


def sas_store(opened: Opener, container: dict[str, Any], token: str, monkeypatch: pytest.MonkeyPatch) -> AzureStore:
    monkeypatch.setenv("TEST_SAS", token)
    return opened({**container, "credentials": {"sas_token": {"env": "TEST_SAS"}}})


@pytest.mark.parametrize("prefix", ["", "?"])
def test_a_read_only_sas_reads_and_does_not_write(
    container: dict[str, Any], store: AzureStore, prefix: str, monkeypatch: pytest.MonkeyPatch, opened: Opener
) -> None:
    store.put("sas", b"12")
    reader = sas_store(opened, container, prefix + sas(container, "rl"), monkeypatch)
    assert reader.get("sas") == b"12" and "sas" in names_in(reader, "sas")[0]
    for call in (lambda: reader.put("sas", b""), lambda: reader.delete("sas")):
        with pytest.raises(AccessDeniedError, match="AuthorizationPermissionMismatch") as caught:
            call()
        assert "sig=" not in str(caught.value.to_json())
    assert store.get("sas") == b"12"


def test_an_expired_sas_is_refused_and_a_new_one_taken_up(
    container: dict[str, Any], store: AzureStore, monkeypatch: pytest.MonkeyPatch, opened: Opener
) -> None:
    store.put("sas2", b"12")
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    reader = sas_store(opened, container, sas(container, "rl", expiry=past), monkeypatch)
    with pytest.raises(AccessDeniedError, match="'sas2'") as caught:
        reader.get("sas2")
    assert "SAS is wrong or has expired" in (caught.value.hint or "")
    monkeypatch.setenv("TEST_SAS", sas(container, "rl"))
    assert reader.get("sas2") == b"12"


def test_a_connection_string_is_a_key_and_an_endpoint(
    container: dict[str, Any], monkeypatch: pytest.MonkeyPatch, opened: Opener
) -> None:
    account = container["account_name"]
    text = f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={KEY};BlobEndpoint={container['endpoint']};"
    monkeypatch.setenv("TEST_CS", text)
    definition = {**container, "credentials": {"connection_string": {"env": "TEST_CS"}}}
    del definition["endpoint"]
    opened(definition).put("cs", b"1")
    with pytest.raises(ConfigError, match="is for account"):
        opened({**definition, "account_name": "other"}).get("cs")


def test_anonymous_reads_public_containers_only(azurite: Azurite, container: dict[str, Any], opened: Opener) -> None:
    with pytest.raises(AccessDeniedError):
        opened({**container, "credentials": {"anonymous": {}}}).get("x")
    account = container["account_name"]
    azurite.request("PUT", account, "public", {"restype": "container"}, x_ms_blob_public_access="container")
    opened(azurite.definition(account, "public")).put("x", b"open")
    reader = opened(azurite.definition(account, "public", credentials={"anonymous": {}}))
    assert reader.get("x") == b"open" and names_in(reader, "") == (["x"], [])


def test_a_forked_child_goes_on_without_obstore(store: AzureStore) -> None:
    store.put("fork", b"12345")
    assert store.get("fork") == b"12345" and bulk._state["is_used"]
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write_end, store.get("fork", 1, 3))
        finally:
            os._exit(0)
    os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as answers:
            assert answers.read() == b"234"
    finally:
        os.waitpid(child, 0)
    assert store.get("fork") == b"12345"


@pytest.mark.parametrize(
    "endpoint", ["ftp://x", "http://", "http://h/a?sig=secret", "https://a.privatelink.blob.core.windows.net"]
)
def test_endpoints_that_cannot_be(endpoint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        locate(endpoint, "a", "data")
    assert "secret" not in str(caught.value.to_json())


@pytest.mark.parametrize("name", ["Bad_Name", "x", "a--b", "-ab", "x" * 64])
def test_container_names_that_cannot_be(container: dict[str, Any], name: str, opened: Opener) -> None:
    with pytest.raises(ConfigError, match="container name"):
        opened({**container, "container_name": name})


def test_an_account_that_does_not_resolve(opened: Opener) -> None:
    definition = {
        "type": "azure_blob",
        "account_name": "nobody",
        "container_name": "data",
        "endpoint": "example.invalid",
    }
    store = opened({**definition, "credentials": {"anonymous": {}}}, timing=Timing(call_s=10))
    with pytest.raises(NetworkError, match=r"nobody\.blob\.example\.invalid does not resolve"):
        store.get("x")


def test_a_refused_connection_is_a_network_error(opened: Opener) -> None:
    definition = {
        "type": "azure_blob",
        "account_name": "nobody",
        "container_name": "data",
        "endpoint": "http://127.0.0.1:9/n",
    }
    timing = Timing(call_s=5, first_backoff_s=0.01)
    with pytest.raises(NetworkError, match="refused"):
        opened({**definition, "credentials": {"anonymous": {}}}, timing=timing).get("x")


def test_a_token_is_not_sent_without_encryption(container: dict[str, Any], opened: Opener) -> None:
    with pytest.raises(ConfigError, match="cannot send a token"):
        opened({**container, "credentials": {"azure_cli": {}}}).get("x")


def test_nothing_happens_before_the_first_call(
    container: dict[str, Any], monkeypatch: pytest.MonkeyPatch, opened: Opener
) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    store = opened({**container, "credentials": {"account_key": {"env": "NOT_THERE"}}})
    store.close()
    with pytest.raises(AmlmountError, match="env:NOT_THERE"):
        store.get("x")
