"""What stores/base.py promises of a store that can be written through a mount, held against every store."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlmount.errors import BlobNotFoundError, PreconditionFailedError
from amlmount.stores.azure.blocks import Committed, plan_blocks
from amlmount.stores.base import HasDirectories, ObjectStore, WritableStore
from amlmount.stores.metadata import MTIME, format_mtime, parse_mtime
from contract.store_cases import StoreCase

MIB = 1 << 20


class Bytes:
    """Content that counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.read_bytes = 0

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, start: int, length: int) -> memoryview:
        assert start >= 0 and start + length <= len(self.data)
        self.read_bytes += length
        return memoryview(self.data)[start : start + length]


@pytest.fixture
def writable(store: ObjectStore) -> WritableStore:
    assert isinstance(store, WritableStore)
    return store


def large(seed: int, size_bytes: int = 20 * MIB + 5) -> bytes:
    return (bytes(range(256)) * (size_bytes // 256 + 2))[seed : seed + size_bytes]


@pytest.mark.parametrize("size_bytes", [0, 1, 100_000, 20 * MIB + 5])
def test_content_is_written_whole(writable: WritableStore, size_bytes: int) -> None:
    data = large(1, size_bytes)
    info = writable.upload("dir/x", Bytes(data), if_none_match=True)
    assert info == writable.head("dir/x")
    assert writable.get("dir/x", if_match=info.etag) == data


def test_content_replaces_only_the_version_it_was_made_from(writable: WritableStore) -> None:
    old = writable.put("x", b"1")
    for data in (b"2", large(2)):
        new = writable.upload("x", Bytes(data), if_match=writable.head("x").etag)
        with pytest.raises(PreconditionFailedError):
            writable.upload("x", Bytes(data), if_match=old.etag)
        with pytest.raises(PreconditionFailedError):
            writable.upload("x", Bytes(data), if_none_match=True)
        assert writable.head("x") == new


def test_an_edit_sends_what_changed(case: StoreCase, writable: WritableStore) -> None:
    size = 40 * MIB + 7
    first = writable.upload("x", Bytes(large(0, size)))
    data = bytearray(large(0, size))
    data[9 * MIB : 10 * MIB] = b"!" * MIB
    content = Bytes(bytes(data))
    unchanged = [(0, 9 * MIB), (10 * MIB, size)]
    info = writable.upload("x", content, unchanged=unchanged, if_match=first.etag)
    assert writable.get("x", if_match=info.etag) == data
    if case.name in ("azurite", "fake-blob-service"):
        assert content.read_bytes == 8 * MIB
    with pytest.raises(PreconditionFailedError):
        writable.upload("x", content, unchanged=unchanged, if_match=first.etag)


@pytest.mark.parametrize("new_size", [9 * MIB, 16 * MIB, 17 * MIB + 3, 60 * MIB])
def test_an_edit_may_change_the_length(writable: WritableStore, new_size: int) -> None:
    size = 40 * MIB + 7
    first = writable.upload("x", Bytes(large(0, size)))
    data = large(0, size)[:new_size].ljust(new_size, b"\0")
    info = writable.upload("x", Bytes(data), unchanged=[(0, min(new_size, size))], if_match=first.etag)
    assert (info.size_bytes, writable.get("x", if_match=info.etag)) == (new_size, data)


def test_a_blob_that_was_put_in_one_piece_can_be_edited(writable: WritableStore) -> None:
    first = writable.put("x", b"small")
    data = b"small" + large(3, 9 * MIB)
    info = writable.upload("x", Bytes(data), unchanged=[(0, 5)], if_match=first.etag)
    assert writable.get("x", if_match=info.etag) == data


def test_a_copy_has_content_and_metadata(case: StoreCase, writable: WritableStore) -> None:
    source = writable.upload(
        "from", Bytes(b"data"), metadata={"Key": "v", MTIME: format_mtime(1_500_000_000_123_456_789)}
    )
    info = writable.copy(source, "to/ü %")
    assert writable.get("to/ü %", if_match=info.etag) == b"data"
    assert dict(writable.head("to/ü %").metadata) == dict(writable.head("from").metadata)
    if not case.keeps_metadata:
        assert info.mtime_ns == source.mtime_ns == 1_500_000_000_123_456_789
    with pytest.raises(PreconditionFailedError):
        writable.copy(source, "to/ü %", if_none_match=True)
    changed = writable.put("from", b"other")
    for if_none_match in (False, True):
        with pytest.raises(PreconditionFailedError):
            writable.copy(source, "elsewhere", if_none_match=if_none_match)
    writable.delete("from")
    with pytest.raises((BlobNotFoundError, PreconditionFailedError)):
        writable.copy(changed, "elsewhere")


def test_metadata_can_be_replaced_without_the_content(case: StoreCase, writable: WritableStore) -> None:
    old = writable.put("x", b"data", metadata={"a": "1"})
    new = writable.set_metadata(old, {MTIME: format_mtime(time.time_ns() - 10**12)})
    assert new == writable.head("x") and new.etag != old.etag
    assert dict(new.metadata) == ({MTIME: new.metadata.get(MTIME)} if case.keeps_metadata else {})
    with pytest.raises(PreconditionFailedError):
        writable.set_metadata(old, {})


def test_asking_whether_it_is_writable_leaves_no_trace(writable: WritableStore) -> None:
    writable.check_writable()
    assert [info for page in writable.list() for info in page.objects] == []


def test_a_directory_may_be_more_than_a_name(store: ObjectStore) -> None:
    if not isinstance(store, HasDirectories):
        return
    store.make_directory("a/b")
    store.make_directory("a/b")
    assert [page.prefixes for page in store.list("a/", delimiter=True)] == [["a/b/"]]
    store.remove_directory("a/b")
    store.remove_directory("a/b")
    assert [page.prefixes for page in store.list("a/", delimiter=True)] == [[]]


@given(
    st.lists(st.integers(0, 40)), st.integers(0, 200), st.lists(st.integers(0, 220), unique=True), st.integers(1, 30)
)
def test_plans_cover_a_blob_and_keep_only_what_is_unchanged(
    present: list[int], size: int, cuts: list[int], block: int
) -> None:
    blocks = [Committed(f"id{index}", length) for index, length in enumerate(present)]
    cuts.sort()
    unchanged = list(zip(cuts[::2], cuts[1::2], strict=False))
    plan = plan_blocks(size, blocks, unchanged, block)
    assert [part.start for part in plan] == [sum(other.size_bytes for other in plan[:n]) for n in range(len(plan))]
    assert sum(part.size_bytes for part in plan) == size
    starts = {f"id{index}": sum(present[:index]) for index in range(len(present))}
    for part in plan:
        if part.id:
            assert starts[part.id] == part.start
            assert any(first <= part.start and part.start + part.size_bytes <= last for first, last in unchanged)
        else:
            assert 0 < part.size_bytes <= block


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_times_survive_as_text(mtime_ns: int) -> None:
    assert parse_mtime(format_mtime(mtime_ns)) == mtime_ns
    assert parse_mtime("2020-02-30T00:00:00Z") is None
