"""What the tests of writing share: a writable file system over a store in one line, and its use by path."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from amlmount.config.spec import MountSpec
from amlmount.stores.base import ObjectStore
from amlmount.vfs.base import ROOT_NODE_ID, Node
from amlmount.vfs.writing import WritableFileSystem, open_writable, recover
from amlmount.vfs.writing.namespace import Namespace
from amlmount.vfs.writing.renaming import Renaming
from vfs_trees import FakeClock, make_policy, make_spec, source

RDONLY, WRONLY, RDWR = os.O_RDONLY, os.O_WRONLY, os.O_RDWR


def spec_for(state_dir: Path, **changes: Any) -> MountSpec:
    """Return a mount of one store called `data`, whose listings last a second."""
    spec = make_spec([source()], make_policy(list_ttl_s=changes.pop("list_ttl_s", 1.0)))
    return spec.model_copy(update={"state_dir": str(state_dir), "read_only": False, "upload_timeout_s": 0.0, **changes})


Result = TypeVar("Result")


def as_the_kernel(act: Callable[[], Result]) -> Result:
    """Walk the path once more when a file system says ESTALE, as namei.c does (retry_estale)."""
    try:
        return act()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return act()


class Tree:
    """A writable file system, used by path, as the kernel uses it for a program."""

    def __init__(self, files: WritableFileSystem, clock: FakeClock) -> None:
        self.files, self.clock = files, clock
        self.names = Namespace(files)
        self.renaming = Renaming(self.names)
        self.held: list[int] = []

    def find(self, path: str) -> Node:
        """Walk a path; every inode met is held, as by the kernel."""
        node = self.files.root()
        for part in [part for part in path.split("/") if part]:
            node = self.files.lookup(node.node_id, part.encode())
            self.hold(node)
        return node

    def hold(self, node: Node) -> None:
        self.files.remember(node)
        self.held.append(node.node_id)

    def forget(self) -> None:
        """Let the kernel forget everything."""
        for node_id in self.held:
            self.files.forget(node_id, 1)
        self.held.clear()

    def parent(self, path: str) -> tuple[int, bytes]:
        above, _, name = path.rpartition("/")
        return (self.find(above).node_id if above else ROOT_NODE_ID), name.encode()

    def create(self, path: str, flags: int = RDWR) -> "Handle":
        node = as_the_kernel(lambda: self.names.create(*self.parent(path), flags | os.O_CREAT))
        self.hold(node)
        return Handle(self, node, writable=True)

    def open(self, path: str, flags: int = RDONLY) -> "Handle":
        node = as_the_kernel(lambda: self.files.open_file(self.find(path).node_id, flags))
        return Handle(self, node, writable=flags & os.O_ACCMODE != os.O_RDONLY)

    def write(self, path: str, data: bytes) -> None:
        """Do what `open(path, "wb").write(data)` and close do."""
        with self.create(path, os.O_WRONLY | os.O_TRUNC) as handle:
            handle.write(0, data)

    def read(self, path: str) -> bytes:
        with self.open(path) as handle:
            return handle.read()

    def unlink(self, path: str) -> None:
        as_the_kernel(lambda: self.names.unlink(*self.parent(path)))

    def mkdir(self, path: str) -> None:
        self.hold(self.names.mkdir(*self.parent(path)))

    def rmdir(self, path: str) -> None:
        self.names.rmdir(*self.parent(path))

    def rename(self, old: str, new: str, *, may_replace: bool = True) -> None:
        as_the_kernel(lambda: self.renaming.rename(*self.parent(old), *self.parent(new), may_replace=may_replace))

    def truncate(self, path: str, size: int) -> None:
        as_the_kernel(lambda: self.files.resize(self.find(path).node_id, size))

    def list(self, path: str = "") -> list[str]:
        return [node.name.decode() for node in self.files.list_dir(self.find(path).node_id)]

    def size(self, path: str) -> int:
        return self.find(path).size_bytes

    def later(self, seconds: float = 10.0) -> None:
        """Let the listings be too old."""
        self.clock.now_s += seconds


class Handle:
    """An open file; leaving the block closes it, with FLUSH and RELEASE as the kernel sends them."""

    def __init__(self, tree: Tree, node: Node, *, writable: bool) -> None:
        self.tree, self.node, self.writable, self.is_open = tree, node, writable, True

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_open:
            self.close()

    def write(self, offset: int, data: bytes) -> None:
        assert self.tree.files.write(self.node.node_id, offset, data) == len(data)

    def read(self, offset: int = 0, length: int = 1 << 40) -> bytes:
        return bytes(self.tree.files.read(self.node.node_id, offset, length))

    def truncate(self, size: int) -> None:
        self.tree.files.resize(self.node.node_id, size)

    def fsync(self) -> None:
        self.tree.files.flush(self.node.node_id)

    def close(self) -> None:
        self.is_open = False
        try:
            if self.writable:
                self.tree.files.flush(self.node.node_id)
        finally:
            self.tree.files.close_file(self.node)


def open_tree(store: ObjectStore, state_dir: Path, **changes: Any) -> Tree:
    """Open a writable file system over `store`, recovered."""
    clock = FakeClock()
    files = open_writable(spec_for(state_dir, **changes), stores={"data": store}, clock=clock)
    recover(files)
    return Tree(files, clock)


@contextlib.contextmanager
def opened(store: ObjectStore, state_dir: Path, **changes: Any) -> Iterator[Tree]:
    tree = open_tree(store, state_dir, **changes)
    try:
        yield tree
    finally:
        tree.files.close()


def content_of(store: ObjectStore) -> dict[str, bytes]:
    """Return everything a store holds."""
    return {info.name: store.get(info.name) for page in store.list() for info in page.objects}
