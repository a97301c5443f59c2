"""Random operations on a writable file system and on a local directory side by side: the same answers, the same end.

Short in CI; CONTRIBUTING.md says how all random tests of writing are run in full.
"""

import contextlib
import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from amlmount.stores.azure import open_azure
from amlmount.stores.base import ObjectStore
from amlmount.stores.local import LocalStore
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.writing import reading as writing_reading
from fakeblob import FakeBlobService
from writing.ground import Handle, Tree, content_of, open_tree
from writing.lengths import EXAMPLES, STEPS

NAMES = ["a", "b", "c.txt", "d", "e", "ü"]
PATHS = [*NAMES, *(f"{top}/{name}" for top in ("d", "e") for name in NAMES), "d/d/a", "d/d/b", "e/d/a"]
paths = st.sampled_from(PATHS)
contents = st.binary(max_size=40)
offsets = st.integers(0, 60)
# Where POSIX leaves room, or a kernel checks before a file system is asked.
ALIKE = {
    errno.EPERM: errno.EISDIR,
    errno.EEXIST: errno.ENOTEMPTY,
    errno.EBUSY: errno.ENOTEMPTY,
    errno.ENOTDIR: errno.ENOENT,
}


@dataclass
class Pair:
    """A file open on both sides."""

    mine: Handle
    theirs: int


class Sides(RuleBasedStateMachine):
    """`mine` is the file system under test, `theirs` a directory of the machine."""

    make_store: Callable[[], tuple[ObjectStore, Callable[[], None]]]
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="amlmount-model-"))
        self.store, self.end_store = type(self).make_store()
        (self.root / "theirs").mkdir()
        self.tree: Tree = self.start()
        self.pairs: list[Pair] = []

    def start(self) -> Tree:
        return open_tree(self.store, self.root / "state", **self.options)

    def path(self, path: str) -> str:
        return str(self.root / "theirs" / path)

    def both(self, mine: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[Any, Any]:
        """Do it on both sides; the same errors come of it, or none."""
        results, errors = [], []
        for act in (theirs, mine):
            try:
                results.append(act())
                errors.append(0)
            except OSError as error:
                results.append(None)
                errors.append(ALIKE.get(error.errno or 0, error.errno or 0))
        assert errors[0] == errors[1], f"the directory says {errors[0]}, the mount {errors[1]}"
        return results[1], results[0]

    @rule(path=paths, data=contents)
    def write(self, path: str, data: bytes) -> None:
        def theirs() -> None:
            with open(self.path(path), "wb") as file:
                file.write(data)

        self.both(lambda: self.tree.write(path, data), theirs)

    @rule(path=paths, data=contents)
    def append(self, path: str, data: bytes) -> None:
        def mine() -> None:
            with self.tree.open(path, os.O_RDWR | os.O_APPEND) as handle:
                handle.write(handle.node.size_bytes, data)

        def theirs() -> None:
            with open(self.path(path), "r+b") as file:
                file.seek(0, os.SEEK_END)
                file.write(data)

        if not os.path.isdir(self.path(path)):
            self.both(mine, theirs)

    @rule(path=paths, size=offsets)
    def truncate(self, path: str, size: int) -> None:
        self.both(lambda: self.tree.truncate(path, size), lambda: os.truncate(self.path(path), size))

    @rule(path=paths)
    def exclusively(self, path: str) -> None:
        def mine() -> None:
            self.tree.create(path, os.O_RDWR | os.O_EXCL).close()

        self.both(mine, lambda: os.close(os.open(self.path(path), os.O_CREAT | os.O_EXCL | os.O_RDWR)))

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        self.both(lambda: self.tree.unlink(path), lambda: os.unlink(self.path(path)))

    @rule(path=paths)
    def mkdir(self, path: str) -> None:
        self.both(lambda: self.tree.mkdir(path), lambda: os.mkdir(self.path(path)))

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        self.both(lambda: self.tree.rmdir(path), lambda: os.rmdir(self.path(path)))

    @rule(old=paths, new=paths)
    def rename(self, old: str, new: str) -> None:
        if f"{new}/".startswith(f"{old}/") or f"{old}/".startswith(f"{new}/"):
            return  # the kernel sees to that
        self.both(lambda: self.tree.rename(old, new), lambda: os.rename(self.path(old), self.path(new)))

    @rule(path=paths, flags=st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC]), make=st.booleans())
    def open(self, path: str, flags: int, make: bool) -> None:
        if os.path.isdir(self.path(path)) or len(self.pairs) > 5:
            return
        makes = make and flags & os.O_RDWR
        mine = (lambda: self.tree.create(path, flags)) if makes else (lambda: self.tree.open(path, flags))
        got = self.both(mine, lambda: os.open(self.path(path), flags | (os.O_CREAT if makes else 0)))
        if got[0] is not None:
            self.pairs.append(Pair(*got))

    @precondition(lambda self: self.pairs)
    @rule(which=st.integers(0, 10), offset=offsets, data=contents)
    def write_open(self, which: int, offset: int, data: bytes) -> None:
        pair = self.pairs[which % len(self.pairs)]
        if pair.mine.writable:
            pair.mine.write(offset, data)
            os.pwrite(pair.theirs, data, offset)
            if not data:
                assert pair.mine.node.size_bytes >= os.fstat(pair.theirs).st_size
                pair.mine.truncate(os.fstat(pair.theirs).st_size)

    @precondition(lambda self: self.pairs)
    @rule(which=st.integers(0, 10), size=offsets)
    def truncate_open(self, which: int, size: int) -> None:
        pair = self.pairs[which % len(self.pairs)]
        if pair.mine.writable:
            pair.mine.truncate(size)
            os.ftruncate(pair.theirs, size)

    @precondition(lambda self: self.pairs)
    @rule(which=st.integers(0, 10))
    def fsync_open(self, which: int) -> None:
        pair = self.pairs[which % len(self.pairs)]
        if pair.mine.writable:
            pair.mine.fsync()

    @precondition(lambda self: self.pairs)
    @rule(which=st.integers(0, 10))
    def read_open(self, which: int) -> None:
        pair = self.pairs[which % len(self.pairs)]
        assert pair.mine.read() == os.pread(pair.theirs, 1 << 20, 0)

    @precondition(lambda self: self.pairs)
    @rule(which=st.integers(0, 10))
    def close(self, which: int) -> None:
        pair = self.pairs.pop(which % len(self.pairs))
        pair.mine.close()
        os.close(pair.theirs)

    @rule()
    def later(self) -> None:
        self.tree.later()

    @rule()
    def forget(self) -> None:
        if not self.pairs:
            self.tree.forget()

    @precondition(lambda self: not self.pairs)
    @rule(is_tidy=st.booleans())
    def start_anew(self, is_tidy: bool) -> None:
        if is_tidy:
            assert self.tree.files.drain(20)
        self.tree.files.close()
        self.tree = self.start()

    @invariant()
    def same(self) -> None:
        assert self.mine_now() == self.theirs_now()

    def mine_now(self) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}

        def walk(node_id: int, path: str) -> None:
            for node in self.tree.files.list_dir(node_id):
                self.tree.hold(node)
                name = path + node.name.decode()
                if node.kind.value == "directory":
                    found[name] = None
                    walk(node.node_id, f"{name}/")
                else:
                    found[name] = bytes(self.tree.files.read(node.node_id, 0, 1 << 20))
                    assert len(found[name] or b"") == node.size_bytes

        walk(1, "")
        return found

    def theirs_now(self) -> dict[str, bytes | None]:
        top = self.root / "theirs"
        return {
            str(path.relative_to(top)): path.read_bytes() if path.is_file() else None for path in sorted(top.rglob("*"))
        }

    def teardown(self) -> None:
        try:
            for pair in self.pairs:
                pair.mine.close()
                os.close(pair.theirs)
            assert self.tree.files.drain(20)
            stored = {name: data for name, data in content_of(self.store).items() if not self.is_marker(name)}
            assert stored == {name: data for name, data in self.theirs_now().items() if data is not None}
            assert self.tree.files.writing_stats().kept == []
        finally:
            self.tree.files.close()
            with contextlib.suppress(Exception):
                self.end_store()
            shutil.rmtree(self.root)

    def is_marker(self, name: str) -> bool:
        return self.store.head(name).metadata.get("hdi_isfolder") == "true"


def memory() -> tuple[ObjectStore, Callable[[], None]]:
    return MemoryStore(), lambda: None


def far_memory() -> tuple[ObjectStore, Callable[[], None]]:
    return MemoryStore(is_local=False), lambda: None


def local() -> tuple[ObjectStore, Callable[[], None]]:
    root = tempfile.mkdtemp(prefix="amlmount-store-")
    return LocalStore(root), lambda: shutil.rmtree(root)


def fake() -> tuple[ObjectStore, Callable[[], None]]:
    service = FakeBlobService()
    return open_azure(service.definition()), service.close


STORES = [memory, far_memory, local, fake]


def case_of(make_store: Any, **options: Any) -> type[Sides]:
    return type("Case", (Sides,), {"make_store": staticmethod(make_store), "options": options})


@pytest.fixture(autouse=True, params=["fetched whole", "in part"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are changed are fetched first, or only what is changed of them is here."""
    if request.param == "in part":
        monkeypatch.setattr(writing_reading, "WHOLE_BYTES", 4)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("make_store", STORES)
def test_name_behaves(make_store: Any) -> None:
    run_state_machine_as_test(
        case_of(make_store, durability="store"),
        settings=settings(
            max_examples=EXAMPLES if make_store is memory else max(EXAMPLES // 3, 2),
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


class Dice:
    """Operations at random, by a seed: Hypothesis cannot replay what goes on in the background."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def path(self) -> str:
        return self.random.choice(PATHS)

    def data(self) -> bytes:
        return self.random.randbytes(self.random.randint(0, 40))

    def offset(self) -> int:
        return self.random.randint(0, 60)

    def operation(self, sides: Sides) -> tuple[str, dict[str, Any]]:
        """Return a method of Sides and what to call it with."""
        which, flags = self.random.randint(0, 10), [os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC]
        always: dict[str, dict[str, Any]] = {
            "write": {"path": self.path(), "data": self.data()},
            "append": {"path": self.path(), "data": self.data()},
            "truncate": {"path": self.path(), "size": self.offset()},
            "exclusively": {"path": self.path()},
            "unlink": {"path": self.path()},
            "mkdir": {"path": self.path()},
            "rmdir": {"path": self.path()},
            "rename": {"old": self.path(), "new": self.path()},
            "open": {"path": self.path(), "flags": self.random.choice(flags), "make": self.random.random() < 0.5},
            "later": {},
            "forget": {},
        }
        opened: dict[str, dict[str, Any]] = {
            "write_open": {"which": which, "offset": self.offset(), "data": self.data()},
            "truncate_open": {"which": which, "size": self.offset()},
            "fsync_open": {"which": which},
            "read_open": {"which": which},
            "close": {"which": which},
        }
        closed = {"start_anew": {"is_tidy": self.random.random() < 0.5}}
        return self.random.choice(list((always | (opened if sides.pairs else closed)).items()))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("durability", ["journal", "store"])
@pytest.mark.parametrize("make_store", STORES)
def test_it_does_so_with_uploads_in_the_background(make_store: Any, durability: str) -> None:
    for seed in range(EXAMPLES):
        sides, done, dice = case_of(make_store, durability=durability)(), [], Dice(seed)
        try:
            for _ in range(STEPS):
                done.append(dice.operation(sides))
                getattr(Sides, done[-1][0])(sides, **done[-1][1])
                sides.same()
        except BaseException as error:
            error.add_note(f"seed {seed}, lately: {done[-10:]}")
            raise
        finally:
            sides.teardown()
