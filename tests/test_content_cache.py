"""The cache directory on disk: what survives, what is found out when it was damaged, what it does when it is full."""

import errno
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amlmount.vfs.content.directory import CacheDirectory, entries_on_disk
from amlmount.vfs.content.packs import INDEX, RECORD

SIZE = 1_000_000  # 16 blocks, the last one short


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def noise(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def small(path: str, number: int) -> bytes | None:
    cache = CacheDirectory(path)
    try:
        found = cache.packs.get(key(number))
        return None if found is None else bytes(found)
    finally:
        cache.close()


def fill(path: str, count: int = 10) -> None:
    cache = CacheDirectory(path)
    cache.packs.put([(key(number), noise(700, number)) for number in range(count)])
    file = cache.open_blob(key(99), "dir/big.bin", SIZE)
    cache.write_blob(key(99), file, 0, noise(SIZE)[: 8 * file.grid.block_bytes])
    cache.close()


def damage(name: str, offset: int, data: bytes = b"\xff\x00\xff") -> None:
    with open(name, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_what_was_written_is_there_after_a_restart(path: str) -> None:
    fill(path)
    cache = CacheDirectory(path)
    assert [bytes(cache.packs.get(key(n)) or b"") for n in range(10)] == [noise(700, n) for n in range(10)]
    file = cache.open_blob(key(99), "dir/big.bin", SIZE)
    assert file.has(0, 8) and not file.has(8, 9) and not file.has(0, 16)
    assert file.read(100, 5000) == noise(SIZE)[100:5100]
    cache.write_blob(key(99), file, 8, noise(SIZE)[8 * file.grid.block_bytes :])
    assert file.has(0, 16) and file.is_whole
    cache.close()


def test_it_is_for_its_owner_only(path: str) -> None:
    old = os.umask(0)
    try:
        fill(path)
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(os.lstat(base).st_mode) for base, _, _ in os.walk(path)}
    assert modes == {0o700}
    files = [os.path.join(base, name) for base, _, names in os.walk(path) for name in names]
    assert {stat.S_IMODE(os.lstat(name).st_mode) for name in files} == {0o600}


def test_one_process_at_a_time(path: str) -> None:
    cache = CacheDirectory(path)
    with pytest.raises(OSError) as caught:
        CacheDirectory(path)
    assert caught.value.errno == errno.EBUSY
    cache.close()
    CacheDirectory(path).close()


def test_a_directory_of_another_version_is_not_touched(path: str) -> None:
    fill(path)
    Path(path, "lock").write_bytes(b"amlmount cache 9\n")
    with pytest.raises(OSError) as caught:
        CacheDirectory(path)
    assert caught.value.errno == errno.EINVAL


DAMAGE: dict[str, Callable[[str], None]] = {
    "bytes": lambda path: damage(f"{path}/packs/000001.pack", RECORD.size + 350),
    "length": lambda path: damage(f"{path}/packs/000001.pack", 16),
    "sum": lambda path: damage(f"{path}/packs/000001.pack", 20),
    "key": lambda path: damage(f"{path}/packs/000001.pack", 0),
    "index": lambda path: damage(f"{path}/packs/000001.index", 18),
    "cut": lambda path: os.truncate(f"{path}/packs/000001.pack", 300),
    "gone": lambda path: os.unlink(f"{path}/packs/000001.index"),
    "elsewhere": lambda path: damage(f"{path}/packs/000001.index", 0, INDEX.pack(key(0), 1 << 31, 700, 0)),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_pack_gives_nothing_rather_than_wrong_bytes(path: str, what: str) -> None:
    fill(path)
    DAMAGE[what](path)
    assert small(path, 0) is None
    if what not in ("cut", "gone"):
        assert small(path, 5) == noise(700, 5)
    cache = CacheDirectory(path)
    assert cache.packs.get(key(0)) is None
    cache.packs.put([(key(0), b"new")])
    cache.close()
    assert small(path, 0) == b"new"


def test_half_an_index_entry_at_the_end_is_ignored(path: str) -> None:
    fill(path)
    with open(f"{path}/packs/000001.index", "ab") as file:
        file.write(b"torn")
    cache = CacheDirectory(path)
    cache.packs.put([(key(50), b"after")])
    cache.close()
    assert small(path, 9) == noise(700, 9) and small(path, 50) == b"after"


@pytest.mark.parametrize("block", [0, 7])
def test_a_damaged_block_is_found_out_at_its_first_read_and_forgotten(path: str, block: int) -> None:
    fill(path)
    data, _ = blob_files(path)
    damage(data, block * 65536 + 1000)
    cache = CacheDirectory(path)
    file = cache.open_blob(key(99), "dir/big.bin", SIZE)
    assert not file.has(block, block + 1)
    assert file.has(1, 7)
    cache.close()


def blob_files(path: str) -> tuple[str, str]:
    base = f"{path}/blobs/{key(99).hex()[:2]}/{key(99).hex()}"
    return f"{base}.data", f"{base}.map"


@pytest.mark.parametrize("how", ["cut", "longer", "no map", "head", "garbage"])
def test_a_blob_whose_files_do_not_fit_is_begun_anew(path: str, how: str) -> None:
    fill(path)
    data, blocks = blob_files(path)
    match how:
        case "cut":
            os.truncate(data, 1000)
        case "longer":
            os.truncate(data, SIZE + 1)
        case "no map":
            os.unlink(blocks)
        case "head":
            damage(blocks, 9)
        case "garbage":
            Path(blocks).write_bytes(noise(4096))
    cache = CacheDirectory(path)
    file = cache.open_blob(key(99), "dir/big.bin", SIZE)
    assert not any(file.has(block, block + 1) for block in range(16))
    assert os.stat(data).st_size == SIZE
    cache.close()


def test_a_cut_map_claims_less(path: str) -> None:
    fill(path)
    _, blocks = blob_files(path)
    os.truncate(blocks, os.stat(blocks).st_size - 3)
    cache = CacheDirectory(path)
    file = cache.open_blob(key(99), "dir/big.bin", SIZE)
    assert file.has(0, 7) and not file.has(7, 8)
    cache.close()


def test_a_killed_writer_never_leaves_a_claim_without_bytes(path: str) -> None:
    """Kill a process in the middle of writing, again and again: whatever is claimed afterwards is right."""
    code = (
        "import sys; from amlmount.vfs.content.directory import CacheDirectory\n"
        "from test_content_cache import SIZE, key, noise\n"
        "cache = CacheDirectory(sys.argv[1]); file = cache.open_blob(key(99), 'b', SIZE); data = noise(SIZE)\n"
        "print('go', flush=True)\n"
        "for n in range(100000):\n"
        "    block = n % 15\n"
        "    cache.write_blob(key(99), file, block, data[block * 65536 : (block + 1) * 65536])\n"
        "    cache.packs.put([(key(n), noise(2000, n))])\n"
        "    file.forget(block, block + 1)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, env=environment)
        assert writer.stdout and writer.stdout.readline() == b"go\n"
        writer.stdout.read(0)
        while sum(entry.size_bytes for entry in entries_on_disk(path)) < 200_000:
            assert writer.poll() is None
        writer.kill()
        writer.wait()
        writer.stdout.close()
        cache = CacheDirectory(path)
        file = cache.open_blob(key(99), "b", SIZE)
        there = [block for block in range(16) if file.sums[block]]
        assert all(file.has(block, block + 1) for block in there)
        found = [n for n in range(2000) if key(n) in cache.packs]
        assert found and all(bytes(cache.packs.get(key(n)) or b"") == noise(2000, n) for n in found)
        for entry in cache.entries():
            cache.drop(entry.id)
        cache.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tiny", str(path)], check=True)
    yield str(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.root
def test_a_full_disk_is_an_error_and_what_was_there_stays(tiny_disk: str) -> None:
    cache = CacheDirectory(f"{tiny_disk}/cache")
    cache.packs.put([(key(1), noise(700))])
    with pytest.raises(OSError) as caught:
        for number in range(2, 2000):
            cache.packs.put([(key(number), noise(700, number))])
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError):
        file = cache.open_blob(key(99), "b", SIZE)
        for block in range(15):
            cache.write_blob(key(99), file, block, noise(65536, block))
    assert bytes(cache.packs.get(key(1)) or b"") == noise(700)
    cache.close()
    assert small(f"{tiny_disk}/cache", 1) == noise(700)


def test_entries_are_what_can_be_dropped(path: str) -> None:
    fill(path)
    cache = CacheDirectory(path)
    entries = {entry.id: entry for entry in cache.entries()}
    blob_entry = cache.entry_of(key(99)) or ""
    assert cache.entry_of(key(3)) == "packs/000001" and cache.entry_of(key(77)) is None
    assert set(entries) == {"packs/000001", blob_entry}
    assert entries[blob_entry].name == "dir/big.bin" and entries[blob_entry].size_bytes >= 8 * 65536
    assert cache.used_bytes == sum(entry.size_bytes for entry in entries.values())
    assert {entry.id for entry in entries_on_disk(path)} == set(entries)

    assert cache.drop("packs/000001") > 7000
    assert cache.packs.get(key(3)) is None and not os.path.exists(f"{path}/packs/000001.pack")
    cache.hold(key(99))
    assert cache.drop(blob_entry) == 0
    cache.release(key(99))
    cache.pin(blob_entry)
    cache.close()

    cache = CacheDirectory(path)
    assert [entry.is_pinned for entry in cache.entries()] == [True]
    assert cache.drop(blob_entry) == 0
    cache.pin(blob_entry, is_pinned=False)
    assert cache.drop(blob_entry) > 0 and cache.entries() == [] and cache.used_bytes == 0
    assert cache.drop("packs/../../x") == 0
    cache.close()


def test_beyond_its_limit_it_asks_for_room(path: str) -> None:
    cache = CacheDirectory(path, limit_bytes=3000)
    asked: list[int] = []
    cache.packs.put([(key(1), noise(2000))])
    with pytest.raises(OSError) as caught:
        cache.packs.put([(key(2), noise(2000))])
    assert caught.value.errno == errno.ENOSPC
    cache.make_room = lambda missing: bool(asked.append(missing) or cache.drop("packs/000001"))  # type: ignore[func-returns-value]
    cache.packs.put([(key(2), noise(2000))])
    assert len(asked) == 1 and 1000 < asked[0] < 1200
    assert cache.packs.get(key(1)) is None and bytes(cache.packs.get(key(2)) or b"") == noise(2000)
    cache.close()
