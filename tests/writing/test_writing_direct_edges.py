# ruff: noqa: F811 (fixtures of another module)
"""Files that the kernel writes by itself, where others touch them meanwhile: by size, name, time, a second handle."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from amlmount.config.spec import MountSpec
from amlmount.stores.azure.store import AzureStore
from amlmount.stores.base import ObjectStore
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
