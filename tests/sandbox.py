"""Where a test run happens and what makes sure that nothing of it stays: a directory, a mount namespace, a guardian.

The guardian is this file run as a script: it waits for the death of pytest, however that comes, and cleans up after it.
Standard library only, so a broken amlmount cannot break the cleaning.
"""

import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

PREFIX = "amlt-"
RECORD = "run.json"
CLONE_NEWNS, MS_PRIVATE_REC, MNT_DETACH_NOFOLLOW = 0x20000, 0x44000, 0xA
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Snapshot:
    """What there is at one moment: mounts as (id, mount point), process ids, temporary names."""

    mounts: frozenset[tuple[int, str]]
    pids: frozenset[int]
    temporary: frozenset[str]


@dataclass(frozen=True)
class Leftovers:
    """What a test made and did not take away. Processes as (pid, start time)."""

    mounts: list[str]
    processes: list[tuple[int, int]]
    temporary: list[str]

    def __bool__(self) -> bool:
        return bool(self.mounts or self.processes or self.temporary)

    def __str__(self) -> str:
        lines = [f"mount {point}" for point in self.mounts]
        lines += [f"process {pid}: {command_line(pid)}" for pid, _ in self.processes]
        return "\n".join(lines + [f"temporary {name}" for name in self.temporary])


@dataclass
class Sandbox:
    """The ground of one test run. `private`: it has a mount namespace of its own (only root can have that).

    `namespaces` are the mount namespaces whose processes are the run's.
    """

    root: str
    private: bool
    guardian: "subprocess.Popen[bytes] | None" = None
    serial: int = 0
    namespaces: set[str] = field(default_factory=set)

    def make_dir(self, kind: str, mode: int = 0o755) -> str:
        """Make a directory with a short path (a socket's may have 107 bytes)."""
        self.serial += 1
        path = os.path.join(self.root, f"{kind}{self.serial}")
        os.mkdir(path)
        os.chmod(path, mode)
        return path

    def snapshot(self) -> Snapshot:
        """Look at what there is, without touching a mount."""
        mounts = mounts_below(None if self.private else self.root)
        return Snapshot(frozenset(mounts), frozenset(all_pids()), frozenset(temporary_names()))

    def leftovers(self, before: Snapshot, grace_s: float) -> Leftovers:
        """Say what is new since `before`, giving it `grace_s` seconds to go by itself."""
        deadline = time.monotonic() + grace_s
        while (left := self._new_since(before)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def sweep(self, left: Leftovers) -> None:
        """Remove by force."""
        kill_all(left.processes)
        for point in reversed(left.mounts):
            lazy_unmount(point)
        for name in left.temporary:
            remove_tree(os.path.join(tempfile.gettempdir(), name))

    def _new_since(self, before: Snapshot) -> Leftovers:
        now = self.snapshot()
        processes = [(pid, start) for pid in now.pids - before.pids if (start := start_time(pid)) and self.owns(pid)]
        mounts = sorted(point for _, point in now.mounts - before.mounts)
        return Leftovers(mounts, sorted(processes), sorted(now.temporary - before.temporary))

    def owns(self, pid: int) -> bool:
        """Say whether a process belongs to this run; Python's own multiprocessing helper is not counted.

        Nor are processes of a box with process ids of its own: they end with it, and the box itself is counted.
        """
        if "multiprocessing.resource_tracker" in command_line(pid):
            return False
        if namespace_of(pid, "pid") not in ("", namespace_of(os.getpid(), "pid")):
            return False
        return namespace_of(pid) in self.namespaces or carries(pid, self.root) or descends(pid, os.getpid())


def open_sandbox() -> Sandbox:
    """Clean up after runs that were killed, then make the ground of this one; call it before any thread is started."""
    for stale in stale_roots():
        clean(stale)
    root = tempfile.mkdtemp(prefix=PREFIX)
    os.chmod(root, 0o755)
    os.mkdir(os.path.join(root, "tmp"))
    os.chmod(os.path.join(root, "tmp"), 0o1777)
    tempfile.tempdir = os.environ["TMPDIR"] = os.path.join(root, "tmp")
    with open(os.path.join(root, RECORD), "w") as file:
        json.dump({"pid": os.getpid(), "start": start_time(os.getpid())}, file)
    sandbox = Sandbox(root, private=enter_private_namespace())
    if sandbox.private:
        sandbox.namespaces.add(namespace_of(os.getpid()))
    sandbox.guardian = start_guardian(sandbox)
    return sandbox


def start_guardian(sandbox: Sandbox) -> "subprocess.Popen[bytes]":
    """Start the guardian; it is handed our pidfd, for we may be dead before it could open one."""
    pidfd, null = os.pidfd_open(os.getpid()), subprocess.DEVNULL
    argv = [sys.executable, "-I", "-S", __file__, sandbox.root, str(pidfd), str(int(sandbox.private))]
    try:
        return subprocess.Popen(
            argv, pass_fds=[pidfd], start_new_session=True, env={}, cwd="/", stdin=null, stdout=null, stderr=null
        )
    finally:
        os.close(pidfd)


def close_sandbox(sandbox: Sandbox) -> None:
    """End the guardian and take the ground away."""
    if sandbox.guardian is not None:
        sandbox.guardian.kill()
        sandbox.guardian.wait()
    clean(sandbox.root)


def enter_private_namespace() -> bool:
    """Move this process to a mount namespace whose mounts nobody else sees; False without the rights."""
    if LIBC.unshare(CLONE_NEWNS) != 0:
        return False
    if LIBC.mount(b"none", b"/", None, ctypes.c_ulong(MS_PRIVATE_REC), None) != 0:
        raise OSError(ctypes.get_errno(), "cannot make the mounts private")
    return True


def stale_roots() -> Iterator[str]:
    """Find the grounds of earlier runs whose pytest has gone."""
    for name in os.listdir(tempfile.gettempdir()):
        path = os.path.join(tempfile.gettempdir(), name)
        if not name.startswith(PREFIX) or os.lstat(path).st_uid != os.geteuid():
            continue
        with contextlib.suppress(OSError, ValueError, KeyError):
            with open(os.path.join(path, RECORD)) as file:
                record = json.load(file)
            if start_time(int(record["pid"])) != record["start"]:
                yield path


def clean(root: str) -> None:
    """Kill every process that carries `root` in its environment or arguments, unmount below it, remove it."""
    kill_all((pid, start) for pid, start in all_processes() if pid != os.getpid() and carries(pid, root))
    for _, point in sorted(mounts_below(root), reverse=True):
        lazy_unmount(point)
    remove_tree(root)


def guard(root: str, pytest_pidfd: int, private: bool) -> None:
    """Wait for pytest to end, then end everything in its namespace (ours too: its number is not reused) and clean."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waiter = select.poll()
    waiter.register(pytest_pidfd, select.POLLIN)
    waiter.poll()
    if private:
        own = os.readlink("/proc/self/ns/mnt")
        kill_all(who for who in all_processes() if who[0] != os.getpid() and namespace_of(who[0]) == own)
    clean(root)


def namespace_of(pid: int, kind: str = "mnt") -> str:
    """Name the mount (or other) namespace of a process, empty if it has gone."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    return ""


def mounts_below(root: str | None) -> list[tuple[int, str]]:
    """List (id, mount point) of the mounts at or below `root`, all for None."""
    with open("/proc/self/mountinfo", "rb") as file:
        fields = [line.split(b" ") for line in file]
    table = [(int(line[0]), os.fsdecode(re.sub(rb"\\(\d{3})", _octal, line[4]))) for line in fields]
    return [(number, point) for number, point in table if root is None or f"{point}/".startswith(f"{root}/")]


def _octal(match: "re.Match[bytes]") -> bytes:
    return bytes([int(match[1], 8)])


def lazy_unmount(point: str) -> None:
    """Let go of a mount without waiting for anybody."""
    if LIBC.umount2(os.fsencode(point), MNT_DETACH_NOFOLLOW) != 0 and os.geteuid() != 0:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["fusermount3", "-u", "-z", "--", point], timeout=10, check=False, capture_output=True)


def remove_tree(root: str) -> None:
    """Remove a tree, unless something is still mounted in it."""
    if not mounts_below(root):
        shutil.rmtree(root, ignore_errors=True)


def all_pids() -> list[int]:
    """List the process ids of the machine."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def all_processes() -> Iterator[tuple[int, int]]:
    """Yield every process as (pid, start time)."""
    for pid in all_pids():
        if (start := start_time(pid)) is not None:
            yield pid, start


def descends(pid: int, ancestor: int) -> bool:
    """Say whether a process was started by `ancestor`, or by one of its children and so on."""
    while pid > 1 and pid != ancestor:
        fields = stat_fields(pid)
        pid = int(fields[1]) if fields else 0
    return pid == ancestor


def temporary_names() -> list[str]:
    """List what product code has put into the temporary directory of the run."""
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("amlmount")]


def carries(pid: int, mark: str) -> bool:
    """Say whether `mark` stands in the environment or the arguments of a process of ours."""
    for name in ("environ", "cmdline"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
            if mark.encode() in file.read():
                return True
    return False


def start_time(pid: int) -> int | None:
    """Return when a process was started (clock ticks since boot), None if it has gone or is a zombie."""
    fields = stat_fields(pid)
    return None if not fields or fields[0] in (b"Z", b"X") else int(fields[19])


def stat_fields(pid: int) -> list[bytes]:
    """Return /proc/PID/stat from its third field (the state) on, empty if there is no such process."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()
    return []


def command_line(pid: int) -> str:
    """Return the arguments of a process as one line."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    return "?"


def kill_all(who: Iterable[tuple[int, int]], wait_s: float = 5.0) -> None:
    """SIGKILL processes, each only if it is still the one that was meant, and wait for them to go."""
    targets = list(who)
    for pid, start in targets:
        if start_time(pid) == start:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + wait_s
    while any(start_time(pid) == start for pid, start in targets) and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    guard(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1")
