"""Files that the kernel writes to the local disk by itself: what is closed or synced is in the store, whatever dies."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from amlmount.config.spec import MountSpec
from amlmount.stores.azure import open_azure
from amlmount.stores.azure.store import AzureStore
from amlmount.stores.base import ObjectStore
from amlmount.vfs.writing.livefile import LiveFile
from fakeblob import FakeBlobService
from mounting import until
from writing.ground import content_of, open_tree
from writing.test_writing_mount import Mount, mounted, writable_spec

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


@pytest.fixture
def service() -> Iterator[FakeBlobService]:
    with closing(FakeBlobService()) as one:
        yield one


@pytest.fixture
def outside(service: FakeBlobService) -> Iterator[AzureStore]:
    with closing(open_azure(service.definition())) as opened:
        yield opened


@pytest.fixture
def spec_of(service: FakeBlobService, mountpoint: str, tmp_path: Path) -> Callable[..., MountSpec]:
    return partial(writable_spec, service.definition(), mountpoint, str(tmp_path / "state"))


@pytest.fixture
def durability() -> str:
    return "store"


@pytest.fixture
def mount(spec_of: Callable[..., MountSpec], durability: str) -> Iterator[Mount]:
    with mounted(spec_of(durability=durability)) as one:
        yield one


@pytest.fixture
def path(mount: Mount) -> str:
    return mount.path


def has(outside: ObjectStore, name: str, data: bytes | bytearray) -> None:
    """Wait until the store has exactly this: at once with `durability: store`, soon with `journal`."""
    until(lambda: content_of(outside).get(name) == data)


def test_write_at_disk_speed(mount: Mount, outside: ObjectStore) -> None:
    """No write reaches the worker: it is stopped, and they return all the same."""
    fd = os.open(f"{mount.path}/a", NEW)
    os.write(fd, b"one ")
    os.kill(mount.running.pid, 19)
    try:
        assert os.write(fd, b"two " * 1000) == 4000
        assert os.pwrite(fd, b"ONE", 0) == 3
    finally:
        os.kill(mount.running.pid, 18)
    os.close(fd)
    has(outside, "a", b"ONE " + b"two " * 1000)


@pytest.mark.parametrize("durability", ["store", "journal"])
def test_what_is_synced_is_stored_and_what_follows_too(path: str, outside: ObjectStore) -> None:
    fd = os.open(f"{path}/a", NEW)
    for round_ in range(5):
        os.write(fd, b"%d" % round_)
        os.fsync(fd)
        has(outside, "a", b"01234"[: round_ + 1])
    os.pwrite(fd, b"x", 2)
    os.close(fd)
    has(outside, "a", b"01x34")


def test_each_close_of_a_shared_handle_counts(path: str, outside: ObjectStore) -> None:
    first = os.open(f"{path}/a", NEW)
    second = os.dup(first)
    os.write(first, b"one")
    os.close(first)
    has(outside, "a", b"one")
    os.write(second, b" two")
    os.close(second)
    has(outside, "a", b"one two")


def test_everybody_sees_it_at_once(path: str, outside: ObjectStore) -> None:
    fd = os.open(f"{path}/a", NEW)
    for round_ in range(1, 20):
        os.write(fd, b"x" * 100)
        assert os.stat(f"{path}/a").st_size == os.fstat(fd).st_size == 100 * round_
        [entry] = os.scandir(path)
        assert entry.stat().st_size == 100 * round_
        assert len(Path(path, "a").read_bytes()) == 100 * round_
        assert os.lseek(fd, 0, os.SEEK_END) == 100 * round_
    with open(f"{path}/a", "ab") as appending:
        appending.write(b"end")
    os.truncate(f"{path}/a", 50)
    os.write(fd, b"!")
    os.close(fd)
    has(outside, "a", b"x" * 50 + bytes(1850) + b"!")


@pytest.mark.parametrize("durability", ["store", "journal"])
def test_it_can_be_renamed_and_unlinked_meanwhile(path: str, outside: ObjectStore) -> None:
    fd, other = os.open(f"{path}/a.tmp", NEW), os.open(f"{path}/b", NEW)
    os.write(fd, b"one")
    os.rename(f"{path}/a.tmp", f"{path}/a")
    os.write(fd, b" two")
    os.write(other, b"gone")
    os.unlink(f"{path}/b")
    os.write(other, b" for good")
    os.close(fd)
    os.close(other)
    has(outside, "a", b"one two")
    assert os.listdir(path) == ["a"] and list(content_of(outside)) == ["a"]


def test_times_set_by_hand_are_kept(path: str, outside: ObjectStore) -> None:
    fd, when = os.open(f"{path}/a", NEW), 1_600_000_000_123_456_789
    os.write(fd, b"one")
    os.fsync(fd)
    os.utime(fd, ns=(when, when))
    os.close(fd)
    assert os.stat(f"{path}/a").st_mtime_ns == when
    has(outside, "a", b"one")
    os.utime(f"{path}/a", ns=(when + 1, when + 1))
    assert os.stat(f"{path}/a").st_mtime_ns == when + 1


@pytest.mark.parametrize("durability", ["store", "journal"])
def test_durable_emptied_while_open(path: str, outside: ObjectStore) -> None:
    first = os.open(f"{path}/a", NEW)
    os.write(first, b"promised")
    os.fsync(first)
    second = os.open(f"{path}/a", NEW)
    assert outside.get("a") == b"promised"
    os.write(second, b"new")
    os.close(second)
    os.close(first)
    has(outside, "a", b"new")


PROGRAM = """
import errno, json, os, sys
scope = {"os": os, "path": sys.argv[1], "NEW": os.O_WRONLY | os.O_CREAT | os.O_TRUNC}
for line in sys.stdin:
    try:
        exec(json.loads(line), scope)
        print("done", flush=True)
    except Exception as error:
        print(repr(error), flush=True)
"""


class Program:
    """A process that has files open: whoever starts workers must not, a fork would close them in the child."""

    def __init__(self, path: str) -> None:
        argv = [sys.executable, "-c", PROGRAM, path]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, lines: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(lines) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n", lines

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def program(mountpoint: str) -> Iterator[Program]:
    """It ends after the mount, which must not be waited for."""
    one = Program(mountpoint)
    yield one
    one.end()


# By libc: Python's own mmap keeps the descriptor, and with it the handle.
MAP = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.write(fd, bytes(10_000))
other = os.open(sys.argv[1], os.O_RDWR)
mapping = libc.mmap(None, 10_000, 3, 1, other, 0)
ctypes.memmove(mapping, b"one", 3)
os.close(other)
os.close(fd)
print("closed", flush=True)
for place, what in ((5000, b"two"), (5000, b"TWO")):
    sys.stdin.readline()
    ctypes.memmove(mapping + place, what, len(what))
    print("written", flush=True)
sys.stdin.readline()
"""


def test_durable_mapping_unheard(path: str, outside: ObjectStore) -> None:
    """A mapping of a file that the kernel writes by itself: nobody tells us of what is written through it."""
    argv = [sys.executable, "-c", MAP, f"{path}/m"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as mapping:
        assert mapping.stdin is not None and mapping.stdout is not None
        assert mapping.stdout.readline() == "closed\n"
        data = bytearray(b"one" + bytes(9_997))
        has(outside, "m", data)
        for place, what in ((5000, b"two"), (5000, b"TWO")):
            mapping.stdin.write("go on\n")
            mapping.stdin.flush()
            assert mapping.stdout.readline() == "written\n"
            data[place : place + len(what)] = what
            has(outside, "m", data)
        mapping.communicate("end\n")


def test_a_conflict_is_told_at_the_close(outside: AzureStore, spec_of: Callable[..., MountSpec]) -> None:
    with mounted(spec_of()) as mount:
        fd = os.open(f"{mount.path}/a", NEW)
        os.write(fd, b"ours")
        outside.put("a", b"theirs")
        with pytest.raises(OSError) as caught:
            os.close(fd)
        assert caught.value.errno == errno.ESTALE
    left = content_of(outside)
    assert left.pop("a") == b"theirs" and list(left.values()) == [b"ours"]


@pytest.mark.parametrize("durability", ["store", "journal"])
@pytest.mark.parametrize("synced", ["synced", "not synced"])
def test_it_goes_on_without_the_worker_and_with_the_next_one(
    program: Program, mount: Mount, outside: ObjectStore, synced: str
) -> None:
    program.do("fd = os.open(path + '/a', NEW); os.write(fd, b'one')")
    if synced == "synced":
        program.do("os.fsync(fd)")
        has(outside, "a", b"one")
    mount.kill()
    program.do("os.write(fd, b' two'); os.pwrite(fd, b'O', 0)")
    mount.take_over()
    assert os.stat(f"{mount.path}/a").st_size == 7
    assert Path(mount.path, "a").read_bytes() == b"One two"
    program.do("os.write(fd, b' three'); os.close(fd)")
    has(outside, "a", b"One two three")
    assert Path(mount.path, "a").read_bytes() == b"One two three"


def test_a_time_that_was_set_outlives_crashes(program: Program, mount: Mount, outside: AzureStore) -> None:
    """The second one takes it from the data file, which the first counted as changed."""
    program.do("fd = os.open(path + '/a', os.O_RDWR | os.O_CREAT); os.write(fd, b'data'); os.fsync(fd)")
    program.do("os.utime(path + '/a', ns=(10**18, 10**18))")
    for _ in range(2):
        mount.kill()
        mount.take_over()
    assert os.stat(f"{mount.path}/a").st_mtime_ns == 10**18
    program.do("os.close(fd)")
    until(lambda: outside.head("a").metadata["mtime"].startswith("2001-09-09T01:46:40"))


def test_a_time_that_was_set_while_the_kernel_writes_outlives_a_crash(
    program: Program, mount: Mount, outside: AzureStore
) -> None:
    """To the nanosecond: what tells two writes apart leaves it alone."""
    program.do("fd = os.open(path + '/a', NEW); os.write(fd, b'data'); os.utime(path + '/a', ns=(10**18, 10**18))")
    for _ in range(2):
        mount.kill()
        mount.take_over()
    program.do("os.fsync(fd)")
    until(lambda: "a" in content_of(outside))
    assert outside.head("a").metadata["mtime"].startswith("2001-09-09T01:46:40")
    program.do("os.write(fd, b'more'); os.close(fd)")
    has(outside, "a", b"datamore")
    assert not outside.head("a").metadata["mtime"].startswith("2001")


def test_an_empty_file_may_be_opened_in_any_way_after_a_crash(
    program: Program, mount: Mount, outside: ObjectStore
) -> None:
    """Handles that a process before us gave out decide how an inode is opened, or the kernel says EIO."""
    program.do("c = os.open(path + '/c', os.O_RDWR | os.O_CREAT); d = os.open(path + '/d', NEW)")
    mount.kill()
    mount.take_over()
    for name in ("c", "d"):
        Path(mount.path, name).write_bytes(b"again")
        program.do(f"os.close({name})")
        assert Path(mount.path, name).read_bytes() == b"again"
        has(outside, name, b"again")


def test_of_what_was_neither_synced_nor_closed_nothing_is_thrown_away(
    program: Program, outside: AzureStore, spec_of: Callable[..., MountSpec], tmp_path: Path
) -> None:
    with mounted(spec_of()) as mount:
        program.do("fd = os.open(path + '/a', NEW); os.write(fd, b'stored'); os.fsync(fd); os.write(fd, b', and more')")
        mount.kill()
    with mounted(spec_of()):
        kept = [found for found in (tmp_path / "state" / "kept").iterdir() if found.suffix != ".json"]
        assert [found.read_bytes() for found in kept] == [b"stored, and more"]
    assert content_of(outside) == {"a": b"stored"}


def test_a_write_in_the_same_tick_is_noticed(outside: AzureStore, tmp_path: Path) -> None:
    """A clock that stands still (older kernels give times in ticks of 1 to 10 ms) hides no write."""
    tree = open_tree(outside, tmp_path / "state")
    with tree.create("a", os.O_WRONLY) as handle:
        file = handle.node
        assert isinstance(file, LiveFile)
        found = tree.files.empty_file(file, os.O_WRONLY)
        assert found is not None and tree.files.begin_direct(file, os.O_WRONLY, found[1])
        fd, tick = found[0], time.time_ns()
        for number in range(3):
            os.pwrite(fd, b"%d" % number, 0)
            os.utime(fd, ns=(tick, tick))
            with file.lock:
                assert file.notice() and not file.notice()
        os.close(fd)
    assert outside.get("a") == b"2"
    tree.files.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The state directory, on a disk of 4 MiB."""
    (tmp_path / "state").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path / "state")], check=True)
    yield tmp_path / "state"
    subprocess.run(["umount", str(tmp_path / "state")], check=True)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_told_at_the_write(outside: AzureStore, spec_of: Callable[..., MountSpec]) -> None:
    with mounted(spec_of()) as mount:
        fd = os.open(f"{mount.path}/big", NEW)
        with pytest.raises(OSError) as caught:
            while True:
                os.write(fd, bytes(1 << 20))
        assert caught.value.errno == errno.ENOSPC
        os.truncate(f"{mount.path}/big", 1000)
        os.close(fd)
        Path(mount.path, "small").write_bytes(b"fine")
        assert content_of(outside) == {"big": bytes(1000), "small": b"fine"}
