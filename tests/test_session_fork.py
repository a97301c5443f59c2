"""A mount of a process that forks, and memory that is mapped from it."""

import errno
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

import amlmount
from amlmount.mounts import connection
from amlmount.mounts.paths import find_mount
from mounting import make_source, mounted_at, until
from sandbox import Sandbox
from test_session import script


@pytest.fixture
def source(sandbox: Sandbox) -> str:
    return make_source(sandbox.make_dir("s"))


def test_a_forked_child_reads_and_does_not_unmount(source: str) -> None:
    body = """
with m:
    pid = os.fork()
    if pid == 0:
        assert os.listdir(m.mount_point)
        m.stop()
        sys.exit()          # the end of the `with` and atexit run in the child too
    assert os.waitpid(pid, 0)[1] == 0
    print(len(os.listdir(m.mount_point)))
"""
    done = subprocess.run(script(body, source), capture_output=True, text=True, timeout=30)
    assert done.stdout == f"{len(os.listdir(source))}\n", done.stderr


def test_a_fork_does_not_keep_a_dead_mount_alive(source: str) -> None:
    """A data loader's forked worker reads on when the mount's process is killed: it gets an error, it does not hang."""
    body = """
import signal, threading
m.start()
pid = os.fork()
if pid == 0:
    children = open(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read().split()
    children += [c for t in os.listdir(f"/proc/{os.getppid()}/task")
                 for c in open(f"/proc/{os.getppid()}/task/{t}/children").read().split()]
    [worker] = {int(c) for c in children if open(f"/proc/{c}/comm").read().startswith("amlmount:")}
    os.kill(worker, signal.SIGKILL)
    for _ in range(500):
        try:
            os.listdir(m.mount_point)
        except OSError:
            os._exit(7)
        time.sleep(0.01)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run(script(body, source), capture_output=True, text=True, timeout=30)
    assert done.stdout == "7\n", done.stderr


def test_in_process_a_file_that_is_open_does_not_freeze_a_fork(source: str) -> None:
    """subprocess closes our files in the child while we hold the GIL: a FLUSH then would wait for us for ever."""
    body = """
import subprocess
with m:
    with open(f"{m.mount_point}/big.bin", "rb") as file:
        begun = time.monotonic()
        subprocess.run(["true"])
        print(time.monotonic() - begun < 3, len(file.read()))
"""
    done = subprocess.run(script(body, source, how="thread"), capture_output=True, text=True, timeout=30)
    assert done.stdout == "True 300000\n", done.stderr


def test_in_process_a_shared_mapping_is_refused(source: str) -> None:
    """np.memmap(mode="r") on a mount its own process serves: an error, where without direct I/O it freezes for ever."""
    body = """
import numpy as np
with m:
    try:
        np.memmap(m.mount_point + "/big.bin", mode="r")
    except OSError as error:
        print(error.errno)
    print(len(open(m.mount_point + "/big.bin", "rb").read()))
"""
    done = subprocess.run(script(body, source, how="thread"), capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == [str(errno.ENODEV), "300000"], done.stderr


def test_in_process_a_private_mapping_ends_in_sigbus(source: str, sandbox: Sandbox) -> None:
    """The kernel grants private mappings of direct I/O files; touching one freezes, and the guard ends that."""
    target = os.path.join(sandbox.make_dir("t"), "made")
    body = """
import numpy as np
m.start()
np.memmap(m.mount_point + "/big.bin", mode="c").sum()
"""
    argv = script(body, source, target, "thread")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as caller:
        try:
            out, _ = caller.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            abort_mount_at(target)
            raise
    assert caller.returncode == -signal.SIGBUS, out
    until(lambda: not mounted_at(target), 5)


def abort_mount_at(target: str) -> None:
    entry = find_mount(target)
    if entry is not None:
        connection.abort(entry)


def test_a_worker_serves_both_kinds_of_mapping(source: str) -> None:
    expected = Path(source, "big.bin").read_bytes()
    with amlmount.mount(source) as m:
        for mode in ("r", "c"):
            mapped = np.memmap(f"{m.mount_point}/big.bin", mode=mode)
            assert mapped.tobytes() == expected
            del mapped
