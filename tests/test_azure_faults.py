"""What the network and the service do on bad days: the store gives the right bytes or the right error, in time."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from amlmount.errors import (
    AccessDeniedError,
    AmlmountError,
    BusyError,
    ConfigError,
    ContainerNotFoundError,
    NetworkError,
    PreconditionFailedError,
    ThrottledError,
)
from amlmount.metrics import UPLOADS
from amlmount.stores.azure import open_azure, upload
from amlmount.stores.azure.store import AzureStore
from amlmount.stores.azure.timing import Timing
from fakeblob import Asked, FakeBlobService

TIMING = Timing(connect_s=1, silence_s=0.4, request_s=1.5, call_s=6, first_backoff_s=0.02, max_backoff_s=0.2)
DATA = bytes(range(256)) * 40


@pytest.fixture
def fake() -> Iterator[FakeBlobService]:
    service = FakeBlobService()
    yield service
    service.close()


@pytest.fixture
def store(fake: FakeBlobService) -> Iterator[AzureStore]:
    store = open_azure(fake.definition(), timing=TIMING)
    yield store
    store.close()


def is_get(asked: Asked) -> bool:
    return asked.method == "GET" and not asked.is_list


BODY_FAULTS = ["reset", "garbage", "silence", "stall", "truncate", "wrong_range", "full", "no_etag"]


@pytest.mark.parametrize("kind", BODY_FAULTS)
@pytest.mark.parametrize("times", [1, 2])
def test_a_read_that_goes_wrong_is_made_again(fake: FakeBlobService, store: AzureStore, kind: str, times: int) -> None:
    etag = store.put("x", DATA).etag
    fake.fail(kind, times, when=is_get)
    assert store.get("x", 100, 5000, if_match=etag) == DATA[100:5100]


@pytest.mark.parametrize("kind", [*BODY_FAULTS, "corrupt"])
def test_a_read_that_stays_wrong_fails_in_time(fake: FakeBlobService, store: AzureStore, kind: str) -> None:
    etag = store.put("x", DATA).etag
    fake.fail(kind, 1000, when=is_get)
    began = time.monotonic()
    with pytest.raises((NetworkError, PreconditionFailedError), match="blob 'x'"):
        store.get("x", 0, 5000 if kind != "corrupt" else len(DATA), if_match=etag)
    assert time.monotonic() - began < TIMING.call_s + TIMING.request_s + 1


@pytest.mark.parametrize("learn", ["list", "head"])
def test_a_damaged_small_blob_is_noticed_by_its_md5(fake: FakeBlobService, store: AzureStore, learn: str) -> None:
    with fake.lock:
        etag = fake.put("data", "x", DATA).etag
    _ = list(store.list()) if learn == "list" else store.head("x")
    fake.fail("corrupt", 2, when=is_get)
    assert store.get("x", 0, len(DATA), if_match=etag) == DATA
    assert sum(is_get(asked) for asked in fake.asked) == 3


def test_without_etag_a_damaged_blob_is_noticed_too(fake: FakeBlobService, store: AzureStore) -> None:
    store.put("x", DATA)
    store.head("x")
    fake.fail("corrupt", 1, when=is_get)
    assert store.get("x") == DATA


def test_a_reset_connection_is_replaced_at_once(fake: FakeBlobService, store: AzureStore) -> None:
    store.put("x", DATA)
    fake.fail("reset", 1)
    began = time.monotonic()
    assert store.head("x").size_bytes == len(DATA)
    assert time.monotonic() - began < 0.2


@pytest.mark.parametrize("kind", ["reset", "garbage", "silence", "stall", "truncate"])
def test_a_listing_that_goes_wrong_is_complete_in_the_end(fake: FakeBlobService, store: AzureStore, kind: str) -> None:
    names = [f"n{number:03d}" for number in range(25)]
    for name in names:
        store.put(name, b"")
    pages = store.list(page_size=10)
    found = list(next(pages).objects)
    fake.fail(kind, 2, when=lambda asked: asked.is_list)
    found += [info for page in pages for info in page.objects]
    assert [info.name for info in found] == names


def test_pages_come_before_the_last_one_is_asked_for(fake: FakeBlobService, store: AzureStore) -> None:
    for number in range(30):
        store.put(f"n{number:02d}", b"")
    pages = store.list(page_size=10)
    assert len(next(pages).objects) == 10
    time.sleep(0.1)
    assert sum(asked.is_list for asked in fake.asked) <= 2, "the page now read, and the one asked for ahead"
    assert sum(len(page.objects) for page in pages) == 20
    assert sum(asked.is_list for asked in fake.asked) == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_trouble_of_the_service_passes(fake: FakeBlobService, store: AzureStore, status: int) -> None:
    store.put("x", DATA)
    for call in (
        lambda: store.get("x"),
        lambda: store.head("x"),
        lambda: store.put("x", DATA),
        lambda: list(store.list()),
    ):
        fake.fail("status", 3, status=status, code="ServerBusy")
        call()


def test_retry_after_is_kept_by_every_thread(fake: FakeBlobService, store: AzureStore) -> None:
    store.put("x", DATA)
    fake.fail("status", 1, status=503, code="ServerBusy", headers={"Retry-After": "1"})
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: store.head("x").size_bytes, range(4))) == [len(DATA)] * 4
    assert 0.9 < time.monotonic() - began < 3
    asked_after = [asked.at - began for asked in fake.asked[1:]]
    assert not [at for at in asked_after if 0.3 < at < 0.9], "somebody did not wait"


def test_a_storm_of_503_slows_down_and_loses_nothing(fake: FakeBlobService, store: AzureStore) -> None:
    store.put("x", DATA)
    began = time.monotonic()
    fake.fail("status", 60, status=503, code="ServerBusy")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: store.get("x"), range(64)))
    assert results == [DATA] * 64
    assert time.monotonic() - began > 0.2


def test_a_storm_without_end_is_an_error_that_says_so(fake: FakeBlobService, store: AzureStore) -> None:
    fake.fail("status", 10_000, status=503, code="ServerBusy", headers={"Retry-After": "1"})
    began = time.monotonic()
    with pytest.raises(ThrottledError, match="cannot read blob 'x'"):
        store.get("x")
    assert time.monotonic() - began < TIMING.call_s + 1


def test_full_speed_returns_after_a_storm(fake: FakeBlobService, store: AzureStore) -> None:
    store.put("x", DATA)
    fake.fail("status", 10, status=503, code="ServerBusy")
    for _ in range(60):
        store.head("x")
    began = time.monotonic()
    for _ in range(20):
        store.head("x")
    assert time.monotonic() - began < 0.3


def test_a_conditional_write_that_was_done_unseen_is_not_a_conflict(fake: FakeBlobService, store: AzureStore) -> None:
    for kind in ("done_reset", "reset"):
        fake.fail(kind, 1, when=lambda asked: asked.method == "PUT")
        info = store.put(f"new-{kind}", DATA, if_none_match=True)
        assert info == store.head(f"new-{kind}")
    etag = store.put("old", b"1").etag
    fake.fail("done_reset", 1, when=lambda asked: asked.method == "PUT")
    assert store.put("old", b"2", if_match=etag) == store.head("old")


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_blob_of_blocks_that_was_made_unseen_is_known_by_its_blocks(
    fake: FakeBlobService, store: AzureStore, is_ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "MAX_SINGLE_BYTES", 1000)
    monkeypatch.setattr(upload, "BLOCK_BYTES", 4000)
    if not is_ours:
        with fake.lock:
            fake.put("data", "big", DATA)  # the same bytes by somebody else
    fake.fail("done_reset", 1, when=lambda asked: asked.query.get("comp") == "blocklist")
    if is_ours:
        info = store.put("big", DATA, if_none_match=True)
        assert info == store.head("big") and store.get("big") == DATA
    else:
        with pytest.raises(PreconditionFailedError):
            store.put("big", DATA, if_none_match=True)


def test_but_a_conflict_with_others_is(fake: FakeBlobService, store: AzureStore) -> None:
    with fake.lock:
        fake.put("data", "theirs", b"other")
    fake.fail("reset", 1, when=lambda asked: asked.method == "PUT")
    with pytest.raises(PreconditionFailedError):
        store.put("theirs", DATA, if_none_match=True)
    assert store.get("theirs") == b"other"


def test_a_delete_that_was_done_unseen_is_done(fake: FakeBlobService, store: AzureStore) -> None:
    store.put("x", b"")
    fake.fail("done_reset", 1, when=lambda asked: asked.method == "DELETE")
    store.delete("x")
    assert "x" not in fake.containers["data"]


REFUSALS: list[tuple[int, str, str, type[AmlmountError], str]] = [
    (403, "AuthenticationFailed", "The MAC signature found is not the same", AccessDeniedError, "wrong or has expired"),
    (403, "AuthorizationFailure", "", AccessDeniedError, "firewall"),
    (403, "AuthorizationPermissionMismatch", "", AccessDeniedError, "Storage Blob Data Reader"),
    (403, "KeyBasedAuthenticationNotPermitted", "", AccessDeniedError, "switched off"),
    (409, "PublicAccessNotPermitted", "", AccessDeniedError, "set the credentials"),
    (401, "InvalidAuthenticationInfo", "", AccessDeniedError, "log in again"),
    (401, "NoAuthenticationInformation", "", AccessDeniedError, "set credentials"),
    (403, "AuthorizationSourceIPMismatch", "", AccessDeniedError, "sip="),
    (403, "AccountIsDisabled", "", AccessDeniedError, "disabled"),
    (409, "ContainerBeingDeleted", "", ContainerNotFoundError, "being deleted"),
    (409, "BlobArchived", "", AccessDeniedError, "archive"),
    (412, "LeaseIdMissing", "", BusyError, "lease"),
    (400, "InvalidResourceName", "", ConfigError, "3 to 63"),
    (403, "SomethingNew", "", AccessDeniedError, "does not allow"),
    (418, "Teapot", "", AmlmountError, "look up"),
]


@pytest.mark.parametrize(("status", "code", "detail", "kind", "hint"), REFUSALS, ids=[row[1] for row in REFUSALS])
def test_each_refusal_says_what_to_do(
    fake: FakeBlobService,
    store: AzureStore,
    status: int,
    code: str,
    detail: str,
    kind: type[AmlmountError],
    hint: str,
) -> None:
    calls: list[Callable[[], Any]] = [lambda: store.get("x"), lambda: list(store.list()), lambda: store.head("x")]
    for call in calls:
        fake.fail("status", 4, status=status, code=code, detail=detail)
        with pytest.raises(kind, match=rf"cannot .*{code}") as caught:
            call()
        assert hint in (caught.value.hint or "")
        for fault in fake._faults:
            fault.times = 0


def test_a_refusal_with_a_clock_an_hour_off_names_the_clock(fake: FakeBlobService, store: AzureStore) -> None:
    fake.clock_offset_s = 3600
    fake.fail("status", 10, status=403, code="AuthenticationFailed", detail="Request date header too old")
    with pytest.raises(AccessDeniedError) as caught:
        list(store.list())
    assert "clock is 60 minutes behind" in (caught.value.hint or "")


def test_a_redirect_is_not_followed(fake: FakeBlobService, store: AzureStore) -> None:
    fake.fail("status", 10, status=302, code="Found", headers={"Location": "http://169.254.169.254/"})
    with pytest.raises(AmlmountError, match="Found"):
        store.head("x")


def test_something_that_is_no_blob_service(fake: FakeBlobService, store: AzureStore) -> None:
    fake.fail("status", 10, status=200, code="x")
    with pytest.raises(NetworkError, match="no listing"):
        list(store.list())


def test_what_is_sent_counts_as_far_as_it_gets(fake: FakeBlobService, store: AzureStore) -> None:
    """Whoever waits for uploads sees in it whether one goes on: refused and broken attempts add nothing for good."""
    before = UPLOADS.sent_bytes
    store.put("x", DATA)
    assert UPLOADS.sent_bytes - before == len(DATA)
    for kind in ("status", "reset", "silence"):
        fake.fail(kind, 1000, status=403, code="AuthorizationFailure")
        with pytest.raises(AmlmountError):
            store.put("x", DATA)
        fake.heal()
        assert UPLOADS.sent_bytes - before == len(DATA), kind
    fake.fail("reset", 1)
    store.put("x", DATA)
    store.get("x")
    assert UPLOADS.sent_bytes - before == 2 * len(DATA)
