"""A machine of its own for tests of the installer: an overlay over a tree, private namespaces, a loopback network.

Nothing of the real machine is written to; its /dev, /run, /tmp and network are not in the box. With `systemd`, process
1 is a real systemd in a cgroup of its own; it sees cgroup2 only, so that it cannot take the machine's for its own.
"""

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# What this machine happens to run and a box must not, and what needs hardware or other kernels' features.
MASKED = [
    *("console-getty.service", "systemd-journald-audit.socket", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("systemd-modules-load.service", "systemd-timesyncd.service", "systemd-udevd.service"),
    *("systemd-udev-trigger.service", "systemd-networkd.service", "systemd-resolved.service", "postgresql.service"),
    *("nginx.service", "apt-daily.timer", "apt-daily-upgrade.timer", "man-db.timer", "e2scrub_all.timer"),
    *("dpkg-db-backup.timer", "cron.service", "ssh.service", "docker.service", "fstrim.timer", "logrotate.timer"),
    *("systemd-networkd-wait-online.service", "redis-server.service", "rabbitmq-server.service"),
]
WITHOUT = "-sys_time,-sys_module,-sys_rawio,-audit_control,-audit_read,-mac_admin,-mac_override,-wake_alarm,-syslog"
ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
# Written by every run of apt, dpkg or ldconfig, with nothing in it that a user has.
NOISE = (
    *("var/log/", "var/cache/", "var/lib/dpkg/", "var/lib/apt/", "var/lib/systemd/", "var/lib/swcatalog/", "var/tmp/"),
    *("var/lib/PackageKit/", "etc/ld.so.cache", "root/"),
)
SETUP = r"""
W=$STORE; mkdir -p "$W/u" "$W/w" "$W/m"; M=$W/m
mount -t overlay overlay -o lowerdir="$LOWER",upperdir="$W/u",workdir="$W/w" "$M"
mkdir -p "$M/proc" "$M/sys" "$M/dev" "$M/run" "$M/tmp"
mount -t proc proc "$M/proc"
mount --bind "$M/proc/sys" "$M/proc/sys"; mount -o remount,ro,bind "$M/proc/sys"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$M/sys"
if [ -n "$SYSTEMD" ]; then mount -t cgroup2 cgroup2 "$M/sys/fs/cgroup"; fi
mount -t tmpfs -o mode=755,nosuid tmpfs "$M/dev"; mkdir "$M/dev/pts" "$M/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$M/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$M/dev/shm"
for d in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229; do
    IFS=: read -r n a b <<<"$d"; mknod -m 666 "$M/dev/$n" c "$a" "$b"
done
ln -s pts/ptmx "$M/dev/ptmx"; ln -s /proc/self/fd "$M/dev/fd"
: >"$M/dev/console"; mount --bind "$CONSOLE" "$M/dev/console"
mount -t tmpfs -o mode=755 tmpfs "$M/run"; mount -t tmpfs -o mode=1777 tmpfs "$M/tmp"
mkdir -p "$M/run/host/box"; mount --bind "$CTL" "$M/run/host/box"
while IFS=: read -r s d; do
    [ -n "$s" ] || continue; mkdir -p "$M$d"; mount --bind "$s" "$M$d"
done <<<"$BINDS"
: >"$M/etc/fstab"; hostname box; echo box >"$M/etc/hostname"
ip link set lo up
if [ -n "$SYSTEMD" ]; then mkdir -p "$M/run/systemd/system"; fi
cd "$M"; mkdir -p run/old; pivot_root . run/old; umount -l /run/old; rmdir /run/old
mount --make-rshared /
if [ -z "$SYSTEMD" ]; then : >/run/host/box/ready; exec env -i sleep infinity; fi
exec env -i container=box container_uuid= NOTIFY_SOCKET=/run/host/box/notify PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --bounding-set="$WITHOUT" --inh-caps=-all \
    /lib/systemd/systemd --log-target=journal-or-kmsg --show-status=0 "$@" </dev/null >/dev/console 2>&1
"""


@dataclass
class Box:
    """A running box. `store` (a tmpfs of ours) keeps what is written, so that it can be started again: a reboot."""

    lower: str = "/"
    systemd: bool = False
    binds: tuple[str, ...] = ()
    leader: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    control: str = ""
    store: str = ""
    extra: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def start(self, timeout_s: float = 60.0) -> "Box":
        """Bring it up, until its process 1 is ready."""
        self.control = tempfile.mkdtemp(prefix="box.")
        os.chmod(self.control, 0o755)
        if not self.store:
            self.store = tempfile.mkdtemp(prefix="store.")
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", self.store], check=True)
        Path(self.control, "console").touch()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(f"{self.control}/notify")
        listener.settimeout(0.1)
        if self.systemd:
            os.mkdir(self.cgroup)
        spaces = ["--pid", "--mount", "--uts", "--ipc", "--net", *(["--cgroup"] if self.systemd else [])]
        argv = ["unshare", "--fork", "--kill-child=SIGKILL", *spaces, "--propagation", "private", "--"]
        masks = [f"systemd.mask={unit}" for unit in MASKED]
        with open(f"{self.control}/setup.log", "wb") as log:
            self.process = subprocess.Popen(
                [*argv, "bash", "-euc", SETUP, "box", *masks],
                env=dict(os.environ, **self._names()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=self._enter,
                start_new_session=True,
            )
        try:
            self._wait_ready(listener, time.monotonic() + timeout_s)
        finally:
            listener.close()
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        self.leader = int(children.split()[0])
        return self

    @property
    def cgroup(self) -> str:
        """The box's own cgroup."""
        unified = "/sys/fs/cgroup/unified"
        base = unified if os.path.exists(f"{unified}/cgroup.controllers") else "/sys/fs/cgroup"
        return f"{base}/amlt-{os.path.basename(self.control)}"

    @property
    def upper(self) -> str:
        """Where what was written is seen from outside."""
        return f"{self.store}/u"

    def argv(self, *command: str, env: dict[str, str] | None = None) -> list[str]:
        """Return the command line that runs `command` in the box."""
        enter = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-r", "--wdns=/"]
        enter += ["-C"] if self.systemd else []
        return [*enter, "--", "env", "-i", *(f"{k}={v}" for k, v in (ENV | (env or {})).items()), *command]

    def run(
        self,
        *command: str,
        timeout_s: float = 120,
        check: bool = False,
        input: str | None = None,
        env: dict[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; with `check` it must exit 0."""
        done = subprocess.run(
            self.argv(*command, env=env), input=input, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def sh(self, script: str, **more: Any) -> str:
        """Run a shell script, which must succeed, and return what it printed."""
        return self.run("sh", "-euc", script, check=True, **more).stdout

    def spawn(self, *command: str) -> "subprocess.Popen[bytes]":
        """Start a command that ends with the box at the latest."""
        null = subprocess.DEVNULL
        child = subprocess.Popen(self.argv(*command), stdin=null, stdout=null, stderr=null)
        self.extra.append(child)
        return child

    def write(self, path: str, text: str) -> None:
        """Write a file in the box."""
        self.run("sh", "-euc", 'mkdir -p "$(dirname "$1")"; cat >"$1"', "sh", path, input=text, check=True)

    def copy_in(self, folder: Path, names: "tuple[str, ...]", to: str) -> None:
        """Copy files and folders of this machine into the box."""
        packed = subprocess.run(["tar", "-C", str(folder), "-c", *names], stdout=subprocess.PIPE, check=True).stdout
        self.sh(f"mkdir -p {to}")
        subprocess.run(self.argv("tar", "-C", to, "-x", "--no-same-owner"), input=packed, check=True, timeout=60)

    def read(self, path: str) -> str:
        """Read a file in the box."""
        return self.run("cat", path, check=True).stdout

    def exists(self, path: str) -> bool:
        """Say whether there is something at a path in the box."""
        return self.run("test", "-e", path).returncode == 0

    def changes(self) -> dict[str, str]:
        """Return every path that differs from the tree below, with a digest of what is there now."""
        found = dict(_changed(self.upper, self.lower, ""))
        return {path: digest for path, digest in found.items() if not path.startswith(NOISE)}

    def reboot(self) -> None:
        """Take it down and bring it up again: /run, /tmp and processes are new, files are as they were left."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Take it down for good."""
        self.stop()
        if self.store:
            subprocess.run(["umount", "-l", self.store], check=False)
            os.rmdir(self.store)
            self.store = ""

    def stop(self) -> None:
        """Take it down: systemd in good order, everything else by the end of its process 1."""
        process = self.process
        if process is None:
            return
        if self.systemd and self.leader and process.poll() is None:
            os.kill(self.leader, signal.SIGRTMIN + 4)  # systemd(1): poweroff.target
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        process.kill()
        process.wait()
        for child in self.extra:
            child.kill()
            child.wait()
        self.extra.clear()
        if self.systemd:
            self._remove_cgroup()
        shutil.rmtree(self.control, ignore_errors=True)
        self.process = None

    def _names(self) -> dict[str, str]:
        binds = "\n".join(bind if ":" in bind else f"{bind}:{bind}" for bind in self.binds)
        own = {
            "LOWER": self.lower,
            "STORE": self.store,
            "CTL": self.control,
            "CONSOLE": f"{self.control}/console",
            "BINDS": binds,
        }
        return own | {"SYSTEMD": "yes" if self.systemd else "", "WITHOUT": WITHOUT}

    def _enter(self) -> None:
        """In the child: enter our cgroup before there is a cgroup namespace, and die with pytest."""
        if self.systemd:
            with open(f"{self.cgroup}/cgroup.procs", "w") as file:
                file.write("0")
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    def _wait_ready(self, listener: socket.socket, deadline: float) -> None:
        assert self.process is not None
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = Path(self.control, "setup.log").read_text(errors="replace")
                said += Path(self.control, "console").read_text(errors="replace")
                self.stop()
                raise AssertionError(f"the box does not come up: {said[-2000:]}")
            if not self.systemd:
                if os.path.exists(f"{self.control}/ready"):
                    return
                time.sleep(0.01)
                continue
            with contextlib.suppress(TimeoutError):
                if "READY=1" in listener.recv(8192).decode().split("\n"):
                    return

    def _remove_cgroup(self) -> None:
        for _ in range(100):
            for folder, _, _ in os.walk(self.cgroup, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            if not os.path.isdir(self.cgroup):
                return
            with contextlib.suppress(OSError):
                Path(self.cgroup, "cgroup.kill").write_text("1")
            time.sleep(0.05)


@contextlib.contextmanager
def open_box(lower: str = "/", *, systemd: bool = False, binds: tuple[str, ...] = ()) -> Iterator[Box]:
    """A box for the time of a `with`."""
    box = Box(lower, systemd, binds)
    try:
        yield box.start()
    finally:
        box.close()


def needed_binds(lower: str) -> tuple[str, ...]:
    """Return what a box needs of this machine to run amlmount from the checkout."""
    wanted = {str(ROOT), sys.prefix, sys.base_prefix}
    return tuple(sorted(path for path in wanted if path not in ("/", "/usr")))


def _changed(upper: str, lower: str, below: str) -> Iterator[tuple[str, str]]:
    folder = os.path.join(upper, below)
    for name in sorted(os.listdir(folder)):
        path = os.path.join(below, name)
        found = os.lstat(os.path.join(upper, path))
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:  # a whiteout: the tree has it, the box does not
            yield path, "removed"
        elif stat.S_ISDIR(found.st_mode):
            yield from _changed_directory(upper, lower, path)
        elif (digest := _digest(os.path.join(upper, path))) != _digest(os.path.join(lower, path)):
            yield path, digest


def _changed_directory(upper: str, lower: str, path: str) -> Iterator[tuple[str, str]]:
    there = os.path.join(lower, path)
    if not os.path.isdir(there):
        yield f"{path}/", "made"
    elif _is_opaque(os.path.join(upper, path)):
        for name in set(os.listdir(there)) - set(os.listdir(os.path.join(upper, path))):
            yield os.path.join(path, name), "removed"
    yield from _changed(upper, lower, path)


def _is_opaque(path: str) -> bool:
    try:
        return os.getxattr(path, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def _digest(path: str) -> str:
    try:
        found = os.lstat(path)
    except OSError:
        return "nothing"
    if stat.S_ISLNK(found.st_mode):
        return f"-> {os.readlink(path)}"
    if not stat.S_ISREG(found.st_mode):
        return f"{found.st_mode:o}"
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{found.st_mode:o} {found.st_uid}:{found.st_gid} {content}"
