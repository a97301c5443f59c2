"""A machine whose processes die at a given step of one fixed workload: requests of a kernel, one after the other."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from amlmount.vfs.content.keys import identity_of
from amlmount.vfs.nodes import Source
from amlmount.vfs.writing import WritableFileSystem, recover
from amlmount.vfs.writing.attempts import Attempt
from amlmount.vfs.writing.disk import DATA, KEPT
from amlmount.vfs.writing.live import WritingOptions
from vfs_trees import FakeClock, make_policy, source
from writing.ground import Tree
from writing.powercut import Died, Life, MortalDisk, MortalStore

SMALL, LARGE = b"small" * 20, os.urandom(90_000)

OLD = {"old": bytes(5000), "dir/one": b"1", "dir/two": b"2"}
Prepare = Callable[[WritableFileSystem], None]


@dataclass
class World:
    """One process: its file system, the path to it, and what programs hold."""

    tree: Tree
    nodes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One request of the kernel. `after`: what is acknowledged once it is answered, by name (None: gone).

    `maybe`: what else may be there until the name is acknowledged again: an overwrite that nobody synced.
    """

    act: Callable[[World, Attempt], None]
    after: dict[str, bytes | None] = field(default_factory=dict)
    maybe: dict[str, bytes] = field(default_factory=dict)


class Records:
    """The journal of inodes that a successor gets; it outlives a process, not the machine."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def append(self, record: bytes) -> None:
        self.kept.append(record)

    @property
    def wants_rewrite(self) -> bool:
        return False

    def rewrite(self, records: Iterable[bytes]) -> None:
        self.kept = list(records)


def create(path: str, flags: int = os.O_RDWR) -> Step:
    def act(world: World, attempt: Attempt) -> None:
        parent, name = world.tree.parent(path)
        node = world.tree.names.create(parent, name, flags | os.O_CREAT, attempt)
        world.tree.hold(node)
        world.nodes[path] = node.node_id

    return Step(act, {path: b""} if flags & os.O_EXCL else {})


def open_(path: str, flags: int = os.O_RDWR) -> Step:
    def act(world: World, attempt: Attempt) -> None:
        world.nodes[path] = world.tree.files.open_file(world.tree.find(path).node_id, flags).node_id

    return Step(act)


def write(path: str, offset: int, data: bytes, over: bytes = b"") -> Step:
    maybe = {path: over[:offset] + data + over[offset + len(data) :]} if over else {}
    return Step(lambda world, attempt: _ignore(world.tree.files.write(world.nodes[path], offset, data)), maybe=maybe)


def flush(path: str, content: bytes) -> Step:
    return Step(lambda world, attempt: world.tree.files.flush(world.nodes[path]), {path: content})


def release(path: str) -> Step:
    def act(world: World, attempt: Attempt) -> None:
        world.tree.files.close_file(world.tree.files.node(world.nodes[path]))

    return Step(act)


def truncate(path: str, size: int, content: bytes) -> Step:
    def act(world: World, attempt: Attempt) -> None:
        world.tree.files.resize(world.tree.find(path).node_id, size)

    return Step(act, {path: content})


def rename(old: str, new: str, content: bytes) -> Step:
    def act(world: World, attempt: Attempt) -> None:
        tree = world.tree
        tree.renaming.rename(*tree.parent(old), *tree.parent(new), attempt=attempt)

    return Step(act, {old: None, new: content})


def move(old: str, new: str, names: dict[str, bytes]) -> Step:
    step = rename(old, new, b"")
    gone = {f"{old}/{name}": None for name in names}
    return Step(step.act, gone | {f"{new}/{name}": data for name, data in names.items()})


def unlink(path: str) -> Step:
    return Step(lambda world, attempt: world.tree.names.unlink(*world.tree.parent(path), attempt), {path: None})


def read_back(path: str, content: bytes) -> Step:
    def act(world: World, attempt: Attempt) -> None:
        assert bytes(world.tree.files.read(world.nodes[path], 0, 1 << 20)) == content

    return Step(act)


def utime(path: str, mtime_ns: int) -> Step:
    def act(world: World, attempt: Attempt) -> None:
        world.tree.files.set_mtime(world.tree.find(path).node_id, mtime_ns)
        assert world.tree.find(path).mtime_ns == mtime_ns

    return Step(act)


def mkdir(path: str) -> Step:
    def act(world: World, attempt: Attempt) -> None:
        world.tree.hold(world.tree.names.mkdir(*world.tree.parent(path), attempt))

    return Step(act)


def _ignore(_: object) -> None:
    return


WORKLOAD = [
    *(create("a"), write("a", 0, SMALL), flush("a", SMALL), release("a")),
    *(
        create("b"),
        write("b", 0, LARGE),
        flush("b", LARGE),
        write("b", 10, b"!!", LARGE),
        write("b", len(LARGE), b"more"),
    ),
    *(flush("b", LARGE[:10] + b"!!" + LARGE[12:] + b"more"), release("b")),
    *(open_("a"), write("a", len(SMALL), b"tail"), flush("a", SMALL + b"tail"), release("a")),
    rename("a", "c", SMALL + b"tail"),
    *(create("c.tmp", os.O_RDWR | os.O_EXCL), write("c.tmp", 0, LARGE), flush("c.tmp", LARGE), release("c.tmp")),
    rename("c.tmp", "c", LARGE),
    unlink("b"),
    *(open_("old"), write("old", 2000, b"edit"), flush("old", bytes(2000) + b"edit" + bytes(2996))),
    *(write("old", 6000, b"far"), flush("old", bytes(2000) + b"edit" + bytes(3996) + b"far"), release("old")),
    truncate("old", 2002, bytes(2000) + b"ed"),
    utime("old", 10**18),
    *(create("held"), write("held", 0, SMALL), flush("held", SMALL), unlink("held"), read_back("held", SMALL)),
    release("held"),
    *(mkdir("new"), create("new/x"), write("new/x", 0, b"x"), flush("new/x", b"x"), release("new/x")),
    move("new", "moved", {"x": b"x"}),
    move("dir", "moved/dir", {"one": b"1", "two": b"2"}),
    *(open_("c", os.O_RDWR | os.O_TRUNC), write("c", 0, b"again"), flush("c", b"again"), release("c")),
    rename("moved/x", "old", b"x"),
    *(create("last"), write("last", 0, b"last"), flush("last", b"last"), release("last"), unlink("last")),
]


class Machine:
    """A store and a state directory that outlive processes."""

    def __init__(self, root: Path, durability: str) -> None:
        self.root, self.durability = root, durability
        self.store = MortalStore(OLD)
        self.state = root / "state"
        self.life = Life()
        self.records = Records()
        self.disk: MortalDisk | None = None

    def start(
        self,
        life: Life,
        *,
        takes_over: bool = False,
        prepare: Callable[[WritableFileSystem], None] = lambda files: None,
    ) -> World:
        """Begin a process; `prepare` comes before its recovery."""
        if self.disk is not None:
            self.disk.bury()
        self.life = self.store.life = life
        disk = self.disk = MortalDisk(str(self.state), life)
        for name in ("", DATA, KEPT):
            disk.make_directory(name)
        options = WritingOptions(
            str(self.state),
            {0: identity_of(source())},
            durability=self.durability,
            upload_timeout_s=0.0,
            upload_threads=0,
        )
        clock = FakeClock()
        sources = [(None, Source(0, "data", self.store))]
        files = WritableFileSystem(sources, make_policy(list_ttl_s=1.0), options=options, disk=disk, clock=clock)
        if takes_over:
            files.inherit(self.records.kept)
        files.leave_to(self.records)
        prepare(files)
        recover(files, is_successor=takes_over)
        return World(Tree(files, clock))

    def cut_power(self) -> None:
        """Let the state directory be what a machine finds that was switched off."""
        assert self.disk is not None
        self.disk.cut(self.root / "left")
        self.state = self.root / "left"


def run(world: World, life: Life, first: int = 0, *, is_again: bool = False) -> int | None:
    """Carry out the workload from a step on; return the step in which the process died, None if it did not."""
    for number in range(first, len(WORKLOAD)):
        attempt = Attempt(world.tree.files.ledger, 1000 + number, is_again=is_again and number == first)
        try:
            if not attempt.was_done:
                WORKLOAD[number].act(world, attempt)
            attempt.end()
            world.tree.files.uploads.work_off()
            world.tree.later()
        except Died:
            return number
    return None
