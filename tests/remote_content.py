"""What tests of reading from a store far away share: the store, file systems of it, looking and waiting."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from amlmount.config.spec import Policy
from amlmount.stores.memory import MemoryStore
from amlmount.vfs import open_filesystem
from amlmount.vfs.filesystem import BlobFileSystem
from flaky_store import FlakyStore
from vfs_trees import find, make_policy, make_spec, source

MIB = 1 << 20
BIG = bytes(range(256)) * (40 * MIB // 256)
Open = Callable[..., BlobFileSystem]


def policy(**values: object) -> Policy:
    defaults = {
        "read_ahead_max_bytes": 16 * MIB,
        "prefetch_small_bytes": 128 << 10,
        "prefetch_budget_bytes": 64 * MIB,
        "cache_on_disk": True,
    }
    return make_policy().model_copy(update=defaults | values)


class Remote(FlakyStore):
    """A store far away, which notes every range that was asked for."""

    def __init__(self, content: dict[str, bytes]) -> None:
        super().__init__(MemoryStore(content), is_local=False)
        self.ranges: list[tuple[str, int, int]] = []

    def get(self, name: str, start: int = 0, length: int | None = None, *, if_match: str | None = None) -> bytes:
        assert if_match, "a request without If-Match"
        self.ranges.append((name, start, length or 0))
        return super().get(name, start, length, if_match=if_match)

    @property
    def asked_bytes(self) -> int:
        return sum(length for _, _, length in self.ranges)


@contextmanager
def opening(cache_dir: str) -> Iterator[Open]:
    """Yield what opens file systems of a store far away, with this cache directory unless told otherwise."""
    files: list[BlobFileSystem] = []

    def open_one(store: Remote, rules: Policy | None = None, *, cache: str | None = cache_dir) -> BlobFileSystem:
        spec = make_spec([source()], rules or policy()).model_copy(update={"cache_dir": cache})
        files.append(open_filesystem(spec, stores={"data": store}))
        return files[-1]

    try:
        yield open_one
    finally:
        for one in files:
            one.close()


def read_all(fs: BlobFileSystem, node_id: int, size: int, step: int = 128 << 10) -> bytes:
    return b"".join(bytes(fs.read(node_id, offset, step)) for offset in range(0, size, step))


def errno_of(ask: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        ask()
    return caught.value.errno


def many(count: int = 300, size: int = 100) -> dict[str, bytes]:
    return {f"d/{n:05d}": bytes([n % 251]) * size for n in range(count)}


def wait(gate: threading.Event) -> None:
    gate.wait(10)


def settle(count: Callable[[], int]) -> None:
    """Wait until a count stays as it is."""
    last = -1
    while (now := count()) != last:
        last = now
        time.sleep(0.1)


def is_kept(fs: BlobFileSystem, name: str) -> bool:
    assert fs._content is not None
    return fs._content.is_kept(fs.node(find(fs, name)))  # type: ignore[arg-type]
