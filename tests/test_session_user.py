"""`amlmount.mount` as an ordinary user: by fusermount3, with the same promises."""

import os
import signal
import sys

import pytest

from mounting import make_source, until
from sandbox import Sandbox
from userbox import UserBox

SCRIPT = """
import filecmp, os, sys, time
import amlmount
from amlmount.errors import AmlmountError
source, target, how = sys.argv[1:4]
m = amlmount.mount(source, target or None, in_process=how == "thread")
{body}
"""


@pytest.fixture
def source(sandbox: Sandbox) -> str:
    return make_source(sandbox.make_dir("s"))


def script(body: str, source: str, target: str = "", how: str = "worker") -> list[str]:
    return [sys.executable, "-c", SCRIPT.format(body=body), source, target, how]


def mounted(box: UserBox, target: str) -> bool:
    """Ask in the user's namespace, where alone the mount is seen."""
    return f" {target} " in box.run("cat", "/proc/self/mountinfo").stdout


@pytest.mark.parametrize("how", ["worker", "thread"])
def test_a_user_mounts_reads_and_unmounts(as_user: UserBox, source: str, how: str) -> None:
    body = """
with m:
    [line] = [l for l in open("/proc/self/mountinfo") if m.mount_point in l]
    assert f"user_id={os.getuid()}" in line and "allow_other" not in line and "fuse.amlmount" in line, line
    for folder, _, names in os.walk(source):
        there = folder.replace(source, m.mount_point, 1)
        assert sorted(os.listdir(there)) == sorted(os.listdir(folder))
        assert filecmp.cmpfiles(folder, there, names, shallow=False)[1:] == ([], [])
        assert all(os.stat(f"{there}/{name}").st_uid == os.getuid() for name in names)
print(os.path.lexists(m.mount_point))
"""
    done = as_user.run(*script(body, source, how=how))
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("how", ["worker", "thread"])
def test_a_killed_user_process_leaves_no_mount_and_no_folder(as_user: UserBox, source: str, how: str) -> None:
    target = os.path.join(as_user.home, "made/by us")
    body = "m.start(); f = open(m.mount_point + '/big.bin', 'rb'); print(os.getpid(), flush=True); time.sleep(60)"
    caller = as_user.spawn(*script(body, source, target, how))
    assert caller.stdout is not None
    pid = int(caller.stdout.readline())
    assert mounted(as_user, target.replace(" ", "\\040"))
    os.kill(pid, signal.SIGKILL)
    until(lambda: not mounted(as_user, target.replace(" ", "\\040")), 10)
    until(lambda: not os.path.lexists(os.path.dirname(target)), 5)


def test_stop_with_an_open_file_as_a_user(as_user: UserBox, source: str) -> None:
    body = """
m.start()
f = os.open(m.mount_point + "/big.bin", os.O_RDONLY)
begun = time.monotonic()
m.stop()
print(time.monotonic() - begun < 3, os.path.lexists(m.mount_point))
try:
    os.pread(f, 4096, 200000)
except OSError as error:
    print(error.errno)
"""
    done = as_user.run(*script(body, source))
    assert done.stdout == "True False\n107\n", done.stderr


def test_a_folder_the_user_may_not_write_is_refused_with_a_hint(
    as_user: UserBox, source: str, sandbox: Sandbox
) -> None:
    body = """
try:
    m.start()
except AmlmountError as error:
    print(error.code, bool(error.hint))
"""
    done = as_user.run(*script(body, source, sandbox.make_dir("closed", 0o755) + "/new"))
    expected = "mount_failed True\n" if as_user.namespace_fd is not None else ""
    assert done.stdout == expected, done.stderr
