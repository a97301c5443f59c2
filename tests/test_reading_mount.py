"""Reading through real mounts of a store that is not local: profiles, page cache, passthrough, other writers."""

import errno
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fakeblob import FakeBlobService
from mounting import until
from remote_mounts import MIB, fill, frozen, gets, mounted, worker_pid
from sandbox import Sandbox

BIG = bytes(range(256)) * (9 * MIB // 256) + b"tail"
SMALL = {f"set/{n:03d}.jpg": bytes([n % 251]) * (500 + n) for n in range(150)}
CONTENT = SMALL | {"big.bin": BIG, "empty": b"", "deep/er/medium.bin": BIG[: 300 * 1024]}


@pytest.fixture
def fake() -> Iterator[FakeBlobService]:
    service = FakeBlobService()
    fill(service, CONTENT)
    yield service
    service.close()


@pytest.fixture
def cache_dir(sandbox: Sandbox) -> str:
    return os.path.join(sandbox.make_dir("c"), "cache")


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def pread(path: str, offset: int, size: int) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.pread(handle, size, offset)
    finally:
        os.close(handle)


def within(seconds: float, work: Callable[[], object]) -> None:
    """Run in a thread, so that a mount that hangs fails the test and does not hang it."""
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, f"not done within {seconds:g} s"


@pytest.mark.parametrize("profile", ["standard", "epochs", "stream", "random", "fresh"])
def test_every_profile_gives_the_right_bytes(
    fake: FakeBlobService, mountpoint: str, cache_dir: str, profile: str
) -> None:
    with mounted(fake.definition(), mountpoint, profile, cache_dir) as point:
        for _ in range(2):
            for name, data in CONTENT.items():
                assert read(f"{point}/{name}") == data
        assert pread(f"{point}/big.bin", 5 * MIB + 3, 1000) == BIG[5 * MIB + 3 :][:1000]
    assert os.path.exists(cache_dir) == (profile != "stream")
    if profile != "stream":
        asked = len(gets(fake))
        with mounted(fake.definition(), mountpoint, profile, cache_dir) as point:
            assert all(read(f"{point}/{name}") == data for name, data in CONTENT.items())
        assert len(gets(fake)) == asked, "the cache did not survive the restart"


def test_without_a_cache_directory(fake: FakeBlobService, mountpoint: str) -> None:
    with mounted(fake.definition(), mountpoint, "standard") as point:
        assert all(read(f"{point}/{name}") == data for name, data in CONTENT.items())


def test_looking_around_fetches_nothing(fake: FakeBlobService, mountpoint: str, cache_dir: str) -> None:
    with mounted(fake.definition(), mountpoint, "epochs", cache_dir) as point:
        subprocess.run(["find", point, "-type", "f", "-size", "+0"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["ls", "-lR", point], check=True, stdout=subprocess.DEVNULL)
        time.sleep(0.1)
        assert gets(fake) == []


def test_the_page_cache_is_filled_ahead(fake: FakeBlobService, mountpoint: str, cache_dir: str) -> None:
    """Two files are read; the others are then read while the worker is frozen, so it is the kernel that has them."""
    with mounted(fake.definition(), mountpoint, "epochs", cache_dir) as point:
        names = sorted(os.listdir(f"{point}/set"))
        for name in names[:2]:
            read(f"{point}/set/{name}")
        until(lambda: len(gets(fake)) == len(SMALL))
        time.sleep(0.3)  # the last of them are on their way to the kernel
        with frozen(worker_pid()):
            handles = [os.open(f"{point}/set/{name}", os.O_RDONLY) for name in names]
            for name, handle in zip(names, handles, strict=True):
                within(10, lambda handle=handle, name=name: check(handle, SMALL[f"set/{name}"]))  # type: ignore[misc]
                os.close(handle)
    assert len(gets(fake)) == len(SMALL)


def check(handle: int, expected: bytes) -> bool:
    assert os.read(handle, 4096) == expected
    return True


READER = """
import os, random, sys
point, seed = sys.argv[1], int(sys.argv[2])
names = sorted(os.listdir(point)); random.Random(seed).shuffle(names)
for name in names:
    handle = os.open(f"{point}/{name}", os.O_RDONLY)
    data = os.read(handle, 1 << 20)
    n = int(name[:3])
    assert data == bytes([n % 251]) * (500 + n), name
    os.close(handle)
"""


@pytest.mark.parametrize("profile", ["epochs", "standard"])
def test_four_shuffled_readers_while_the_page_cache_is_filled(
    fake: FakeBlobService, mountpoint: str, cache_dir: str, profile: str
) -> None:
    """Reads that wait and pages that are stored meet all the time here; nobody may wait for ever."""
    for round_ in range(3):
        with mounted(fake.definition(), mountpoint, profile, f"{cache_dir}{round_}") as point:
            argv = [sys.executable, "-c", READER, f"{point}/set"]
            readers = [subprocess.Popen([*argv, str(seed)], stderr=subprocess.PIPE) for seed in range(4)]
            for reader in readers:
                _, said = reader.communicate(timeout=30)
                assert reader.returncode == 0, said.decode()
    assert len(gets(fake)) == 3 * len(SMALL), "readers of one file shared no request"


def handle_of(path: str) -> int:
    return os.open(path, os.O_RDONLY)


@pytest.mark.root
def test_a_file_that_is_whole_is_read_by_the_kernel_itself(
    fake: FakeBlobService, mountpoint: str, cache_dir: str
) -> None:
    with mounted(fake.definition(), mountpoint, "standard", cache_dir) as point:
        path = f"{point}/big.bin"
        first = handle_of(path)
        assert read(path) == BIG
        while_open = handle_of(path)  # whole by now, but the inode is open the other way
        assert os.pread(while_open, 100, MIB) == BIG[MIB:][:100]
        os.close(first)
        os.close(while_open)
        until(lambda: passes_through(path))
        again = handle_of(path)
        assert os.pread(again, 100, 2 * MIB) == BIG[2 * MIB :][:100]
        assert os.fstat(again).st_size == len(BIG)
        os.close(again)
        assert read(path) == BIG


def passes_through(path: str) -> bool:
    """Say whether a new handle is served without the worker. O_DIRECT: not from the page cache either."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    done: list[bytes] = []

    def read_block() -> None:
        with mmap.mmap(-1, 4096) as block:
            os.preadv(handle, [block], 3 * MIB)
            done.append(bytes(block))

    reader = threading.Thread(target=read_block, daemon=True)
    try:
        with frozen(worker_pid()):
            reader.start()
            reader.join(1)
            was_answered = bool(done)
        reader.join(10)
        assert done == [BIG[3 * MIB :][:4096]]
        return was_answered
    finally:
        os.close(handle)


@pytest.mark.root
def test_passthrough_after_a_restart_waits_until_the_file_was_checked(
    fake: FakeBlobService, mountpoint: str, cache_dir: str
) -> None:
    with mounted(fake.definition(), mountpoint, "standard", cache_dir) as point:
        assert read(f"{point}/big.bin") == BIG
    data = next(
        os.path.join(base, name)
        for base, _, names in os.walk(cache_dir)
        for name in names
        if name.endswith(".data") and os.path.getsize(os.path.join(base, name)) == len(BIG)
    )
    with open(data, "r+b") as file:
        file.seek(4 * MIB)
        file.write(b"tampered")
    with mounted(fake.definition(), mountpoint, "standard", cache_dir) as point:
        for _ in range(20):
            assert pread(f"{point}/big.bin", 4 * MIB, 100) == BIG[4 * MIB :][:100]
            assert read(f"{point}/big.bin") == BIG
        until(lambda: passes_through(f"{point}/big.bin"))
        assert read(f"{point}/big.bin") == BIG


@pytest.mark.root
def test_a_cache_on_an_overlay_is_read_through_the_worker(
    fake: FakeBlobService, mountpoint: str, sandbox: Sandbox
) -> None:
    base = sandbox.make_dir("o")
    subprocess.run(["mount", "-t", "tmpfs", "layers", base], check=True)
    try:
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{base}/{name}")
        options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", f"{base}/merged"], check=True)
        with mounted(fake.definition(), mountpoint, "standard", f"{base}/merged/cache") as point:
            for _ in range(3):
                assert read(f"{point}/big.bin") == BIG
            assert not passes_through(f"{point}/big.bin")
        subprocess.run(["umount", "-l", f"{base}/merged"], check=True)
    finally:
        subprocess.run(["umount", "-l", base], check=True)


@pytest.mark.parametrize("profile", ["standard", "epochs"])
def test_a_blob_that_changes_under_an_open_reader(
    fake: FakeBlobService, mountpoint: str, cache_dir: str, profile: str
) -> None:
    """Old bytes or ESTALE at every place that is read, whatever was here of the old version."""
    with mounted(fake.definition(), mountpoint, profile, cache_dir) as point:
        handle = handle_of(f"{point}/big.bin")
        assert os.pread(handle, 4096, 0) == BIG[:4096]
        fill(fake, {"big.bin": b"\xee" * len(BIG)})
        outcomes = set()
        for offset in random.Random(2).sample(range(0, len(BIG) - 4096, 4096), 200):
            try:
                assert os.pread(handle, 4096, offset) == BIG[offset : offset + 4096]
                outcomes.add(0)
            except OSError as error:
                outcomes.add(error.errno or -1)
        assert errno.ESTALE in outcomes and outcomes <= {0, errno.ESTALE}
        os.close(handle)
        if profile == "standard":
            assert read(f"{point}/big.bin") == b"\xee" * len(BIG)  # found anew, because the old one is gone


def test_fresh_sees_what_others_write_within_its_time(fake: FakeBlobService, mountpoint: str, cache_dir: str) -> None:
    with mounted(fake.definition(), mountpoint, "fresh", cache_dir) as point:
        for number in range(3):
            for name in ("set/000.jpg", "deep/er/medium.bin"):
                data = b"%d" % number * (100 + number)
                fill(fake, {name: data})
                began = time.monotonic()
                until(lambda name=name, data=data: read(f"{point}/{name}") == data)  # type: ignore[misc]
                assert time.monotonic() - began < 2.5


def test_a_container_that_is_deleted_while_mounted(fake: FakeBlobService, mountpoint: str, cache_dir: str) -> None:
    with mounted(fake.definition(), mountpoint, "standard", cache_dir) as point:
        assert read(f"{point}/set/000.jpg") == SMALL["set/000.jpg"]
        handle = handle_of(f"{point}/big.bin")
        del fake.containers["data"]
        with pytest.raises(OSError) as caught:
            os.pread(handle, 4096, 8 * MIB)
        assert caught.value.errno == errno.EIO
        os.close(handle)
        assert read(f"{point}/set/000.jpg") == SMALL["set/000.jpg"]


def test_the_first_entries_of_a_long_directory_come_before_its_last_page(
    fake: FakeBlobService, mountpoint: str, cache_dir: str
) -> None:
    fill(fake, {f"long/{number:05d}": b"" for number in range(11_000)})
    fake.fail("silence", 1, when=lambda asked: asked.is_list and "marker" in asked.query)
    with mounted(fake.definition(), mountpoint, "standard", cache_dir) as point:
        began = time.monotonic()
        with os.scandir(f"{point}/long") as found:
            assert [next(found).name for _ in range(100)] == [f"{number:05d}" for number in range(100)]
        assert time.monotonic() - began < 5  # the second page takes 15 s


def test_the_first_byte_of_a_large_file_takes_two_round_trips(
    fake: FakeBlobService, mountpoint: str, cache_dir: str
) -> None:
    """One for the listing of its folder, which the mount has not looked into, and one for the bytes."""
    with mounted(fake.definition(), mountpoint, "standard", cache_dir) as point:
        asked = len(fake.asked)
        assert pread(f"{point}/deep/er/medium.bin", 0, 100) == BIG[:100]
        lists = [one.query["prefix"] for one in fake.asked[asked:] if one.is_list]
        assert lists == ["deep/", "deep/er/"]
        assert pread(f"{point}/big.bin", 0, 100) == BIG[:100]
        assert len([one for one in fake.asked[asked:] if one.is_list]) == 2
