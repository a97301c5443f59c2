"""Programs that open, unlink and rename the same names at the same time: who has a handle keeps its file, whoever
opens a name that is just going gets what follows it."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from amlmount.errors import NetworkError
from amlmount.stores.azure import open_azure
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.writing import leaving
from amlmount.vfs.writing.livefile import LiveFile
from fakeblob import FakeBlobService
from mounting import until
from writing import racing
from writing.ground import RDONLY, RDWR, WRONLY, Handle, Tree, content_of, opened
from writing.test_writing_mount import mounted, writable_spec

DEADLINE_S, MEANWHILE_S = 20.0, 0.2
FLAGS = [RDONLY, WRONLY, RDWR, WRONLY | os.O_TRUNC]


class Opening(threading.Thread):
    """Another program that opens a name."""

    def __init__(self, tree: Tree, path: str, flags: int) -> None:
        super().__init__(daemon=True)
        self.tree, self.path, self.flags = tree, path, flags
        self.handle: Handle | None = None
        self.errno = 0

    def run(self) -> None:
        try:
            self.handle = self.tree.open(self.path, self.flags)
        except OSError as error:
            self.errno = error.errno or 0

    def join(self, timeout: float | None = DEADLINE_S) -> None:
        super().join(timeout)
        assert timeout != DEADLINE_S or not self.is_alive()


class Store(MemoryStore):
    """A store far away, before one operation of which something happens, once."""

    def __init__(self) -> None:
        super().__init__(is_local=False, before=self.ask)
        self.operation, self.name = "", ""
        self.meanwhile: Callable[[], None] = lambda: None

    def at(self, operation: str, name: str, meanwhile: Callable[[], None]) -> None:
        self.operation, self.name, self.meanwhile = operation, name, meanwhile

    def ask(self, operation: str, name: str) -> None:
        if (operation, name) == (self.operation, self.name):
            self.operation = ""
            self.meanwhile()


def begin_to_open(tree: Tree, flags: int) -> Callable[[], Opening]:
    """Return a function that opens `name` elsewhere, and goes on while that waits."""

    def begin() -> Opening:
        opening = Opening(tree, "name", flags)
        opening.start()
        opening.join(MEANWHILE_S)
        return opening

    return begin


def make_live(tree: Tree, is_live: bool) -> None:
    """Let `name` be a live file that nobody has open, or an ordinary inode that the kernel knows."""
    tree.find("name")
    if is_live:
        tree.open("name", RDWR).close()


@pytest.mark.parametrize("is_live", [False, True])
@pytest.mark.parametrize("flags", FLAGS)
def test_write_unlinked_while_opening(tmp_path: Path, flags: int, is_live: bool) -> None:
    store, found = Store(), list[Opening]()
    store.put("name", b"old")
    with opened(store, tmp_path, list_ttl_s=1000.0) as tree:
        make_live(tree, is_live)
        begin = begin_to_open(tree, flags)
        store.at("delete", "name", lambda: found.append(begin()))
        tree.unlink("name")
        found[0].join()
        assert found[0].errno == errno.ENOENT
        assert content_of(store) == {}


@pytest.mark.parametrize("is_live", [False, True])
@pytest.mark.parametrize("flags", FLAGS)
def test_opening_while_another_file_gets_the_name(tmp_path: Path, flags: int, is_live: bool) -> None:
    store, found = Store(), list[Opening]()
    store.put("name", b"old")
    store.put("new", b"new")
    with opened(store, tmp_path, list_ttl_s=1000.0) as tree:
        make_live(tree, is_live)
        begin = begin_to_open(tree, flags)
        store.at("copy", "name", lambda: found.append(begin()))
        tree.rename("new", "name")
        found[0].join()
        handle = found[0].handle
        assert handle is not None
        assert handle.read() == (b"" if flags & os.O_TRUNC else b"new")
        if flags & os.O_ACCMODE:
            handle.write(0, b"wet")
        handle.close()
        assert content_of(store) == {"name": b"wet" if flags & os.O_ACCMODE else b"new"}


@pytest.mark.parametrize("flags", FLAGS)
def test_opening_while_an_unlink_fails(tmp_path: Path, flags: int) -> None:
    store, found = Store(), list[Opening]()
    store.put("name", b"old")
    with opened(store, tmp_path, list_ttl_s=1000.0) as tree:
        make_live(tree, is_live=True)
        begin = begin_to_open(tree, flags)

        def fail() -> None:
            found.append(begin())
            raise NetworkError("cannot reach the store")

        store.at("delete", "name", fail)
        with pytest.raises(OSError):
            tree.unlink("name")
        found[0].join()
        handle = found[0].handle
        assert handle is not None
        assert handle.read() == (b"" if flags & os.O_TRUNC else b"old")
        handle.close()


def test_what_is_opened_for_writing_before_another_gets_its_name(tmp_path: Path) -> None:
    store, found = Store(), list[Opening]()
    store.put("name", b"old")
    with opened(store, tmp_path, list_ttl_s=1000.0) as tree:
        make_live(tree, is_live=False)
        tree.write("new", b"new")
        new = tree.open("new", RDWR)
        new.write(0, b"NEW")  # so the rename sends it first
        begin = begin_to_open(tree, RDWR)
        store.at("put", "new", lambda: found.append(begin()))
        tree.rename("new", "name")
        found[0].join()
        handle = found[0].handle
        assert handle is not None and handle.read() == b"old"
        handle.write(1, b"LD")
        assert handle.read() == b"oLD"
        handle.fsync()
        handle.close()
        new.close()
        assert content_of(store) == {"name": b"NEW"}


@pytest.mark.parametrize("flags", [RDONLY, RDWR])
def test_what_is_being_read_when_it_is_unlinked(tmp_path: Path, flags: int) -> None:
    store = Store()
    store.put("name", b"old")
    with opened(store, tmp_path, list_ttl_s=1000.0) as tree:
        handle = tree.open("name", flags)
        store.at("get", "name", lambda: tree.unlink("name"))
        assert handle.read() == b"old"
        assert content_of(store) == {}
        handle.close()


def test_a_time_set_while_a_file_is_unlinked(tmp_path: Path) -> None:
    store = Store()
    store.put("name", b"old")
    with opened(store, tmp_path, list_ttl_s=1000.0) as tree:
        handle, setting = tree.open("name", RDWR), list[threading.Thread]()
        failures = list[BaseException]()

        def set_time() -> None:
            try:
                tree.files.set_mtime(handle.node.node_id, 10**18)
            except BaseException as error:
                failures.append(error)

        def meanwhile() -> None:
            setting.append(threading.Thread(target=set_time, daemon=True))
            setting[0].start()
            setting[0].join(MEANWHILE_S)

        store.at("get", "name", meanwhile)
        tree.unlink("name")
        setting[0].join(DEADLINE_S)
        assert not failures
        assert handle.read() == b"old"
        handle.close()


def test_who_was_refused_comes_again_before_the_next_one_is_unlinked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "EXPECTED_S", DEADLINE_S)
    monkeypatch.setattr(leaving, "LONGEST_TURN_S", DEADLINE_S)
    store = Store()
    store.put("name", b"old")
    with opened(store, tmp_path, list_ttl_s=1000.0) as tree:
        old = tree.find("name")
        tree.unlink("name")
        with pytest.raises(OSError) as caught:
            tree.files.open_file(old.node_id, RDWR, who=7)
        assert caught.value.errno == errno.ESTALE
        tree.write("name", b"new")
        unlinking = threading.Thread(target=tree.unlink, args=("name",), daemon=True)
        unlinking.start()
        tree.read("name")  # by somebody else: that is not who is waited for
        unlinking.join(MEANWHILE_S)
        assert unlinking.is_alive()
        node = tree.files.open_file(tree.find("name").node_id, RDWR, who=7)
        unlinking.join(DEADLINE_S)
        assert not unlinking.is_alive()
        handle = Handle(tree, node, writable=True)
        assert handle.read() == b"new"
        handle.close()
        assert content_of(store) == {}


def test_a_name_that_a_process_which_died_had_not_taken_away_yet(tmp_path: Path) -> None:
    store = Store()
    store.put("name", b"old")
    with opened(store, tmp_path, list_ttl_s=1000.0) as tree:
        make_live(tree, is_live=True)
        node = tree.find("name")
        assert isinstance(node, LiveFile)
        node.is_unlinked = True  # as the journal says it after a crash
        opening = Opening(tree, "name", RDWR)
        opening.start()
        opening.join(MEANWHILE_S)
        assert opening.is_alive()
        tree.unlink("name")
        opening.join()
        assert opening.errno == errno.ENOENT
        assert content_of(store) == {}


def test_nobody_is_waited_for_for_ever(tmp_path: Path) -> None:
    store = Store()
    store.put("name", b"old")
    with opened(store, tmp_path, list_ttl_s=1000.0) as tree:
        old = tree.find("name")
        tree.unlink("name")
        with pytest.raises(OSError):
            tree.files.open_file(old.node_id, RDWR)
        tree.write("name", b"new")
        begun_s = time.monotonic()
        tree.unlink("name")
        assert time.monotonic() - begun_s < DEADLINE_S
        assert content_of(store) == {}


def test_what_another_has_made_since_the_kernel_looked_is_opened_for_reading(tmp_path: Path) -> None:
    store = Store()
    store.put("name", b"old")
    with opened(store, tmp_path) as tree:
        handle = tree.create("name", RDONLY)
        assert handle.read() == b"old"
        handle.close()


@pytest.mark.root
@pytest.mark.timeout(120)
def test_programs_that_race_on_the_same_names(mountpoint: str, tmp_path: Path) -> None:
    with closing(FakeBlobService()) as service, closing(open_azure(service.definition())) as store:
        with mounted(writable_spec(service.definition(), mountpoint, str(tmp_path / "state"))):
            racers = [racer(mountpoint, number) for number in range(3)]
            try:
                said = [one.communicate(timeout=60)[0] for one in racers]
            finally:
                for one in racers:
                    one.kill()
            assert said == ["done\n"] * 3
        until(lambda: set(content_of(store)) <= set(racing.NAMES), DEADLINE_S)
        for data in content_of(store).values():
            racing.check(data)


def racer(path: str, number: int) -> "subprocess.Popen[str]":
    argv = [sys.executable, racing.__file__, path, str(number), "3"]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
