"""An ordinary user for tests that run as root: another uid in a private mount namespace with an open /dev/fuse.

Run as a script it is the door: `userbox.py make DIR PATH...` prepares a namespace (with DIR for its own files),
`userbox.py enter FD UID CWD ARGV...` starts a command in it. The real /dev/fuse and directories keep their modes.
"""

import contextlib
import ctypes
import os
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amlmount.mounts import syscalls

ORDINARY_UID = 65534
FUSE_DEVICE = os.makedev(10, 229)
FUSECTL = "/sys/fs/fuse/connections"


@dataclass
class UserBox:
    """Runs commands as an ordinary user (`uid`), whose directory is `home`; in one box they see each other's mounts.

    Where the tests themselves run as an ordinary user, it is that user.
    """

    uid: int
    home: str
    namespace_fd: int | None = None
    started: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` in the box; it needs `pass_fds`."""
        if self.namespace_fd is None:
            return list(argv)
        return [sys.executable, __file__, "enter", str(self.namespace_fd), str(self.uid), self.home, *argv]

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """The descriptors that `argv` needs."""
        return () if self.namespace_fd is None else (self.namespace_fd,)

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a plain login of that user, plus `extra`."""
        path = os.pathsep.join([os.path.dirname(sys.executable), "/usr/bin", "/bin"])
        base = {"PATH": path, "HOME": self.home, "LC_ALL": "C.UTF-8", "TMPDIR": os.environ["TMPDIR"]}
        return base | dict(extra or {})

    def run(
        self, *argv: str, env: Mapping[str, str] | None = None, timeout_s: float = 30, input: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, whatever its exit code."""
        return subprocess.run(
            self.argv(argv),
            env=self.env(env),
            cwd=self.home,
            pass_fds=self.pass_fds,
            timeout=timeout_s,
            input=input,
            capture_output=True,
            text=True,
            check=False,
        )

    def spawn(self, *argv: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start a command with pipes on stdin and stdout; it is killed when the box is closed."""
        pipe = subprocess.PIPE
        started = subprocess.Popen(
            self.argv(argv),
            env=self.env(env),
            cwd=self.home,
            pass_fds=self.pass_fds,
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.STDOUT,
        )
        self.started.append(started)
        return started

    def close(self) -> None:
        """End what `spawn` started and let go of the namespace (its mounts go with its last process)."""
        for process in self.started:
            process.kill()
            process.communicate()
        if self.namespace_fd is not None:
            os.close(self.namespace_fd)
            self.namespace_fd = None


def open_box(home: str, private_dir: str, needed: Sequence[str]) -> UserBox:
    """Make a box; `needed` are the paths that must be reachable in it (interpreter, sources, the run's ground)."""
    if os.geteuid() != 0:
        return UserBox(os.geteuid(), home)
    os.chown(home, ORDINARY_UID, ORDINARY_UID)
    argv = [sys.executable, __file__, "make", private_dir, *needed]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        assert maker.stdin is not None and maker.stdout is not None
        if maker.stdout.readline() != b"ready\n":
            raise RuntimeError("cannot make the namespace of an ordinary user: see standard error")
        namespace_fd = os.open(f"/proc/{maker.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        maker.stdin.close()
    return UserBox(ORDINARY_UID, home, namespace_fd)


def make(private_dir: str, needed: Sequence[str]) -> None:
    """Prepare this process's new namespace and keep it until standard input ends."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    expose(needed)
    device, fuse_conf = f"{private_dir}/fuse", f"{private_dir}/fuse.conf"
    syscalls.mount("none", private_dir, "tmpfs", 0, "mode=755")
    os.mknod(device, stat.S_IFCHR | 0o666, FUSE_DEVICE)
    os.chmod(device, 0o666)
    syscalls.mount(device, "/dev/fuse", None, syscalls.MS_BIND)
    with open(fuse_conf, "w"):
        pass
    if os.path.exists("/etc/fuse.conf"):
        syscalls.mount(fuse_conf, "/etc/fuse.conf", None, syscalls.MS_BIND)
    with contextlib.suppress(OSError):
        syscalls.mount("none", FUSECTL, "fusectl")
    print("ready", flush=True)
    sys.stdin.read()


def expose(paths: Sequence[str]) -> None:
    """Make `paths` reachable for everybody: a directory above that is closed is covered by one that holds only them."""
    closed: dict[str, list[tuple[str, int]]] = {}
    for path in dict.fromkeys(map(os.path.realpath, paths)):
        if (above := closed_ancestor(path)) is not None:
            closed.setdefault(above, []).append((path, syscalls.open_tree(path, clone=True)))
    for above, inside in closed.items():
        syscalls.mount("none", above, "tmpfs", 0, "mode=755")
        for path, tree_fd in inside:
            os.makedirs(path, exist_ok=True)
            syscalls.move_mount(tree_fd, path)
            os.close(tree_fd)


def closed_ancestor(path: str) -> str | None:
    """Return the outermost directory above `path` that others may not enter."""
    parts = path.split("/")
    for end in range(2, len(parts)):
        above = "/".join(parts[:end])
        if not os.stat(above).st_mode & stat.S_IXOTH:
            return above
    return None


def enter(namespace_fd: int, uid: int, cwd: str, argv: list[str]) -> None:
    """Become the ordinary user in the namespace and start the command."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace_fd, syscalls.CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(namespace_fd)
    os.chdir(cwd)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], sys.argv[3:])
    else:
        enter(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
