# ruff: noqa: F811 (fixtures of another module)
"""Files that the kernel writes by itself, where others touch them meanwhile: by size, name, time, a second handle."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from amlmount.config.profiles import PROFILES
from amlmount.config.spec import MountSpec, Ownership
from amlmount.fuse.writing import WritingAdapter
from amlmount.stores.azure.store import AzureStore
from amlmount.stores.base import ObjectStore
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.base import Node
from amlmount.vfs.writing.livefile import LiveFile, State
from mounting import until
from writing.ground import Tree, opened
from writing.test_writing_direct import (  # noqa: F401
    NEW,
    Program,
    durability,
    has,
    mount,
    outside,
    path,
    program,
    service,
    spec_of,
)
from writing.test_writing_mount import Mount, mounted
from writing.trouble import DOWN, Trouble

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


def test_room_asked_for_cuts_nothing_off(path: str, outside: ObjectStore) -> None:
    fd = os.open(f"{path}/a", NEW)
    os.write(fd, b"x" * 5000)
    os.posix_fallocate(fd, 0, 1000)
    assert os.fstat(fd).st_size == 5000
    os.posix_fallocate(fd, 0, 6000)
    os.close(fd)
    has(outside, "a", b"x" * 5000 + bytes(1000))


def test_a_change_of_mode_does_not_show_an_old_size(path: str, outside: ObjectStore) -> None:
    fd = os.open(f"{path}/a", NEW)
    os.write(fd, b"x" * 5000)
    os.fchmod(fd, 0o644)
    assert os.fstat(fd).st_size == 5000
    os.write(fd, b"y")
    os.fchmod(fd, 0o644)
    assert os.lseek(fd, 0, os.SEEK_END) == 5001
    os.close(fd)
    has(outside, "a", b"x" * 5000 + b"y")


@pytest.mark.parametrize("durability", ["store", "journal"])
def test_one_of_several_handles_closed_after_a_crash_leaves_the_others(
    program: Program, mount: Mount, outside: ObjectStore
) -> None:
    program.do(
        "fds = [os.open(path + '/a', NEW), os.open(path + '/a', os.O_WRONLY), os.open(path + '/a', os.O_RDONLY)]"
    )
    program.do("os.write(fds[0], b'one')")
    mount.kill()
    mount.take_over()
    program.do("os.close(fds[0])")
    has(outside, "a", b"one")
    program.do("os.close(fds[2])")
    time.sleep(0.5)
    program.do("os.pwrite(fds[1], b' two', 3); os.close(fds[1])")
    has(outside, "a", b"one two")
    assert Path(mount.path, "a").read_bytes() == b"one two"


def test_what_was_looked_at_is_not_taken_for_stored(program: Program, mount: Mount, outside: ObjectStore) -> None:
    program.do("os.mkdir(path + '/d'); fd = os.open(path + '/d/a', NEW); os.write(fd, b'one'); os.fsync(fd)")
    program.do("os.pwrite(fd, b'two', 0); os.stat(path + '/d/a'); os.open(path + '/d/a', os.O_RDONLY)")
    mount.kill()
    mount.take_over()
    program.do("os.close(fd)")
    has(outside, "d/a", b"two")


def test_who_wants_every_write_to_last_gets_that(path: str, outside: ObjectStore) -> None:
    fd = os.open(f"{path}/a", NEW | os.O_DSYNC)
    os.write(fd, b"one")
    assert outside.get("a") == b"one"
    os.close(fd)


def test_a_file_that_lost_its_name_is_opened_as_what_has_it(
    outside: AzureStore, spec_of: Callable[..., MountSpec]
) -> None:
    with mounted(spec_of()) as mount:
        fd = os.open(f"{mount.path}/a", NEW)
        os.write(fd, b"ours")
        outside.put("a", b"theirs")
        with pytest.raises(OSError) as caught:
            os.fsync(fd)
        assert caught.value.errno == errno.ESTALE
        assert Path(mount.path, "a").read_bytes() == b"theirs"
        with pytest.raises(OSError):
            os.close(fd)


@contextmanager
def written_directly(outside: AzureStore, state_dir: Path) -> Iterator[tuple[Tree, LiveFile, int]]:
    """A file of ours, with the descriptor by which the kernel writes it."""
    with opened(outside, state_dir) as tree, tree.create("a", os.O_WRONLY) as handle:
        file = handle.node
        assert isinstance(file, LiveFile)
        found = tree.files.empty_file(file, os.O_WRONLY)
        assert found is not None and tree.files.begin_direct(file, os.O_WRONLY, found[1])
        yield tree, file, found[0]
        os.close(found[0])


def test_a_write_at_the_moment_of_the_look_hides_no_other(
    outside: AzureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between our giving the file a time and our asking for it; another follows in the same tick."""
    with written_directly(outside, tmp_path) as (tree, file, fd):
        tick, real = time.time_ns(), tree.files.disk.stamp

        def write(data: bytes) -> None:
            os.pwrite(fd, data, 0)
            os.utime(fd, ns=(tick, tick))

        def stamp(fd: int, mtime_ns: int) -> None:
            real(fd, mtime_ns)
            write(b"2")

        write(b"1")
        with monkeypatch.context() as patch, file.lock:
            patch.setattr(tree.files.disk, "stamp", stamp)
            assert file.notice()
        tree.files.flush(file.node_id)
        write(b"3")
    assert outside.get("a") == b"3"


def test_no_two_changes_of_one_tick_have_one_time(outside: AzureStore, tmp_path: Path) -> None:
    """A successor compares with the time of what was sent last, and need not have heard of what came between."""
    with written_directly(outside, tmp_path) as (_, file, fd):
        tick, times = time.time_ns(), list[int]()
        for number in range(5):
            os.pwrite(fd, b"%d" % number, 0)
            os.utime(fd, ns=(tick, tick))
            file.notice_now()
            times.append(os.fstat(fd).st_mtime_ns)
        assert len(set(times)) == 5 and max(times) < tick


def test_what_somebody_looked_at_counts_as_changed(outside: AzureStore, tmp_path: Path) -> None:
    """Its time may be noted down afterwards, and who reads that must not take it for what was sent."""
    with written_directly(outside, tmp_path) as (tree, file, fd):
        os.pwrite(fd, b"1", 0)
        tree.files.flush(file.node_id)
        os.pwrite(fd, b"2", 0)
        shown = tree.files.getattr(file.node_id)
        assert shown.mtime_ns == os.fstat(fd).st_mtime_ns
        state = State.from_json(file.state.to_json())
        assert state.change > state.stored


@pytest.mark.parametrize("flags", ["os.O_WRONLY | os.O_TRUNC", "os.O_RDWR"])
def test_who_has_a_file_open_is_counted_by_the_next_process(
    program: Program, mount: Mount, tmp_path: Path, flags: str
) -> None:
    """One of several handles is closed, then the file is unlinked: the others keep it to their end."""
    Path(mount.path, "a").write_bytes(b"before")
    program.do(f"fds = [os.open(path + '/a', {flags}) for _ in range(3)]; os.write(fds[0], b'one')")
    mount.kill()
    mount.take_over()
    program.do("os.close(fds[0]); os.close(fds[2])")
    time.sleep(0.3)
    program.do("os.unlink(path + '/a'); os.pwrite(fds[1], b' two', 3); assert os.fstat(fds[1]).st_size == 7")
    program.do("os.close(fds[1])")
    until(lambda: not os.listdir(tmp_path / "state" / "data"))


class Registered:
    """What the kernel says to whoever registers a file."""

    is_usable = True

    def register(self, fd: int) -> int:
        return 7

    def close(self, backing_id: int) -> None:
        pass


def test_who_opens_a_file_second_waits_for_the_first(
    outside: AzureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(outside, tmp_path) as tree, tree.create("a", os.O_WRONLY) as handle:
        adapter = WritingAdapter(tree.files, PROFILES["checkpoint"], Ownership(uid=0, gid=0, file_mode=0, dir_mode=0))
        adapter._inodes.backings = Registered()  # type: ignore[assignment]
        real, is_there = tree.files.begin_direct, threading.Event()

        def begin_late(node: Node, flags: int, epoch: int | None) -> bool:
            if epoch is not None:
                is_there.set()
                time.sleep(0.1)
            return real(node, flags, epoch)

        monkeypatch.setattr(tree.files, "begin_direct", begin_late)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(adapter._back, handle.node, os.O_WRONLY, 1)
            assert is_there.wait(10)
            assert adapter._back(handle.node, os.O_RDONLY, 2) == first.result() == 7


def test_a_mapping_keeps_its_data_file_when_the_file_is_cut(tmp_path: Path) -> None:
    """What is promised is sent first, as long as somebody may have a mapping: it would go on in the old data file."""
    trouble = Trouble()
    trouble.failing["put"] = DOWN
    store = MemoryStore(before=trouble)
    with opened(store, tmp_path, durability="journal") as tree:
        with tree.create("a", os.O_WRONLY) as handle:
            file = handle.node
            assert isinstance(file, LiveFile)
            found = tree.files.empty_file(file, os.O_WRONLY)
            assert found is not None and tree.files.begin_direct(file, os.O_WRONLY, found[1])
            assert tree.files.begin_direct(file, os.O_RDWR, None)
            os.write(found[0], b"promised")
        with pytest.raises(OSError):
            tree.truncate("a", 3)
        trouble.failing.clear()
        tree.truncate("a", 3)
        os.pwrite(found[0], b"P", 0)  # as through the mapping
        os.close(found[0])
        assert tree.files.drain(20) and store.get("a") == b"Pro"
