"""What stores/base.py promises, held against every store of store_cases."""

import threading
from collections.abc import Callable

import pytest

from amlmount.errors import (
    AmlmountError,
    BlobNotFoundError,
    ContainerNotFoundError,
    PreconditionFailedError,
    UsageError,
)
from amlmount.stores.base import ObjectStore
from contract.store_cases import StoreCase

ODD_NAMES = [
    "plain.jpg",
    "0 - zero/0 - zero_1.jpg",
    "100%/a+b&c=d?e#f",
    "ümläut/日本語/🙂.txt",
    "ends with a dot.",
    "ends with a space ",
    '"quoted" <and> |piped|*[x]{y}~',
    ".hidden/..not-dots/...",
    "back`tick$HOME;'",
    "n" * 255,
]


def names_of(store: ObjectStore, prefix: str = "", *, delimiter: bool = False, page_size: int = 5000) -> list[str]:
    pages = list(store.list(prefix, delimiter=delimiter, page_size=page_size))
    return sorted([info.name for page in pages for info in page.objects] + [p for page in pages for p in page.prefixes])


def test_what_was_put_is_there(store: ObjectStore) -> None:
    put = store.put("dir/file.bin", b"hello")
    assert (put.name, put.size_bytes) == ("dir/file.bin", 5)
    assert store.get("dir/file.bin") == b"hello"
    assert store.head("dir/file.bin") == put
    [listed] = [info for page in store.list() for info in page.objects]
    assert listed == put


def test_an_empty_container_lists_nothing(store: ObjectStore) -> None:
    assert names_of(store) == []
    assert names_of(store, delimiter=True) == []
    assert names_of(store, "no/such/", delimiter=True) == []


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (0, 4, b"0123"),
        (8, 5, b"89"),
        (10, 1, b""),
        (99, 5, b""),
        (2, 0, b""),
    ],
)
def test_ranges_are_cut_at_the_end(store: ObjectStore, start: int, length: int | None, expected: bytes) -> None:
    info = store.put("digits", b"0123456789")
    assert store.get("digits", start, length) == expected
    assert store.get("digits", start, length, if_match=info.etag) == expected


def test_an_empty_blob_reads_as_nothing(store: ObjectStore) -> None:
    info = store.put("empty", b"")
    assert info.size_bytes == 0
    assert store.get("empty") == store.get("empty", 0, 10) == b""


def test_a_large_blob_comes_back_whole(store: ObjectStore) -> None:
    data = bytes(range(256)) * (4096 * 5)
    info = store.put("large", data)
    assert store.get("large", if_match=info.etag) == data
    assert store.get("large", 4_000_001, 70_000) == data[4_000_001 : 4_000_001 + 70_000]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_come_back_as_they_went_in(store: ObjectStore, name: str) -> None:
    store.put(name, name.encode())
    assert names_of(store) == [name]
    assert store.get(name) == name.encode()
    store.delete(name)
    assert names_of(store) == []


@pytest.mark.parametrize("name", ["../up", "a/../../up", "/absolute", "a//b", "a/./b", "trailing/", ".", "..", "nul\0"])
def test_a_name_is_held_or_refused_and_never_something_else(case: StoreCase, store: ObjectStore, name: str) -> None:
    store.put("up", b"right")
    try:
        store.put(name, b"odd")
    except UsageError:
        for ask in (store.get, store.head, store.delete):
            with pytest.raises(BlobNotFoundError):
                ask(name)
        assert not case.any_name or name not in ("/absolute", "a//b", "trailing/")
        assert names_of(store) == ["up"]
    else:
        assert store.get(name) == b"odd"
        assert names_of(store) == sorted(["up", name])
    assert store.get("up") == b"right"


def test_a_prefix_is_a_string_not_a_directory(store: ObjectStore) -> None:
    for name in ["a", "ab/x", "abc", "b/ab", "ab/y/z"]:
        store.put(name, b"")
    assert names_of(store, "ab") == ["ab/x", "ab/y/z", "abc"]
    assert names_of(store, "ab/") == ["ab/x", "ab/y/z"]
    assert names_of(store, "ab", delimiter=True) == ["ab/", "abc"]


def test_the_delimiter_cuts_at_the_next_slash(store: ObjectStore) -> None:
    for name in ["top", "a/1", "a/2", "a/b/3", "c/d/e/4"]:
        store.put(name, b"x")
    assert names_of(store, delimiter=True) == ["a/", "c/", "top"]
    assert names_of(store, "a/", delimiter=True) == ["a/1", "a/2", "a/b/"]
    assert names_of(store, "c/", delimiter=True) == ["c/d/"]


def test_pages_hold_no_more_than_asked_and_miss_nothing(store: ObjectStore) -> None:
    names = sorted(f"p/{number:03}" for number in range(25))
    for name in names:
        store.put(name, b"")
    pages = list(store.list("p/", page_size=10))
    assert all(len(page.objects) + len(page.prefixes) <= 10 for page in pages)
    assert sorted(info.name for page in pages for info in page.objects) == names
    assert names_of(store, "p/", delimiter=True, page_size=7) == names


def test_a_listing_can_be_left_half_way(store: ObjectStore) -> None:
    for number in range(5):
        store.put(f"{number}", b"")
    first = next(store.list(page_size=2))
    assert len(first.objects) == 2
    assert len(names_of(store)) == 5


def test_what_is_not_there_is_not_found(store: ObjectStore) -> None:
    store.put("dir/file", b"")
    for name in ["nothing", "dir", "dir/file/below", "dir/nothing"]:
        for ask in (store.get, store.head, store.delete):
            with pytest.raises(BlobNotFoundError, match="cannot"):
                ask(name)


def test_the_etag_changes_with_the_content(store: ObjectStore) -> None:
    etags = [store.put("same", data).etag for data in (b"aaaa", b"bbbb", b"aaaa", b"bbbb")]
    assert len(set(etags)) == 4
    assert store.head("same").etag == etags[-1]
    assert '"' not in etags[-1]


def test_a_read_of_another_version_is_refused(store: ObjectStore) -> None:
    old = store.put("file", b"old")
    new = store.put("file", b"new")
    assert store.get("file", if_match=new.etag) == b"new"
    with pytest.raises(PreconditionFailedError, match="cannot read"):
        store.get("file", if_match=old.etag)


def test_put_if_match_replaces_only_that_version(store: ObjectStore) -> None:
    old = store.put("file", b"old")
    new = store.put("file", b"new", if_match=old.etag)
    for name in ("file", "none"):
        with pytest.raises(PreconditionFailedError, match="cannot write"):
            store.put(name, b"x", if_match=old.etag)
    assert store.get("file") == b"new"
    assert store.head("file") == new
    assert names_of(store) == ["file"]


def test_put_if_none_match_never_replaces(store: ObjectStore) -> None:
    first = store.put("file", b"first", if_none_match=True)
    with pytest.raises(PreconditionFailedError):
        store.put("file", b"second", if_none_match=True)
    assert store.get("file", if_match=first.etag) == b"first"


def test_delete_if_match_deletes_only_that_version(store: ObjectStore) -> None:
    old = store.put("file", b"old")
    new = store.put("file", b"new")
    with pytest.raises(PreconditionFailedError, match="cannot delete"):
        store.delete("file", if_match=old.etag)
    store.delete("file", if_match=new.etag)
    assert names_of(store) == []
    with pytest.raises(BlobNotFoundError):
        store.delete("file")


def test_metadata_comes_back_in_lower_case_or_not_at_all(case: StoreCase, store: ObjectStore) -> None:
    store.put("file", b"x", metadata={"Key": "Value"})
    expected = {"key": "Value"} if case.keeps_metadata else {}
    assert dict(store.head("file").metadata) == expected
    [listed] = [info for page in store.list(delimiter=True) for info in page.objects]
    assert dict(listed.metadata) == expected


def test_a_missing_container_says_so(case: StoreCase, request: pytest.FixtureRequest) -> None:
    if case.open_missing is None:
        return  # a dictionary cannot be missing
    with case.open_missing(request) as store:
        asks: list[Callable[[], object]] = [
            lambda: names_of(store),
            lambda: names_of(store, "a/", delimiter=True),
            lambda: store.get("a"),
            lambda: store.head("a"),
            lambda: store.put("a", b""),
            lambda: store.delete("a"),
        ]
        for ask in asks:
            with pytest.raises(ContainerNotFoundError, match="cannot"):
                ask()


def in_threads(count: int, work: Callable[[int], object]) -> list[object]:
    """Run `work(i)` in threads that start together; return results, with errors in place of them."""
    results: list[object] = [None] * count
    gate = threading.Barrier(count)

    def run(index: int) -> None:
        gate.wait()
        try:
            results[index] = work(index)
        except AmlmountError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_many_that_create_one_wins(store: ObjectStore) -> None:
    for attempt in range(3):
        results = in_threads(6, lambda i, a=attempt: store.put(f"one{a}", b"%d" % i, if_none_match=True))  # type: ignore[misc]
        lost = [result for result in results if isinstance(result, PreconditionFailedError)]
        assert len(lost) == 5
        [winner] = [index for index, result in enumerate(results) if result not in lost]
        assert store.get(f"one{attempt}") == b"%d" % winner


def test_conditional_puts_lose_no_increment(store: ObjectStore) -> None:
    store.put("count", b"0")

    def increment(_: int) -> None:
        for _ in range(5):
            while True:
                etag = store.head("count").etag
                try:
                    number = int(store.get("count", if_match=etag))
                    store.put("count", b"%d" % (number + 1), if_match=etag)
                    break
                except PreconditionFailedError:
                    continue

    assert in_threads(4, increment) == [None] * 4
    assert store.get("count") == b"20"


def test_a_reader_never_sees_two_versions_mixed(store: ObjectStore) -> None:
    size = 300_000
    store.put("file", b"0" * size)
    stop = threading.Event()

    def write() -> None:
        for number in range(20):
            store.put("file", b"%d" % (number % 10) * size)
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not stop.is_set():
            info = store.head("file")
            try:
                data = store.get("file", if_match=info.etag)
            except PreconditionFailedError:
                continue
            assert len(data) == size and len(set(data)) == 1
    finally:
        writer.join()
