"""The same for an ordinary user, through fusermount3 and with /dev/fuse open to all."""

import json
import sys
import textwrap

import pytest

from userbox import UserBox

PRELUDE = """
import json, os, subprocess, sys, time
sys.path.insert(0, os.environ["TESTS"])
import tiny_fuse
from amlmount import mounts
from amlmount.errors import AmlmountError
os.mkdir("m")
target = os.path.abspath("m")
def mount(**options):
    options = {"source": "a,b\\\\c d", "read_only": True, "allow_other": False, "default_permissions": True} | options
    return mounts.open_and_mount(target, **options)
def show(error):
    print(json.dumps([type(error).__name__, error.message, error.hint]))
"""


def in_box(as_user: UserBox, code: str, **env: str) -> str:
    whole = PRELUDE + textwrap.dedent(code)
    done = as_user.run(sys.executable, "-c", whole, env={"TESTS": __file__.rpartition("/")[0]} | env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_mount_use_and_unmount(as_user: UserBox) -> None:
    code = """
        fd = mount()
        assert not os.get_inheritable(fd)
        server = tiny_fuse.start(fd)
        os.close(fd)
        try:
            entry = mounts.find_mount(target)
            assert (entry.fstype, entry.source) == ("fuse.amlmount", "a,b\\\\c d"), entry
            assert {"nosuid", "nodev"} <= set(entry.options) and "ro" in entry.super_options, entry
            assert f"user_id={os.getuid()}" in entry.super_options, entry
            assert subprocess.run(["cat", "m/hello"], capture_output=True, timeout=10).stdout == tiny_fuse.CONTENT
            deadline = time.monotonic() + 5
            while mounts.waiting(entry) and time.monotonic() < deadline:  # a close is answered later
                time.sleep(0.01)
            known = (False, 0) if mounts.fusectl_mounted() else (None, None)
            assert (mounts.is_dead(entry), mounts.waiting(entry)) == known
        finally:
            mounts.unmount(target)
        assert mounts.find_mount(target) is None and server.wait(10) == 0
        try:
            mounts.unmount(target)
        except AmlmountError as error:
            show(error)
    """
    name, message, _ = json.loads(in_box(as_user, code))
    assert (name, message[:14]) == ("NotFoundError", "cannot unmount")


def test_busy_lazy_and_dead(as_user: UserBox) -> None:
    code = """
        fd = mount()
        server = tiny_fuse.start(fd)
        pipe = subprocess.PIPE
        holder = subprocess.Popen(["sh", "-c", "exec 3<m/hello; echo x; cat"], stdin=pipe, stdout=pipe)
        holder.stdout.readline()
        try:
            mounts.unmount(target)
        except AmlmountError as error:
            show(error)
        entry = mounts.find_mount(target)
        server.kill()
        server.wait()
        os.close(fd)
        assert mounts.is_dead(entry) is True
        mounts.unmount(target, lazy=True)
        assert mounts.find_mount(target) is None
        holder.communicate()
        print(holder.pid)
    """
    error, pid = in_box(as_user, code).splitlines()
    name, message, hint = json.loads(error)
    assert name == "BusyError" and f"(pid {pid}, open file " in message and "--lazy" in hint


@pytest.mark.root
def test_allow_other_needs_a_line_in_fuse_conf(as_user: UserBox) -> None:
    code = """
        try:
            mount(allow_other=True)
        except AmlmountError as error:
            show(error)
    """
    name, message, hint = json.loads(in_box(as_user, code))
    assert name == "MountFailedError" and "user_allow_other" in message and "/etc/fuse.conf" in hint
    assert message.startswith("cannot mount '") and "fusermount3:" not in message


@pytest.mark.root
def test_fusermount3_that_is_missing_and_a_closed_device(as_user: UserBox) -> None:
    code = """
        import shutil
        shutil.which = lambda *args, **kwargs: None
        try:
            mount()
        except AmlmountError as error:
            show(error)
    """
    name, message, hint = json.loads(in_box(as_user, code))
    assert (name, hint) == ("MountFailedError", "install it: sudo apt install fuse3") and "fusermount3" in message


@pytest.mark.root
def test_a_mount_of_root_is_not_a_users_to_take_down(as_user: UserBox) -> None:
    code = """
        try:
            mounts.unmount("/dev/fuse")
        except AmlmountError as error:
            show(error)
    """
    name, message, hint = json.loads(in_box(as_user, code))
    assert name == "MountFailedError" and message.startswith("cannot unmount '/dev/fuse'") and "sudo" in hint


@pytest.mark.root
def test_somebody_elses_holders_are_not_seen_and_the_error_says_so(as_user: UserBox) -> None:
    code = """
        error = mounts.busy_error("cannot unmount 'x'", [])
        show(error)
    """
    assert "by no process that this user can see" in json.loads(in_box(as_user, code))[1]
