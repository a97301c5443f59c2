"""Long listings: shown as they arrive, shared, in effect only when complete, and no trace of those that fail."""

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from amlmount.errors import NetworkError
from amlmount.stores.base import Page
from amlmount.stores.memory import MemoryStore
from amlmount.vfs import gathering, listings, probe
from amlmount.vfs.base import Node, NodeKind, WouldBlock
from amlmount.vfs.entries import Entries
from amlmount.vfs.filesystem import BlobFileSystem
from amlmount.vfs.names import HiddenReason
from amlmount.vfs.nodes import DirectoryNode
from flaky_store import FlakyStore
from mounting import until
from test_vfs_read import errno_of
from vfs_trees import FakeClock, make_policy, mount

PAGE = 10


class Paged(FlakyStore):
    """A store far away with short pages, in the order given or as sorted."""

    def __init__(self, *names: str, order: list[str] | None = None) -> None:
        super().__init__(MemoryStore(dict.fromkeys(names, b"x")), is_local=False)
        self._order = order

    def list(self, prefix: str = "", *, delimiter: bool = False, page_size: int = 5000) -> Iterator[Page]:
        self._enter("list")
        infos = {info.name: info for page in self.inner.list("") for info in page.objects}
        cut = {self._shown(name, prefix, delimiter): info for name, info in infos.items() if name.startswith(prefix)}
        names = self._order or sorted(cut)
        for begin in range(0, len(names), PAGE):
            self._enter("page")
            part = names[begin : begin + PAGE]
            files = [name for name in part if not name.endswith("/")]
            yield Page([cut[name] for name in files], [name for name in part if name.endswith("/")])

    def _shown(self, name: str, prefix: str, delimiter: bool) -> str:
        end = name.find("/", len(prefix)) if delimiter else -1
        return name if end < 0 else name[: end + 1]


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gathering, listings, probe):
        monkeypatch.setattr(module, "LONG_PAGE", PAGE)


def names(count: int) -> list[str]:
    return [f"d/{number:04d}" for number in range(count)]


def directory(fs: BlobFileSystem) -> int:
    return fs.lookup(1, b"d").node_id


def shown(nodes: list[Node]) -> list[str]:
    return [f"d/{node.name.decode()}" for node in nodes]


def test_first_entries_come_before_the_last_page() -> None:
    store, gate = Paged(*names(95)), threading.Event()
    fs = mount(store)
    node_id = directory(fs)
    store.on("page", lambda: void(gate.wait(10)), nth=4)
    entries = fs.stream_dir(node_id)
    entries.wait_for(29, may_wait=True)
    assert shown(entries.nodes) == names(30)
    assert not is_complete(entries)
    with pytest.raises(WouldBlock):
        entries.wait_for(30, may_wait=False)
    assert fs.lookup(node_id, b"0007").name == b"0007", "what was shown can be looked up"
    with pytest.raises(WouldBlock):
        fs.lookup(node_id, b"0094", may_wait=False)
    with pytest.raises(WouldBlock):
        fs.list_dir(node_id, may_wait=False)
    joined = fs.stream_dir(node_id, may_wait=False)
    gate.set()
    entries.wait_for(10**9, may_wait=True)
    assert is_complete(entries) and is_complete(joined)
    assert shown(entries.nodes) == names(95)
    assert list(fs.list_dir(node_id)) == entries.nodes
    assert store.calls["list"] == 2  # the root, and the directory once
    assert fs.statfs().files == 95


def is_complete(entries: Entries) -> bool:
    return entries.is_complete


def void(_: object) -> None:
    return


def test_a_short_listing_is_complete_at_once() -> None:
    fs = mount(Paged(*names(7)))
    entries = fs.stream_dir(directory(fs))
    assert entries.is_complete and shown(entries.nodes) == names(7)
    entries.wait_for(7, may_wait=False)


def test_an_empty_page_is_not_the_end() -> None:
    class Gaps(Paged):
        def list(self, prefix: str = "", *, delimiter: bool = False, page_size: int = 5000) -> Iterator[Page]:
            for page in super().list(prefix, delimiter=delimiter, page_size=page_size):
                yield Page([], [])
                yield page

    fs = mount(Gaps(*names(25)))
    entries = fs.stream_dir(directory(fs))
    entries.wait_for(10**9, may_wait=True)
    assert shown(entries.nodes) == names(25)


def test_a_listing_that_breaks_off_leaves_what_was_before() -> None:
    store, clock = Paged(*names(15)), FakeClock()
    fs = mount(store, clock=clock)
    node_id = directory(fs)
    before = list(fs.list_dir(node_id))
    for name in names(60)[15:]:
        store.inner.put(name, b"new")
    clock.now_s += 121
    known = len(fs._tree.nodes)
    store.fail("page", NetworkError("cannot list"), nth=5)
    entries = fs.stream_dir(node_id)
    held = entries.nodes[20]
    fs.remember(held)
    assert errno_of(lambda: entries.wait_for(10**9, may_wait=True)) == errno.EIO
    until(lambda: fs.last_error is not None)
    assert len(fs._tree.nodes) == known + 1, "only what the kernel holds is kept"
    assert fs.node(held.node_id) is held
    assert fs.statfs().files == len(before)
    assert len(fs.list_dir(node_id)) == 60 and fs.last_error is None
    assert fs.lookup(node_id, held.name) is held


def test_pages_that_are_not_in_order_are_in_the_end() -> None:
    order = [*names(40)[20:], *names(40)[:20]]
    fs = mount(Paged(*names(40), order=["d/"]) if not order else _with_order(order))
    entries = fs.stream_dir(directory(fs))
    entries.wait_for(10**9, may_wait=True)
    assert shown(entries.nodes) == order
    assert shown(list(fs.list_dir(directory(fs)))) == names(40)


def _with_order(order: list[str]) -> Paged:
    class Shuffled(Paged):
        def list(self, prefix: str = "", *, delimiter: bool = False, page_size: int = 5000) -> Iterator[Page]:
            self._order = order if prefix == "d/" else None
            return super().list(prefix, delimiter=delimiter, page_size=page_size)

    return Shuffled(*order)


def test_a_blob_hidden_by_a_directory_of_a_later_page_is_reported() -> None:
    between = [f"d/a{chr(code)}" for code in range(ord("!"), ord("/"))]
    fs = mount(Paged("d/a", *between, "d/a/below", "d/b"))
    node_id, changes = directory(fs), []

    def note(where: DirectoryNode, before: dict[bytes, Node]) -> None:
        changes.append((where.node_id, before[b"a"].kind))

    fs.on_change = note
    entries = fs.stream_dir(node_id)
    entries.wait_for(10**9, may_wait=True)
    until(lambda: changes == [(node_id, NodeKind.FILE)])
    assert fs.lookup(node_id, b"a").kind is NodeKind.DIRECTORY
    assert [node.name for node in fs.list_dir(node_id)][-2:] == [b"a", b"b"]
    assert fs.hidden_counts() == {HiddenReason.SHADOWED: 1}


def test_many_readers_share_one_long_listing() -> None:
    store, gate = Paged(*names(200)), threading.Event()
    fs = mount(store)
    node_id = directory(fs)
    store.on("page", lambda: void(gate.wait(10)), nth=3)

    def walk() -> list[str]:
        entries, index = fs.stream_dir(node_id), 0
        found: list[str] = []
        while True:
            entries.wait_for(index, may_wait=True)
            part = entries.nodes[index:]
            if not part and entries.is_complete:
                return found
            found += shown(part)
            index += len(part)

    with ThreadPoolExecutor(8) as pool:
        walks = [pool.submit(walk) for _ in range(8)]
        gate.set()
        assert all(one.result() == names(200) for one in walks)
    assert store.calls["list"] == 2


def test_a_time_of_zero_begins_anew_for_whoever_comes_later() -> None:
    store, gate = Paged(*names(30)), threading.Event()
    fs = mount(store, policy=make_policy(list_ttl_s=0))
    node_id = directory(fs)
    store.on("page", lambda: void(gate.wait(10)), nth=2)
    first = fs.stream_dir(node_id)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(fs.stream_dir, node_id)
        store.inner.put("d/0000a", b"between")
        gate.set()
        entries = later.result()
        entries.wait_for(10**9, may_wait=True)
        first.wait_for(10**9, may_wait=True)
    assert "d/0000a" in shown(entries.nodes)


def test_the_answer_of_the_probe_is_not_asked_for_again() -> None:
    store = Paged("d/x", "d/y", "top")
    fs = mount(store)
    fs.probe()
    assert [node.name for node in fs.list_dir(1)] == [b"d", b"top"]
    assert store.calls["list"] == 1
    long = Paged(*[f"{number:04d}" for number in range(50)])
    fs = mount(long)
    fs.probe()
    assert long.calls["page"] == 1, "a probe does not list what is long"
    assert len(fs.list_dir(1)) == 50
