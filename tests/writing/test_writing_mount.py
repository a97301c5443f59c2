"""Writing through the kernel: a real mount, a real worker, programs that write, and a store looked at from outside."""

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from amlmount.config.profiles import PROFILES
from amlmount.config.spec import MountSpec, Ownership, SourceSpec
from amlmount.engines.base import Running
from amlmount.engines.python import PythonEngine
from amlmount.stores.azure import open_azure
from amlmount.stores.base import ObjectStore
from amlmount.stores.local import LocalStore
from fakeblob import FakeBlobService
from mounting import until
from writing import fsx
from writing.ground import content_of
from writing.lengths import FSX_STEPS, SEEDS

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
T = TypeVar("T")


def writable_spec(store: dict[str, object], target: str, state_dir: str, **changes: Any) -> MountSpec:
    return MountSpec(
        name="w",
        target=target,
        sources=(SourceSpec(store_name="data", store=store),),
        description="data",
        read_only=False,
        engine="python",
        policy=PROFILES[changes.pop("profile", "checkpoint")],
        ownership=Ownership(uid=os.getuid(), gid=os.getgid(), file_mode=0o644, dir_mode=0o755),
        allow_other=False,
        state_dir=state_dir,
        **changes,
    )


class Mount:
    """A mount being served; everything on the engine happens in one loop of its own thread."""

    def __init__(self, spec: MountSpec) -> None:
        self.path, self.spec = spec.target, spec
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.engine = self.do(self._make)
        self.running: Running = self.do(lambda: self.engine.start(spec, timeout_s=20))

    async def _make(self) -> PythonEngine:
        return PythonEngine(log_dir=os.path.dirname(self.spec.state_dir or ""))

    def do(self, make: Callable[[], Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(60):
                return await make()

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()

    def kill(self) -> None:
        os.kill(self.running.pid, 9)
        self.do(lambda: asyncio.shield(self.running.exited))

    def take_over(self) -> None:
        self.running = self.do(lambda: self.engine.take_over(self.running, timeout_s=20))

    def stop(self, *, lazy: bool = False) -> None:
        self.do(lambda: self.engine.stop(self.running, lazy=lazy, timeout_s=10))

    def close(self) -> None:
        try:
            self.stop(lazy=True)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


@contextmanager
def mounted(spec: MountSpec) -> Iterator[Mount]:
    mount = Mount(spec)
    try:
        yield mount
    finally:
        mount.close()


@pytest.fixture(params=["local", "fake"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ObjectStore, dict[str, object]]]:
    if request.param == "local":
        (tmp_path / "store").mkdir()
        definition: dict[str, object] = {"type": "local", "path": str(tmp_path / "store")}
        yield LocalStore(str(tmp_path / "store")), definition
        return
    service = FakeBlobService()
    with closing(service), closing(open_azure(service.definition())) as opened:
        yield opened, service.definition()


@pytest.fixture
def mount(store: tuple[ObjectStore, dict[str, object]], mountpoint: str, tmp_path: Path) -> Iterator[Mount]:
    with mounted(writable_spec(store[1], mountpoint, str(tmp_path / "state"))) as one:
        yield one


@pytest.fixture
def path(mount: Mount) -> str:
    return mount.path


@pytest.fixture
def outside(store: tuple[ObjectStore, dict[str, object]]) -> ObjectStore:
    return store[0]


def test_what_is_closed_is_in_the_store(path: str, outside: ObjectStore) -> None:
    with open(f"{path}/a", "wb") as file:
        file.write(b"hello")
    assert outside.get("a") == b"hello"
    with open(f"{path}/a", "ab") as file:
        file.write(b" world")
    assert outside.get("a") == b"hello world"
    with open(f"{path}/a", "r+b") as file:
        file.seek(6)
        file.write(b"W")
        file.flush()
        os.fsync(file.fileno())
        assert outside.get("a") == b"hello World"
    assert Path(path, "a").read_bytes() == b"hello World"
    os.truncate(f"{path}/a", 5)
    assert outside.get("a") == b"hello" and os.stat(f"{path}/a").st_size == 5


def test_a_large_file_comes_back_as_it_was(path: str, outside: ObjectStore) -> None:
    data = os.urandom(1 << 20) * 20
    Path(path, "big").write_bytes(data)
    assert outside.get("big") == data and Path(path, "big").read_bytes() == data
    with open(f"{path}/big", "r+b") as file:
        file.seek(9 << 20)
        file.write(b"!" * 100_000)
    changed = data[: 9 << 20] + b"!" * 100_000 + data[(9 << 20) + 100_000 :]
    assert outside.get("big") == changed and Path(path, "big").read_bytes() == changed


def test_directories_and_renames(path: str, outside: ObjectStore) -> None:
    os.makedirs(f"{path}/d/e")
    Path(path, "d/e/f").write_bytes(b"1")
    os.rename(f"{path}/d", f"{path}/x")
    assert os.listdir(f"{path}/x/e") == ["f"] and not os.path.exists(f"{path}/d")
    assert Path(path, "x/e/f").read_bytes() == b"1"
    os.replace(f"{path}/x/e/f", f"{path}/g")
    with pytest.raises(OSError) as caught:
        os.rmdir(f"{path}/x")
    assert caught.value.errno == errno.ENOTEMPTY
    shutil.rmtree(f"{path}/x")
    assert os.listdir(path) == ["g"] and content_of(outside) == {"g": b"1"}


def test_a_rename_keeps_what_is_open(path: str, outside: ObjectStore) -> None:
    os.mkdir(f"{path}/d")
    with open(f"{path}/d/f", "wb") as file:
        file.write(b"one")
        file.flush()
        os.rename(f"{path}/d", f"{path}/e")
        file.write(b" two")
    assert outside.get("e/f") == b"one two" and Path(path, "e/f").read_bytes() == b"one two"


def test_an_unlinked_file_stays_for_whoever_has_it_open(path: str, outside: ObjectStore) -> None:
    Path(path, "a").write_bytes(b"content")
    with open(f"{path}/a", "r+b") as file:
        os.unlink(f"{path}/a")
        assert content_of(outside) == {}
        assert file.read() == b"content"
        file.write(b" more")
        file.flush()
        assert os.fstat(file.fileno()).st_size == 12
    assert os.listdir(path) == [] and content_of(outside) == {}


HOLD = """
import os, sys
fd = os.open(f"{sys.argv[1]}/a", os.O_RDWR | os.O_CREAT)
os.write(fd, b"content")
os.unlink(f"{sys.argv[1]}/a")
print("held", flush=True)
sys.stdin.readline()
os.pwrite(fd, b"C", 0)
sys.stdout.write(os.pread(fd, 100, 0).decode())
"""


def test_write_unlinked_outlives_a_process(mount: Mount, outside: ObjectStore) -> None:
    argv = [sys.executable, "-c", HOLD, mount.path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            mount.kill()
            mount.take_over()
            said, _ = holder.communicate("go on\n", timeout=20)
        except BaseException:
            mount.stop(lazy=True)
            holder.kill()
            raise
    assert said == "Content" and content_of(outside) == {}


# In a process of its own: CPython holds the GIL in msync and page faults, and the fake store runs in this one.
MAP = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
mapping = mmap.mmap(fd, 10_000)
if sys.argv[2] == "outlives":
    os.close(fd)
mapping[5000:5005] = b"HELLO"
if sys.argv[2] == "flush":
    mapping.flush()
    assert os.pread(fd, 5, 5000) == b"HELLO"
"""


@pytest.mark.parametrize("how", ["flush", "close", "outlives"])
def test_a_mapping_is_written_back(path: str, outside: ObjectStore, how: str) -> None:
    Path(path, "m").write_bytes(bytes(10_000))
    subprocess.run([sys.executable, "-c", MAP, f"{path}/m", how], check=True, timeout=30)
    until(lambda: outside.get("m")[5000:5005] == b"HELLO")


def test_times_are_kept(path: str, outside: ObjectStore) -> None:
    Path(path, "t").write_bytes(b"x")
    os.utime(f"{path}/t", ns=(0, 1_600_000_000_123_456_789))
    assert os.stat(f"{path}/t").st_mtime_ns == 1_600_000_000_123_456_789
    subprocess.run(["cp", "-p", f"{path}/t", f"{path}/u"], check=True)
    assert os.stat(f"{path}/u").st_mtime_ns == 1_600_000_000_123_456_789


def test_write_no_xattrs(path: str) -> None:
    Path(path, "a").write_bytes(b"x")
    for act, number in (
        (lambda: os.link(f"{path}/a", f"{path}/b"), errno.EPERM),
        (lambda: os.mkfifo(f"{path}/p"), errno.EPERM),
        (lambda: os.setxattr(f"{path}/a", "user.x", b"1"), errno.ENOTSUP),
        (lambda: os.open(f"{path}/a", os.O_CREAT | os.O_EXCL), errno.EEXIST),
        (lambda: os.rmdir(f"{path}/a"), errno.ENOTDIR),
        (lambda: os.unlink(f"{path}/none"), errno.ENOENT),
    ):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == number


def test_programs_people_use_work(path: str, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    for index in range(30):
        (tmp_path / "tree" / "sub" / f"{index}").write_bytes(os.urandom(index * 500))
    subprocess.run(["cp", "-r", str(tmp_path / "tree"), path], check=True)
    subprocess.run(["tar", "-cf", f"{path}/t.tar", "-C", str(tmp_path), "tree"], check=True)
    subprocess.run(["mkdir", f"{path}/out"], check=True)
    subprocess.run(["tar", "-xf", f"{path}/t.tar", "-C", f"{path}/out"], check=True)
    for copy in ("tree", "out/tree"):
        subprocess.run(["diff", "-r", str(tmp_path / "tree"), f"{path}/{copy}"], check=True)
    subprocess.run(f"echo one > {path}/e; echo two >> {path}/e; sed -i s/one/three/ {path}/e", shell=True, check=True)
    assert Path(path, "e").read_text() == "three\ntwo\n"
    subprocess.run(["dd", "if=/dev/zero", f"of={path}/z", "bs=1M", "count=3", "status=none"], check=True)
    subprocess.run(["rm", "-r", f"{path}/tree"], check=True)
    assert sorted(os.listdir(path)) == ["e", "out", "t.tar", "z"]


def test_write_locks(path: str) -> None:
    with open(f"{path}/l", "wb") as one, open(f"{path}/l", "wb") as other:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_write_mode_and_owner(path: str) -> None:
    Path(path, "a").write_bytes(b"x")
    os.chmod(f"{path}/a", 0o777)
    os.chown(f"{path}/a", 12345, 12345)
    found = os.stat(f"{path}/a")
    assert (found.st_mode & 0o777, found.st_uid) == (0o644, os.getuid())


def test_write_allocate(path: str, outside: ObjectStore) -> None:
    with open(f"{path}/a", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 5000)
        file.write(b"x")
    assert outside.get("a") == b"x" + bytes(4999)
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(["fallocate", "-p", "-o", "0", "-l", "10", f"{path}/a"], check=True, stderr=subprocess.DEVNULL)


def test_a_sparse_file_is_zeros(path: str, outside: ObjectStore) -> None:
    with open(f"{path}/s", "wb") as file:
        file.truncate(100_000)
        file.seek(50_000)
        file.write(b"middle")
    assert outside.get("s") == bytes(50_000) + b"middle" + bytes(49_994)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(SEEDS + 1))
def test_one_file_changed_in_every_way(path: str, outside: ObjectStore, seed: int) -> None:
    argv = [sys.executable, fsx.__file__, f"{path}/f", str(seed), str(FSX_STEPS)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(outside.get("f")).digest() == hashlib.sha256(Path(path, "f").read_bytes()).digest()
