"""Renaming over a file of which something was still to be sent: the sending must not come after the copy."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from amlmount.errors import NetworkError
from amlmount.stores.base import ObjectInfo
from amlmount.stores.memory import MemoryStore
from writing.ground import RDWR, Tree, content_of, opened

DEADLINE_S, MEANWHILE_S = 20.0, 0.3


class SlowCopies(MemoryStore):
    """A store that has made a copy long before it says so."""

    def __init__(self) -> None:
        super().__init__(is_local=False)
        self.meanwhile: Callable[[], None] = lambda: None

    def copy(self, source: ObjectInfo, name: str, *, if_none_match: bool = False) -> ObjectInfo:
        """Copy, and let other things happen before it is known."""
        made = super().copy(source, name, if_none_match=if_none_match)
        self.meanwhile()
        return made


def send_all(tree: Tree) -> None:
    tree.files.uploads.hurry()
    tree.files.uploads.work_off()


@pytest.mark.parametrize("is_closed", [False, True])
def test_name_rename_over_unsent(tmp_path: Path, is_closed: bool) -> None:
    store = SlowCopies()
    with opened(store, tmp_path, durability="journal", list_ttl_s=1000.0) as tree:
        tree.write("new", b"new")
        send_all(tree)
        old = tree.create("name", RDWR)
        old.write(0, b"old 1")
        old.fsync()
        senders = []

        def meanwhile() -> None:
            for text in (b"old 2", b"old 33"):
                senders.append(threading.Thread(target=send_all, args=(tree,)))
                senders[-1].start()
                senders[-1].join(MEANWHILE_S)
                old.write(0, text)
                old.fsync()
            if is_closed:
                old.close()

        store.meanwhile = meanwhile
        tree.rename("new", "name")
        for sender in senders:
            sender.join(DEADLINE_S)
            assert not sender.is_alive()
        assert tree.files.drain(DEADLINE_S)
        assert tree.read("name") == b"new"
        if not is_closed:
            assert old.read() == b"old 33"
            old.close()
        assert tree.files.drain(DEADLINE_S)
        tree.later(5000)
        assert tree.read("name") == b"new"
        assert content_of(store) == {"name": b"new"}


def test_name_rename_unheard(tmp_path: Path) -> None:
    store = SlowCopies()
    with opened(store, tmp_path, durability="journal", list_ttl_s=1000.0) as tree:
        old = tree.create("name", RDWR)  # its number is lower than the other's
        tree.write("new", b"new")
        send_all(tree)
        old.write(0, b"old")
        old.close()

        def meanwhile() -> None:
            raise NetworkError("cannot reach the store")

        store.meanwhile = meanwhile
        with pytest.raises(OSError) as caught:
            tree.rename("new", "name")
        assert caught.value.errno in (errno.EIO, errno.ETIMEDOUT)
        assert tree.files.drain(DEADLINE_S)
        assert content_of(store) == {"name": b"old", "new": b"new"}
        assert tree.read("name") == b"old" and tree.read("new") == b"new"
