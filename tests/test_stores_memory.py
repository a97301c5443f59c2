"""The memory store's own knobs: pages of a test's size, a hook ahead of every operation, contents from a definition."""

import pytest

from amlmount.errors import AmlmountError, ConfigError, NetworkError
from amlmount.stores import open_store
from amlmount.stores.memory import MemoryStore


def test_pages_are_as_small_as_the_test_wants() -> None:
    store = MemoryStore({f"{number}": b"" for number in range(5)}, page_size=2)
    assert [[info.name for info in page.objects] for page in store.list()] == [["0", "1"], ["2", "3"], ["4"]]


def test_blobs_and_prefixes_share_sorted_pages() -> None:
    store = MemoryStore(dict.fromkeys(["a", "b/1", "b/2", "c"], b""), page_size=2)
    pages = list(store.list(delimiter=True))
    assert [([info.name for info in page.objects], page.prefixes) for page in pages] == [(["a"], ["b/"]), (["c"], [])]


def test_the_hook_sees_every_operation_and_may_fail_it() -> None:
    seen: list[tuple[str, str]] = []

    def before(operation: str, name: str) -> None:
        seen.append((operation, name))
        if name == "bad":
            raise NetworkError("cannot reach it")

    store = MemoryStore(before=before, page_size=1)
    store.put("a", b"1")
    store.put("b", b"2")
    list(store.list())
    store.get("a")
    store.head("a")
    store.delete("a")
    with pytest.raises(AmlmountError):
        store.get("bad")
    assert seen == [
        ("put", "a"),
        ("put", "b"),
        ("list", ""),
        ("list_page", ""),
        ("get", "a"),
        ("head", "a"),
        ("delete", "a"),
        ("get", "bad"),
    ]


def test_a_definition_may_hold_contents() -> None:
    store = open_store({"type": "memory", "objects": {"a": "text"}})
    assert store.get("a") == b"text"
    with pytest.raises(ConfigError, match="cannot open a memory store"):
        open_store({"type": "memory", "objects": ["a"]})
