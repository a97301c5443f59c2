"""A cache that others lay hands on while it is in use: whatever they do, what is read is what the store has."""

import contextlib
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amlmount.vfs import open_filesystem
from amlmount.vfs.content.directory import CacheDirectory
from amlmount.vfs.content.witness import ChangedError, CutError
from amlmount.vfs.filesystem import BlobFileSystem
from mounting import until
from remote_content import MIB, Remote, is_kept, policy, read_all
from test_content_cache import blob_files, key
from vfs_trees import find, make_spec, source

SIZE = 6 * MIB + 77
DATA = random.Random(3).randbytes(SIZE)
HALF = 3 * MIB
BLOCK = 64 << 10


class Held(Remote):
    """A store that lets nothing of the second half out before it is told to."""

    def __init__(self, data: bytes) -> None:
        super().__init__({"big": data})
        self.gate = threading.Event()

    def get(self, name: str, start: int = 0, length: int | None = None, *, if_match: str | None = None) -> bytes:
        if start + (length or 0) > HALF:
            assert self.gate.wait(20)
        return super().get(name, start, length, if_match=if_match)


@pytest.fixture
def cache_dir(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture
def store() -> Held:
    return Held(DATA)


@pytest.fixture
def fs(store: Held, cache_dir: str) -> Iterator[BlobFileSystem]:
    rules = policy(read_ahead_max_bytes=0)
    spec = make_spec([source()], rules).model_copy(update={"cache_dir": cache_dir})
    files = open_filesystem(spec, stores={"data": store})
    yield files
    store.gate.set()
    files.close()


def data_file(cache_dir: str) -> Path:
    (found,) = Path(cache_dir).glob("blobs/*/*.data")
    return found


def punch(path: Path, offset: int, length: int) -> None:
    subprocess.run(["fallocate", "--punch-hole", "-o", str(offset), "-l", str(length), str(path)], check=True)


def cut(path: Path) -> None:
    os.truncate(path, 1000)


def cut_and_lengthen(path: Path) -> None:
    os.truncate(path, 1000)
    os.truncate(path, SIZE)


def punch_in_the_middle(path: Path) -> None:
    punch(path, MIB, MIB)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(MIB + 100)
        file.write(b"somebody else's")


def put_another_in_its_place(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(bytes(SIZE))
    other.replace(path)


STRANGERS = [cut, cut_and_lengthen, punch_in_the_middle, overwrite, put_another_in_its_place, Path.unlink]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_a_stranger_does_before_the_rest_is_written_never_shows(
    fs: BlobFileSystem, store: Held, cache_dir: str, stranger: Callable[[Path], None]
) -> None:
    big = find(fs, "big")
    assert read_all(fs, big, HALF) == DATA[:HALF]
    until(lambda: data_file(cache_dir).stat().st_blocks * 512 >= HALF)
    stranger(data_file(cache_dir))
    store.gate.set()
    for offset in range(HALF, SIZE, MIB):
        assert fs.read(big, offset, MIB) == DATA[offset : offset + MIB], "the rest is written, to the very end"
    assert read_all(fs, big, SIZE) == DATA


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_a_stranger_does_to_a_file_that_is_whole_never_shows_and_is_mended(
    fs: BlobFileSystem, store: Held, cache_dir: str, stranger: Callable[[Path], None]
) -> None:
    store.gate.set()
    big = find(fs, "big")
    read_all(fs, big, SIZE)
    until(lambda: is_kept(fs, "big"))
    stranger(data_file(cache_dir))
    for _ in range(2):
        assert read_all(fs, big, SIZE) == DATA

    def is_given_to_the_kernel() -> bool:
        fd = fs.whole_file(fs.node(big))
        if fd is None:
            return False
        with open(fd, "rb") as file:
            return file.read() == DATA

    until(is_given_to_the_kernel)


def test_a_stranger_who_cuts_all_the_time_costs_requests_only(fs: BlobFileSystem, store: Held, cache_dir: str) -> None:
    store.gate.set()
    big, dice, is_over = find(fs, "big"), random.Random(5), threading.Event()
    read_all(fs, big, BLOCK)

    def spoil() -> None:
        while not is_over.wait(0.002):
            for path in Path(cache_dir).glob("blobs/*/*.data"):
                with contextlib.suppress(FileNotFoundError):
                    os.truncate(path, dice.randrange(SIZE))

    vandal = threading.Thread(target=spoil)
    vandal.start()
    try:
        for _ in range(400):
            offset = dice.randrange(SIZE)
            size = min(dice.randrange(1, MIB), SIZE - offset)
            assert fs.read(big, offset, size) == DATA[offset : offset + size]
    finally:
        is_over.set()
        vandal.join()
    assert len(list(Path(cache_dir).glob("blobs/*/*.data"))) == 1
    assert read_all(fs, big, SIZE) == DATA


@pytest.fixture
def directory(cache_dir: str) -> Iterator[CacheDirectory]:
    cache = CacheDirectory(cache_dir)
    yield cache
    cache.close()


def test_a_cut_file_is_never_made_as_long_as_it_was_by_what_is_written_last(directory: CacheDirectory) -> None:
    file = directory.open_blob(key(99), "b", SIZE)
    last = file.grid.count - 1
    file.write(0, DATA[: 8 * BLOCK])
    file.look()
    os.ftruncate(file.fd, BLOCK)
    for first, data in ((8, DATA[8 * BLOCK : 16 * BLOCK]), (last, DATA[last * BLOCK :])):
        with pytest.raises(CutError):
            file.write(first, data)
    os.ftruncate(file.fd, SIZE)
    with pytest.raises(CutError):
        file.read(0, 100)


def test_a_changed_file_is_believed_again_block_by_block(directory: CacheDirectory) -> None:
    file = directory.open_blob(key(99), "b", SIZE)
    file.write(0, DATA)
    file.look()
    os.pwrite(file.fd, b"#", 5 * BLOCK)
    with pytest.raises(ChangedError):
        file.read(0, 100)
    file.distrust()
    assert file.needs_check and file.has(0, 5) and not file.has(5, 6) and file.has(6, 8)
    assert file.read(0, 100) == DATA[:100]
    file.write(5, DATA[5 * BLOCK : 6 * BLOCK])
    while file.check_next(100):
        pass
    assert file.is_whole


def test_a_replaced_file_is_counted_anew_and_leaves_the_old_one_to_those_who_have_it_open(
    directory: CacheDirectory,
) -> None:
    file = directory.open_blob(key(99), "b", SIZE)
    directory.write_blob(key(99), file, 0, DATA)
    assert directory.used_bytes >= SIZE
    held = os.open(blob_files(directory.path)[0], os.O_RDONLY)
    try:
        fresh = directory.replace_blob(key(99), "b", SIZE)
        assert directory.used_bytes == 0 and not fresh.has(0, 1)
        directory.write_blob(key(99), fresh, 0, bytes(BLOCK))
        assert os.pread(held, SIZE, 0) == DATA
    finally:
        os.close(held)
