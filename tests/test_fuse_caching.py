"""What the kernel keeps of a mount, for how long, and how it is told to forget."""

import errno
import os
from collections.abc import Iterator

import pytest

from amlmount.fuse.negotiate import CAP_VARIABLE, Feature, Negotiated
from amlmount.fuse.protocol import Opcode
from fuse.dict_fs import DictFileSystem
from fuse.served import Served, policy, served
from test_fuse_mount import FILES, TREE, error_of, read, settled

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


@pytest.fixture
def mount(mountpoint: str) -> Iterator[Served]:
    with served(DictFileSystem(TREE), mountpoint) as one:
        yield one


def test_second_epoch_of_epochs_makes_no_request(mountpoint: str) -> None:
    with served(DictFileSystem(TREE), mountpoint, policy("epochs")) as mount:

        def epoch() -> None:
            names = sorted(os.listdir(mount.path + "/files"))
            for name in names:
                fd = os.open(f"{mount.path}/files/{name}", os.O_RDONLY)
                assert os.read(fd, 8192) == FILES[name] and os.fstat(fd).st_size == len(FILES[name])
                os.close(fd)

        epoch()
        before = settled(mount)
        assert before[Opcode.OPEN] == 1 and Opcode.RELEASE not in before and before.get(Opcode.FLUSH, 0) <= 1
        epoch()
        after = settled(mount)
        # One OPENDIR and RELEASEDIR a listing: they say whether the listing the kernel keeps still holds.
        changed = {Opcode(op): n - before.get(op, 0) for op, n in after.items() if n != before.get(op, 0)}
        assert changed == {Opcode.OPENDIR: 1, Opcode.RELEASEDIR: 1}


@pytest.mark.parametrize(("keep", "reads"), [(True, 1), (False, 2)])
def test_keep_cache(mountpoint: str, keep: bool, reads: int) -> None:
    with served(DictFileSystem(TREE), mountpoint, policy(keep_cache=keep)) as mount:
        for _ in range(2):
            assert read(mount.path, "files", "099.bin") == FILES["099.bin"]
        counts = mount.counts()
        assert counts[Opcode.OPEN] == 2 and counts[Opcode.READ] == reads


def test_direct_io(mountpoint: str) -> None:
    with served(DictFileSystem(TREE), mountpoint, policy("epochs", direct_io=True)) as mount:
        import mmap

        for _ in range(2):
            with open(mount.path + "/files/099.bin", "rb", buffering=0) as file:
                assert file.read() == FILES["099.bin"]
                with pytest.raises(OSError, match="No such device"):
                    mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        assert mount.counts()[Opcode.OPEN] == 2 and mount.counts()[Opcode.READ] >= 2


@pytest.mark.parametrize(("negative_s", "lookups"), [(0, 3), (60, 1)])
def test_negative_lookups(mountpoint: str, negative_s: float, lookups: int) -> None:
    with served(DictFileSystem(TREE), mountpoint, policy(negative_timeout_s=negative_s)) as mount:
        for _ in range(3):
            assert error_of(os.stat, mount.path + "/nothing") == errno.ENOENT
        assert mount.counts()[Opcode.LOOKUP] == lookups


def test_a_kernel_as_old_as_5_15(mountpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAP_VARIABLE, "34")
    with served(DictFileSystem(TREE), mountpoint, policy("epochs")) as mount:
        assert {name: read(mount.path, "files", name) for name in os.listdir(mount.path + "/files")} == FILES
        negotiated = Negotiated.from_json(mount.ask("what_was_negotiated")[0])
        assert negotiated.minor == 34 and Feature.INIT_EXT not in negotiated.features


def test_a_directory_kept_by_the_kernel_is_dropped_when_it_changes(mountpoint: str) -> None:
    with served(DictFileSystem(TREE), mountpoint) as mount:
        for _ in range(3):
            assert len(os.listdir(mount.path + "/files")) == 100
        assert mount.counts()[Opcode.READDIRPLUS] <= 3
        assert mount.ask("notify", "inval_inode", os.stat(mount.path + "/files").st_ino)
        mount.ask("add", os.stat(mount.path + "/files").st_ino, b"new", b"content")
        assert len(os.listdir(mount.path + "/files")) == 101
        assert read(mount.path, "files", "new") == b"content"


def test_notifications(mount: Served) -> None:
    directory = os.stat(mount.path + "/files").st_ino
    node = os.stat(mount.path + "/files/050.bin").st_ino  # ino and node id are one in this file system
    assert mount.ask("notify", "store", node, 0, b"stored ahead".ljust(50 * 37, b"."))
    assert read(mount.path, "files", "050.bin").startswith(b"stored ahead")
    assert mount.counts().get(Opcode.READ, 0) == 0
    assert mount.ask("notify", "inval_inode", node)
    assert read(mount.path, "files", "050.bin") == FILES["050.bin"]
    lookups = mount.counts()[Opcode.LOOKUP]
    for message, args in {
        "inval_entry": (directory, b"050.bin"),
        "expire_entry": (directory, b"050.bin"),
        "delete": (directory, node, b"050.bin"),
    }.items():
        assert mount.ask("notify", message, *args), message
        os.stat(mount.path + "/files/050.bin")
        lookups += 1
        assert mount.counts()[Opcode.LOOKUP] == lookups, message
    for message, args in {
        "inval_inode": (99999,),
        "store": (99999, 0, b"x"),
        "inval_entry": (directory, b"never seen"),
        "delete": (directory, 99999, b"never seen"),
    }.items():
        assert not mount.ask("notify", message, *args), message
