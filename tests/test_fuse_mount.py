"""The whole of fuse/ through the kernel: a tree in a child process, mounted, and used as people and accidents do."""

import concurrent.futures
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from amlmount.fuse.negotiate import Feature, Negotiated
from amlmount.fuse.protocol import Opcode
from fuse.dict_fs import MTIME_NS, DictFileSystem, Tree
from fuse.served import OWNERSHIP, Served, policy, served, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

LONG = "n" * 1024
FILES = {f"{index:03d}.bin": bytes([index]) * (index * 37) for index in range(100)}
BIG = bytes(range(256)) * 16384
TREE: Tree = {
    "files": FILES,
    "empty": {},
    "broken": b"x",
    "eio": b"x",
    "slow": b"slow content",
    "link": "files/001.bin",
    "spaces and ünïcödé ☃": {"a b": b"1"},
    LONG: b"long",
    "big.bin": BIG,
}


@pytest.fixture
def mount(mountpoint: str) -> Iterator[Served]:
    with served(DictFileSystem(TREE), mountpoint) as one:
        yield one


def read(*parts: str) -> bytes:
    with open("/".join(parts), "rb") as file:
        return file.read()


def reads(mount: Served) -> int:
    """How many READs have come: the sure sign that somebody waits in one that is slow."""
    return mount.counts().get(Opcode.READ, 0)


def error_of(action: object, *args: object) -> int | None:
    with pytest.raises(OSError) as caught:
        action(*args)  # type: ignore[operator]
    return caught.value.errno


def test_everything_is_there_and_right(mount: Served) -> None:
    assert sorted(os.listdir(mount.path)) == sorted(TREE)
    assert os.listdir(mount.path + "/empty") == []
    assert {name: read(mount.path, "files", name) for name in os.listdir(mount.path + "/files")} == FILES
    assert read(mount.path, "big.bin") == BIG
    assert read(mount.path, LONG) == b"long"
    assert os.readlink(mount.path + "/link") == "files/001.bin" and read(mount.path, "link") == FILES["001.bin"]
    assert read(mount.path, "spaces and ünïcödé ☃", "a b") == b"1"


def test_attributes(mount: Served) -> None:
    file, directory = os.stat(mount.path + "/files/099.bin"), os.stat(mount.path + "/files")
    assert (file.st_mode, file.st_nlink, file.st_uid, file.st_gid) == (0o100444, 1, OWNERSHIP.uid, OWNERSHIP.gid)
    assert (directory.st_mode, directory.st_nlink) == (0o40555, 2)
    assert (file.st_size, file.st_blocks, file.st_mtime_ns) == (3663, 8, MTIME_NS)
    with os.scandir(mount.path + "/files") as entries:
        assert {entry.name: entry.inode() for entry in entries}["099.bin"] == file.st_ino
    dots = subprocess.run(["ls", "-ia", mount.path + "/files"], capture_output=True, text=True, check=True).stdout
    assert dots.split()[:4] == [str(directory.st_ino), ".", str(os.stat(mount.path).st_ino), ".."]


def test_statfs(mount: Served) -> None:
    stats = os.statvfs(mount.path)
    assert stats.f_blocks * stats.f_frsize == 1 << 40 and stats.f_bavail * stats.f_frsize == 1 << 39
    shown = subprocess.run(["df", "-h", mount.path], capture_output=True, text=True, check=True).stdout
    assert "1.0T" in shown and "512G" in shown


def test_reads_anywhere(mount: Served) -> None:
    fd = os.open(mount.path + "/big.bin", os.O_RDONLY)
    try:
        whole = BIG
        for offset in (0, 1, 4095, 1 << 20, len(whole) - 1, len(whole), len(whole) + 5):
            assert os.pread(fd, 100_000, offset) == whole[offset : offset + 100_000]
    finally:
        os.close(fd)


def test_errors(mount: Served) -> None:
    assert error_of(os.stat, mount.path + "/nothing") == errno.ENOENT
    assert error_of(os.stat, mount.path + "/files/001.bin/x") == errno.ENOTDIR
    assert error_of(os.stat, mount.path + "/" + "x" * 1025) == errno.ENAMETOOLONG
    assert error_of(read, mount.path, "eio") == errno.EIO
    for _ in range(3):
        assert error_of(read, mount.path, "broken") == errno.EIO
    assert read(mount.path, "files", "001.bin") == FILES["001.bin"]  # and the server lives


@pytest.mark.parametrize("read_only", [True, False])
def test_every_change_is_refused(mountpoint: str, read_only: bool) -> None:
    with served(DictFileSystem(TREE), mountpoint, read_only=read_only) as mount:
        file = mount.path + "/files/001.bin"
        for action, args in {
            open: (mount.path + "/new", "w"),
            os.open: (file, os.O_RDWR),
            os.mkdir: (mount.path + "/new",),
            os.unlink: (file,),
            os.rmdir: (mount.path + "/empty",),
            os.rename: (file, mount.path + "/moved"),
            os.symlink: ("x", mount.path + "/new"),
            os.link: (file, mount.path + "/new"),
            os.truncate: (file, 0),
            os.chmod: (file, 0o777),
            os.chown: (file, 1, 1),
            os.utime: (file,),
            os.setxattr: (file, "user.x", b"y"),
        }.items():
            assert error_of(action, *args) == errno.EROFS, action
        assert read(file) == FILES["001.bin"]


def test_what_is_not_offered(mount: Served) -> None:
    file = mount.path + "/files/099.bin"
    for _ in range(3):
        assert error_of(os.listxattr, file) == errno.EOPNOTSUPP
        assert error_of(os.getxattr, file, "user.x") == errno.EOPNOTSUPP
        with open(file, "rb") as opened:
            assert not opened.isatty()
            assert os.lseek(opened.fileno(), 0, os.SEEK_DATA) == 0
            os.fsync(opened.fileno())
    counts = mount.counts()
    for opcode in (Opcode.GETXATTR, Opcode.LISTXATTR, Opcode.FLUSH, Opcode.FSYNC, Opcode.LSEEK):
        assert counts.get(opcode, 0) <= 1, opcode


def test_a_big_directory(mountpoint: str) -> None:
    names = {f"{index:06d}" for index in range(100_000)}
    with served(DictFileSystem({"big": dict.fromkeys(names, b"")}), mountpoint) as mount:
        with os.scandir(mount.path + "/big") as entries:
            assert {entry.name for entry in entries if entry.stat().st_size == 0} == names
        counts = mount.counts()
        asked = counts.get(Opcode.LOOKUP, 0) + counts.get(Opcode.GETATTR, 0)
        # READDIRPLUS has told it all. Only what the kernel dropped meanwhile (whenever anybody on this machine writes
        # to drop_caches, a benchmark beside us say) it has to ask again, and that is exactly what it told us to forget.
        assert until(lambda: asked <= mount.ask("forgotten") + 4), (asked, mount.ask("forgotten"))
        assert until(lambda: mount.ask("references") + mount.ask("forgotten") >= len(names))
        mount.unmount()


SEEKDIR = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
class dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_ulong), ("off", ctypes.c_long), ("reclen", ctypes.c_ushort), ("type", ctypes.c_ubyte),
                ("name", ctypes.c_char * 256)]
libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(dirent)
libc.telldir.restype = ctypes.c_long
for one in (libc.readdir, libc.telldir, libc.rewinddir): one.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
handle = libc.opendir(sys.argv[1].encode())
def rest():
    while entry := libc.readdir(handle):
        yield entry.contents.name, libc.telldir(handle)
def check(seen):
    for position in range(0, len(seen), 97):
        libc.seekdir(handle, seen[position][1])
        assert [name for name, _ in rest()] == [name for name, _ in seen[position + 1:]], position
first = list(rest())
check(first)
libc.rewinddir(handle)
assert list(rest()) == first
print("listed", flush=True)
sys.stdin.read()
libc.rewinddir(handle)
again = [name for name, _ in rest()]
assert set(again) - {name for name, _ in first} == {b"0new"}, (len(first), len(again))
"""


@pytest.mark.parametrize("cached", [True, False])
def test_seekdir_and_rewinddir(mountpoint: str, cached: bool) -> None:
    timeout_s = 120 if cached else 0
    rules = policy(entry_timeout_s=timeout_s, attr_timeout_s=0)
    tree = {"d": {f"{index:04d}-{'x' * (index % 200)}": b"" for index in range(1000)}}
    with served(DictFileSystem(tree), mountpoint, rules) as mount:
        argv = [sys.executable, "-c", SEEKDIR, mount.path + "/d"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdin and reader.stdout
            assert reader.stdout.readline() == "listed\n"
            mount.ask("add", 2, b"0new", b"")
            reader.stdin.close()
            assert reader.wait(30) == 0


def test_readers_go_on_while_one_blocks(mount: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        blocked = [pool.submit(read, mount.path, "slow") for _ in range(3)]
        assert until(lambda: reads(mount) >= 1)
        found = dict(zip(FILES, pool.map(lambda name: read(mount.path, "files", name), FILES), strict=True))
        assert found == FILES and not any(future.done() for future in blocked)
        mount.ask("release")
        assert [future.result(10) for future in blocked] == [b"slow content"] * 3


def test_pool_threads_start_when_needed(mount: Served) -> None:
    before = mount.ask("threads")
    read(mount.path, "files", "001.bin")
    assert mount.ask("threads") == before
    mount.ask("release")
    read(mount.path, "slow")
    assert mount.ask("threads") == before + 1


def test_unmounted_while_busy(mount: Served) -> None:
    with open(mount.path + "/slow", "rb") as held, open(mount.path + "/files/099.bin", "rb") as other:
        result: list[bytes] = []
        reader = threading.Thread(target=lambda: result.append(held.read()))
        reader.start()
        assert until(lambda: reads(mount) >= 1)
        mount.unmount()
        assert not os.path.ismount(mount.path)
        assert other.read() == FILES["099.bin"]  # what is open goes on
        mount.ask("release")
        reader.join(10)
        assert result == [b"slow content"]
    assert mount.wait_end() == "unmounted"


def test_plain_unmount_ends_the_session(mount: Served) -> None:
    os.listdir(mount.path)
    subprocess.run(["umount", mount.path], check=True, timeout=10)
    assert mount.wait_end() == "unmounted"


def test_abort(mountpoint: str) -> None:
    with served(DictFileSystem(TREE), mountpoint, drain_timeout_s=0.1) as mount:
        result: list[int | None] = []
        reader = threading.Thread(target=lambda: result.append(error_of(read, mount.path, "slow")))
        reader.start()
        assert until(lambda: reads(mount) >= 1)
        mount.abort()
        reader.join(10)
        # The read's own error, or that of what read-ahead tried again on a dead connection.
        assert result and result[0] in (errno.ECONNABORTED, errno.ENOTCONN)
        assert mount.wait_end() == "aborted"
        assert error_of(os.listdir, mount.path) == errno.ENOTCONN


@pytest.mark.parametrize("direct_io", [True, False])
def test_a_killed_reader_goes_at_once(mountpoint: str, direct_io: bool) -> None:
    with served(DictFileSystem(TREE), mountpoint, policy(direct_io=direct_io)) as mount:
        readers = [subprocess.Popen(["cat", mount.path + "/slow"], stdout=subprocess.DEVNULL) for _ in range(40)]
        assert until(lambda: reads(mount) >= (40 if direct_io else 1))
        for reader in readers:
            reader.kill() if reader.pid % 2 else reader.terminate()
        ends = {reader.wait(10) for reader in readers}  # long before the read would have ended
        assert ends <= {-signal.SIGKILL, -signal.SIGTERM}
        mount.ask("release")
        assert until(lambda: mount.waiting() == 0)
        assert read(mount.path, "slow") == b"slow content"


HANDLED = """
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("signal", flush=True))
signal.siginterrupt(signal.SIGUSR1, False)
print("ready", flush=True)
print(open(sys.argv[1], "rb", buffering=0).read(), flush=True)
"""


def test_a_signal_that_does_not_kill_interrupts_no_read(mountpoint: str) -> None:
    with served(DictFileSystem(TREE), mountpoint, policy(direct_io=True)) as mount:  # a cached read sends no INTERRUPT
        argv = [sys.executable, "-c", HANDLED, mount.path + "/slow"]
        reader = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        try:
            assert reader.stdout and reader.stdout.readline() == "ready\n"
            assert until(lambda: reads(mount) >= 1)
            reader.send_signal(signal.SIGUSR1)
            assert until(lambda: mount.counts().get(Opcode.INTERRUPT, 0) >= 1)
            mount.ask("release")
            said, _ = reader.communicate(timeout=10)
            assert sorted(said.split("\n")) == ["", "b'slow content'", "signal"]
        finally:
            reader.kill()
            reader.communicate()


def test_stopping_leaves_the_mount_to_a_successor(mountpoint: str) -> None:
    with served(DictFileSystem(TREE), mountpoint, stoppable=True) as mount:
        os.listdir(mount.path)
        assert mount.ask("negotiated_count") == 1
        assert mount.ask("succeed") == "stopped"
        assert read(mount.path, "files", "099.bin") == FILES["099.bin"]
        assert mount.ask("negotiated_count") == 1  # the second session got no INIT
        mount.unmount()
        assert mount.wait_end() == "unmounted"


def test_a_successor_of_a_killed_server(mountpoint: str) -> None:
    """SIGKILL with reads under way and a file, a directory and a place in it held: nobody sees an error."""
    fs = DictFileSystem(TREE)
    with served(fs, mountpoint, hold=True) as mount, concurrent.futures.ThreadPoolExecutor(4) as pool:
        negotiated = Negotiated.from_json(mount.ask("what_was_negotiated")[0] if os.listdir(mount.path) else {})
        if Feature.HAS_RESEND not in negotiated.features:
            pytest.skip("before Linux 6.9 requests that were read are lost")
        with open(mount.path + "/files/099.bin", "rb") as held, os.scandir(mount.path + "/files") as place:
            first = next(place).name
            blocked = [pool.submit(read, mount.path, "slow") for _ in range(2)]
            assert until(lambda: reads(mount) >= 1)
            mount.kill()
            waiting = pool.submit(read, mount.path, "files", "050.bin")  # asked while nobody serves
            mount.start(negotiated=negotiated)
            assert waiting.result(10) == FILES["050.bin"] and held.read() == FILES["099.bin"]
            assert {first, *(entry.name for entry in place)} == set(FILES)
            mount.ask("release")
            assert [future.result(10) for future in blocked] == [b"slow content"] * 2
        assert Opcode.INIT not in mount.counts()


def settled(mount: Served) -> dict[int, int]:
    """Return the counts once every directory that was opened is released, which the kernel does in its own time."""
    assert until(lambda: (seen := mount.counts()).get(Opcode.RELEASEDIR, 0) == seen[Opcode.OPENDIR])
    return mount.counts()


def test_references_are_given_back(mount: Served) -> None:
    for _ in range(3):
        with os.scandir(mount.path + "/files") as entries:
            next(entries)  # the rest is packed ahead and never fetched
        os.listdir(mount.path + "/files")
        os.stat(mount.path + "/files/001.bin")
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")
    assert until(lambda: mount.ask("references") <= 2), mount.ask("references")
