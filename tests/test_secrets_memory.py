"""What a process has in memory stays there: no core is left, however it ends, and no other user looks in."""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from daemons import Pair, make_pair, poll
from world import World

NOBODY = 65534
PATTERN = Path("/proc/sys/kernel/core_pattern").read_text().strip()
ABORT = "import os, sys; from amlmount.privileges import forbid_core_dumps as forbid; {forbid}os.abort()"
PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
READ, LISTED = ("mem", "environ", "maps", "auxv"), ("fd", "map_files")


@pytest.fixture
def pair(world: World) -> Pair:
    return make_pair(world)


def cores_in(folder: str) -> set[str]:
    """Return the cores in a directory, where the kernel puts them into the directory of the process."""
    return {name for name in os.listdir(folder) if name.startswith("core")} if PATTERN[:1] not in "|/" else set()


def allow_cores() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def ends_with_core(argv: list[str], cwd: Path) -> bool:
    """Run a program that aborts itself, and say whether the kernel wrote a core, or handed one to a program."""
    with subprocess.Popen(argv, cwd=cwd, preexec_fn=allow_cores, stderr=subprocess.DEVNULL) as process:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None and ended.si_status == signal.SIGABRT
    return ended.si_code == os.CLD_DUMPED


def test_who_forbids_cores_leaves_none(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard:  # else nobody leaves one here
        assert ends_with_core([sys.executable, "-c", ABORT.format(forbid="")], tmp_path), "it cannot be seen here"
    for core in cores_in(str(tmp_path)):
        (tmp_path / core).unlink()
    assert not ends_with_core([sys.executable, "-c", ABORT.format(forbid="forbid(); ")], tmp_path)
    assert cores_in(str(tmp_path)) == set()


def test_a_daemon_and_workers_that_are_aborted_leave_no_core(pair: Pair) -> None:
    world = pair.world
    argv = world.argv("daemon")
    with subprocess.Popen(
        argv, env=world.env, cwd=world.root, preexec_fn=allow_cores, stderr=subprocess.DEVNULL
    ) as daemon:
        try:
            poll(lambda: os.path.exists(f"{world.runtime_dir}/amlmount.sock"), "no socket")
            assert world.cli("up").returncode == 0
            processes = [pid for pid, _ in world.processes() if pid != daemon.pid]
            folders = {os.readlink(f"/proc/{pid}/cwd") for pid in [daemon.pid, *processes]} | {world.root}
            before = {folder: cores_in(folder) for folder in folders}
            for pid in pair.workers():
                os.kill(pid, signal.SIGABRT)
                poll(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), "it lives on")  # type: ignore[misc]
            daemon.send_signal(signal.SIGABRT)
            ended = os.waitid(os.P_PID, daemon.pid, os.WEXITED | os.WNOWAIT)
        finally:
            daemon.kill()
    assert ended is not None and (ended.si_code, ended.si_status) == (os.CLD_KILLED, signal.SIGABRT)
    assert {folder: cores_in(folder) for folder in folders} == before


@pytest.mark.root
def test_no_other_user_looks_into_a_process_of_roots_daemon(pair: Pair) -> None:
    assert pair.world.cli("up").returncode == 0
    processes = [pid for pid, _ in pair.world.processes()]
    assert len(processes) >= 4 and {pair.daemon(), *pair.workers()} <= set(processes)
    with subprocess.Popen(["sleep", "60"], user=NOBODY, group=NOBODY) as own:
        try:
            seen = as_nobody(partial(look_into, [*processes, own.pid]))
        finally:
            own.kill()
    assert {(own.pid, how) for how in ("mem", "environ", "ptrace")} <= seen, "it could not have been seen"
    assert {pid for pid, _ in seen} == {own.pid}


def as_nobody(look: Callable[[], set[tuple[int, str]]]) -> set[tuple[int, str]]:
    """Call `look` as an ordinary user, in a fork: that user may not be able to start our interpreter."""
    reads, writes = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writes, json.dumps(sorted(look())).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with open(reads) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return {(pid, how) for pid, how in json.loads(text)}


def look_into(processes: list[int]) -> set[tuple[int, str]]:
    """Do what gcore(1) and the like would do: read the files of a process, attach to it. Return what was let."""
    return {(pid, how) for pid in processes for how in (*READ, *LISTED, "ptrace") if is_let(pid, how)}


def is_let(pid: int, how: str) -> bool:
    if how == "ptrace":
        libc = ctypes.CDLL(None)
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        if libc.ptrace(PTRACE_SEIZE, pid, None, None):
            return False
        libc.ptrace(PTRACE_DETACH, pid, None, None)
        return True
    try:
        if how in LISTED:
            os.listdir(f"/proc/{pid}/{how}")
        else:
            os.close(os.open(f"/proc/{pid}/{how}", os.O_RDONLY))
    except PermissionError:
        return False
    return True
