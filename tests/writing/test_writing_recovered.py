"""Names of files that a start from the journal sends: also for who began to list before they were in the store."""

import os
import threading
from pathlib import Path

from amlmount.errors import NetworkError
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.nodes import DirectoryNode
from amlmount.vfs.writing.livefile import State
from amlmount.vfs.writing.recovery import _Recovery
from writing.ground import content_of, open_tree, opened


class Reached(threading.Event):
    """A store takes something only when it can be reached: `MemoryStore(before=...)`. `patience_s`: for that."""

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self._patience_s = patience_s

    def __call__(self, operation: str, name: str) -> None:
        if operation == "put" and not self.wait(self._patience_s):
            raise NetworkError("cannot reach it")


def test_a_listing_that_was_begun_before_a_file_was_sent_shows_it(tmp_path: Path) -> None:
    tree = open_tree(MemoryStore(before=Reached(0.0)), tmp_path, durability="journal")
    tree.write("late", b"data")
    tree.files.close()
    reached = Reached(30.0)
    store = MemoryStore(before=reached)
    with opened(store, tmp_path) as tree:
        begun_at = tree.clock()
        reached.set()
        assert tree.files.drain(30.0) and content_of(store) == {"late": b"data"}
        root = tree.files.root()
        assert isinstance(root, DirectoryNode)
        found = tree.files.own.amend(root, {}, begun_at)
        assert [(name, node.size_bytes, node.parent_id) for name, node in found.items()] == [(b"late", 4, root.node_id)]
        assert tree.files.own.amend(root, {}, tree.clock()) == {}, "a later listing has it from the store"
        assert tree.read("late") == b"data"


def test_a_file_that_was_just_being_cut_is_not_taken_for_stored(tmp_path: Path) -> None:
    """Its data file was, and no record says so: who asked for it asks again, and finds it as long as it should be."""
    with opened(MemoryStore(), tmp_path) as tree:
        state = State(7, 1, 1, "data", "a", etag="1", size=4, base_size=4, change=3, stored=3, has_data=True)
        os.close(tree.files.disk.open(state.data_name, create=True))
        _Recovery(tree.files)._measure(state)
        assert state.size == 0 and state.change > state.stored
