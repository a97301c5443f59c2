"""What the tests of vfs share: a mount's spec in one line, a clock that stands still, a tree as a dictionary."""

from collections.abc import Mapping, Sequence

from amlmount.config.spec import MountSpec, Ownership, Policy, SourceSpec
from amlmount.stores.base import ObjectStore
from amlmount.stores.memory import MemoryStore
from amlmount.vfs import open_filesystem
from amlmount.vfs.base import ROOT_NODE_ID, FileSystem, NodeKind
from amlmount.vfs.filesystem import BlobFileSystem


class FakeClock:
    """Seconds that pass when the test says so, but for a microsecond at each look: no two moments are one."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 1e-6
        return self.now_s


def make_policy(*, list_ttl_s: float = 120.0, pinned: bool = False) -> Policy:
    return Policy(
        profile="epochs" if pinned else "standard",
        attr_timeout_s=list_ttl_s,
        entry_timeout_s=list_ttl_s,
        negative_timeout_s=list_ttl_s,
        list_ttl_s=list_ttl_s,
        no_open=pinned,
        pinned=pinned,
        keep_cache=True,
        direct_io=False,
        max_read_bytes=1 << 20,
        read_ahead_max_bytes=0,
        prefetch_small_bytes=0,
        prefetch_budget_bytes=0,
        cache_on_disk=False,
    )


def make_spec(sources: Sequence[SourceSpec], policy: Policy) -> MountSpec:
    return MountSpec(
        name="test",
        target="/target",
        sources=tuple(sources),
        description="test",
        read_only=True,
        engine="python",
        policy=policy,
        ownership=Ownership(uid=0, gid=0, file_mode=0o444, dir_mode=0o555),
        allow_other=False,
    )


def source(name: str = "data", *, path: str = "", glob: str | None = None, child: str | None = None) -> SourceSpec:
    return SourceSpec(store_name=name, store={"type": "memory"}, path=path, glob=glob, child=child)


def mount(
    stores: ObjectStore | Mapping[str, ObjectStore],
    *sources: SourceSpec,
    policy: Policy | None = None,
    clock: FakeClock | None = None,
) -> BlobFileSystem:
    by_name = stores if isinstance(stores, Mapping) else {"data": stores}
    spec = make_spec(sources or [source()], policy or make_policy())
    return open_filesystem(spec, stores=by_name, clock=clock or FakeClock())


def memory(*names: str, **named: bytes) -> MemoryStore:
    return MemoryStore({**dict.fromkeys(names, b"x"), **named})


def tree(fs: FileSystem, node_id: int = ROOT_NODE_ID, path: bytes = b"") -> dict[bytes, str]:
    """Return every path with the name of the blob behind it, `/` for directories."""
    found: dict[bytes, str] = {}
    for node in fs.list_dir(node_id):
        below = path + b"/" + node.name if path else node.name
        if node.kind is NodeKind.DIRECTORY:
            found[below] = "/"
            found |= tree(fs, node.node_id, below)
        else:
            found[below] = node.blob_name
    return found


def find(fs: FileSystem, path: str) -> int:
    """Return the node id of a path, by lookups, as the kernel walks it."""
    node_id = ROOT_NODE_ID
    for part in path.split("/"):
        node_id = fs.lookup(node_id, part.encode()).node_id
    return node_id
