"""Handles over the death of a process: each counts once, however far its OPEN or RELEASE had come without an answer."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amlmount.config.profiles import PROFILES
from amlmount.config.spec import Ownership
from amlmount.fuse.handles import Ledger
from amlmount.fuse.protocol import OPEN_OUT, UNIQUE_RESEND, Opcode, OpenIn, ReleaseIn, Request
from amlmount.fuse.writing import WritingAdapter
from amlmount.stores.local import LocalStore
from amlmount.vfs.writing import WritableFileSystem
from amlmount.vfs.writing.attempts import Attempt
from amlmount.vfs.writing.livefile import LiveFile
from writing.machine import OLD, Machine, World
from writing.powercut import Died, Life

DATA = OLD["dir/one"]


class Served:
    """A machine's file system behind the adapter of one process after the other; `kill` begins the next."""

    def __init__(self, root: Path, store: Any = None) -> None:
        self.machine, self.memory = Machine(root, "store"), memoryview(bytearray(4096))
        if store is not None:
            self.machine.store = store
        self.start(takes_over=False)
        self.node_id = self.world.tree.find("dir/one").node_id

    def start(self, *, takes_over: bool) -> None:
        self.world: World = self.machine.start(Life(), takes_over=takes_over, prepare=self._answer)

    def kill(self) -> None:
        self.start(takes_over=True)

    def _answer(self, files: WritableFileSystem) -> None:
        ownership = Ownership(uid=0, gid=0, file_mode=0, dir_mode=0)
        self.adapter = WritingAdapter(files, PROFILES["checkpoint"], ownership, ledger=Ledger(self.memory))

    def open(self, unique: int, flags: int = os.O_RDWR) -> int:
        reply = self._ask(Opcode.OPEN, unique, OpenIn(flags, 0))
        return int(OPEN_OUT.unpack(reply)[0])

    def release(self, unique: int, handle: int) -> None:
        self._ask(Opcode.RELEASE, unique, ReleaseIn(handle, 0, 0, 0))

    def _ask(self, opcode: Opcode, unique: int, body: OpenIn | ReleaseIn) -> bytes:
        reply = self.adapter.handle(Request(opcode, unique, self.node_id, 0, 0, 0, body), may_wait=True)
        assert reply is not None
        return bytes(reply)

    def unlink(self) -> None:
        self.world.tree.unlink("dir/one")

    def read(self) -> bytes:
        return bytes(self.world.tree.files.read(self.node_id, 0, 100))

    @property
    def opens(self) -> int:
        node = self.world.tree.files.known(self.node_id)
        return node.opens if isinstance(node, LiveFile) else self.world.tree.files._readers[self.node_id]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path)
    yield one
    one.world.tree.files.close()


def begun(served: Served, handle: int) -> None:
    """Die where the handle is forgotten and the file is not closed."""
    served.adapter._inodes.leave(handle)


def carried_out(served: Served, handle: int) -> None:
    """Die where only the answer is missing."""
    served.release(3, handle)


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDONLY])
@pytest.mark.parametrize("come", [begun, carried_out])
def test_a_close_that_is_asked_for_again_counts_once(
    served: Served, come: Callable[[Served, int], None], flags: int
) -> None:
    first, second = served.open(1, flags), served.open(2, flags)
    come(served, first)
    served.kill()
    served.release(3 | UNIQUE_RESEND, first)
    assert served.opens == 1
    served.unlink()
    assert served.read() == DATA
    served.release(4, second)
    assert served.opens == 0


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDONLY])
def test_an_open_that_is_asked_for_again_counts_once(served: Served, flags: int) -> None:
    handle = served.open(1, flags)
    served.kill()
    assert served.open(1 | UNIQUE_RESEND, flags) == handle
    assert served.opens == 1
    served.release(2, handle)
    assert served.opens == 0


def test_who_reads_a_file_keeps_it_when_it_is_unlinked_by_a_later_process(served: Served) -> None:
    handle = served.open(1, os.O_RDONLY)
    served.kill()
    served.unlink()
    assert served.read() == DATA
    served.release(2, handle)


def test_what_was_written_is_sent_if_its_close_was_only_begun(served: Served) -> None:
    handle = served.open(1)
    served.world.tree.files.write(served.node_id, 0, b"new")
    begun(served, handle)
    served.kill()
    served.release(2 | UNIQUE_RESEND, handle)
    served.world.tree.files.uploads.work_off()
    assert served.machine.store.get("dir/one") == b"new"


def test_an_unlink_that_is_asked_for_again_finds_the_blob_gone(served: Served) -> None:
    """Else the kernel asks once more, as somebody new, and the program is told that there is no such file."""
    handle = served.open(1, os.O_RDONLY)
    served.world.tree.files.ledger.trying(7)
    served.machine.store.delete("dir/one")
    served.kill()
    tree = served.world.tree
    tree.names.unlink(*tree.parent("dir/one"), Attempt(tree.files.ledger, 7, is_again=True))
    assert tree.list("dir") == ["two"]
    served.release(2, handle)


@pytest.mark.parametrize("dies_in", ["journal", "records"])
def test_a_directory_that_was_being_renamed_is_known_under_one_name(tmp_path: Path, dies_in: str) -> None:
    """What a successor is told of names is one step: it has the old directory, or all of the new one."""
    for name, data in OLD.items():
        (tmp_path / "store" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / name).write_bytes(data)
    served = Served(tmp_path, LocalStore(str(tmp_path / "store")))
    handle, tree = served.open(1), served.world.tree
    tree.files.write(served.node_id, 0, b"new")
    tree.files.flush(served.node_id)
    tree.list("dir")
    tree.files.ledger.trying(7)

    def die(_: object) -> None:
        raise Died(dies_in)

    tells = tree.files.ledger if dies_in == "journal" else tree.files
    setattr(tells, "restate" if dies_in == "journal" else "tell_successor", die)
    with pytest.raises(Died):
        tree.renaming.rename(*tree.parent("dir"), *tree.parent("moved"))
    served.kill()
    tree = served.world.tree
    again = Attempt(tree.files.ledger, 7, is_again=True)
    tree.renaming.rename(*tree.parent("dir"), *tree.parent("moved"), attempt=again)
    assert tree.list("moved") == ["one", "two"] and tree.list() == ["moved", "old"]
    assert served.read() == b"new" and tree.read("moved/two") == OLD["dir/two"]
    tree.unlink("moved/one")
    served.release(2, handle)
    tree.files.close()
