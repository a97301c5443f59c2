"""What blobfuse2 does, as data: the same scenes are played by the real binary (recorded) and by the stand-in.

A scene uses a directory as container (loopbackfs), needs /dev/fuse and root, and leaves nothing behind. Record with
`python -m standin.transcripts BLOBFUSE2 > standin/transcripts.json` from tests/, in a mount namespace of its own.
"""

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("transcripts.json")
DEADLINE_S = 20.0
LOG_LINE = re.compile(r"^.* : blobfuse2\[\d+\] : .*\n?", re.MULTILINE)
# The last: the end of a log line that has a line break in it.
NOISE = re.compile(r"^(Ignoring invalid max threads value|log: failed to open|\)$).*\n?", re.MULTILINE)
COMPONENTS = "components: [libfuse, file_cache, attr_cache, loopbackfs]\n"
AZURE = "components: [libfuse, file_cache, attr_cache, azstorage]\n"
# An odd day at noon: a whole second, as Last-Modified is.
BLOB_TIME_S = 1_700_000_000


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a scene is played: `binary`, and a directory with `m` (mount), `c` (cache), `store`, `home`."""

    binary: str
    root: Path
    started: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def target(self) -> Path:
        """Where it mounts."""
        return self.root / "m"

    @property
    def cache(self) -> Path:
        """Its cache directory."""
        return self.root / "c"

    def config(self, text: str, name: str = "b.yaml") -> str:
        """Write a configuration; returns its path."""
        path = self.root / name
        path.write_text(text.replace("ROOT", str(self.root)))
        return str(path)

    def env(self) -> dict[str, str]:
        """A scrubbed environment."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.root / "home"), "LC_ALL": "C.UTF-8"}

    def run(self, *args: str) -> dict[str, Any]:
        """Run a command to its end; returns exit code and texts with paths and log lines taken out."""
        done = subprocess.run(
            [self.binary, *args], env=self.env(), cwd=self.root, capture_output=True, timeout=DEADLINE_S, check=False
        )
        return {"exit": done.returncode, "stdout": self._clean(done.stdout), "stderr": self._clean(done.stderr)}

    def _clean(self, output: bytes) -> str:
        text = NOISE.sub("", LOG_LINE.sub("", output.decode(errors="replace")))
        return text.replace(str(self.root), "ROOT")

    def start(self, config: str, *args: str) -> "subprocess.Popen[bytes]":
        """Start a mount in the foreground and wait until it is there."""
        command = [self.binary, "mount", str(self.target), f"--config-file={config}", "--foreground"]
        process = subprocess.Popen(
            [*command, "--disable-version-check=true", *args],
            env=self.env(),
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.started.append(process)
        until(lambda: self.is_mounted() or process.poll() is not None)
        assert self.is_mounted(), f"exit code {process.poll()}"
        return process

    def is_mounted(self) -> bool:
        """Ask the mount table, never the mount."""
        return any(
            line.split()[4] == str(self.target) for line in Path("/proc/self/mountinfo").read_text().splitlines()
        )

    def unmount(self, *flags: str) -> int:
        """Take the mount away; returns the exit code of fusermount3."""
        command = ["fusermount3", *flags, "-u", str(self.target)]
        return subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False).returncode

    def cached(self) -> dict[str, Any]:
        """Describe every file of the cache: size, mode, and whether its time is a whole second."""
        found = {}
        for path in sorted(self.cache.rglob("*")):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                whole = status.st_mtime_ns % 10**9 == 0
                found[str(path.relative_to(self.cache))] = [status.st_size, oct(stat.S_IMODE(status.st_mode)), whole]
        return found


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition. Raises AssertionError when the deadline passes."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "deadline passed"
        time.sleep(0.01)


@contextlib.contextmanager
def stage(binary: str) -> Iterator[Stage]:
    """Set a stage, and clear it whatever happened on it."""
    with tempfile.TemporaryDirectory(prefix="bf-", ignore_cleanup_errors=True) as folder:
        made = Stage(binary, Path(folder))
        for name in ("m", "c", "store", "home"):
            (made.root / name).mkdir()
        (made.root / "store" / "a.txt").write_text("hello\n")
        os.utime(made.root / "store" / "a.txt", (BLOB_TIME_S, BLOB_TIME_S))
        before = os.umask(0o022)
        try:
            yield made
        finally:
            os.umask(before)
            for process in made.started:
                process.kill()
                process.wait(DEADLINE_S)
            while made.is_mounted():
                made.unmount("-z")


def loop_config(extra: str = "", cache: str = "timeout-sec: 120") -> str:
    """Return a configuration of a directory with a file cache."""
    log = "logging: {type: base, level: log_err, file-path: ROOT/b.log}\n"
    rest = f"file_cache: {{path: ROOT/c, {cache}}}\nloopbackfs: {{path: ROOT/store}}\n"
    return f"{COMPONENTS}{log}libfuse: {{default-permission: 0711, disable-writeback-cache: true}}\n{rest}{extra}"


REFUSALS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "no such config": ("", "none.yaml", ()),
    "config that is not called .yaml": (loop_config(), "b.conf", ()),
    "two caches": ("components: [libfuse, file_cache, block_cache, loopbackfs]\n", "b.yaml", ()),
    "no account": (f"{AZURE}file_cache: {{path: ROOT/c}}\n", "b.yaml", ()),
    "no container": (
        f"{AZURE}file_cache: {{path: ROOT/c}}\nazstorage: {{account-name: a, type: block}}\n",
        "b.yaml",
        (),
    ),
    "no key": (
        f"{AZURE}file_cache: {{path: ROOT/c}}\nazstorage: {{account-name: a, container: c, mode: key}}\n",
        "b.yaml",
        (),
    ),
    "no sas": (
        f"{AZURE}file_cache: {{path: ROOT/c}}\nazstorage: {{account-name: a, container: c, mode: sas}}\n",
        "b.yaml",
        (),
    ),
    "no cache path": (f"{COMPONENTS}loopbackfs: {{path: ROOT/store}}\n", "b.yaml", ()),
    "cache is the mount": (loop_config().replace("ROOT/c,", "ROOT/m,"), "b.yaml", ()),
    "unknown fuse option": (loop_config(), "b.yaml", ("-o", "bogus")),
    "direct io twice": (
        loop_config("disable-kernel-cache: true\n").replace("libfuse: {", "libfuse: {direct-io: true, "),
        "b.yaml",
        (),
    ),
}


def scene_answers(on: Stage) -> dict[str, Any]:
    """Commands that mount nothing."""
    return {
        "--version": on.run("--version"),
        "version": on.run("version"),
        "mount list": on.run("mount", "list"),
        "unmount nothing": on.run("unmount", str(on.target)),
        "unmount by pattern": on.run("unmount", "no-such-mount-at-all*"),
        "no such directory": on.run("mount", str(on.root / "none"), "--disable-version-check=true"),
        "bogus word": on.run("bogus", "--disable-version-check=true"),
    }


def scene_refusals(on: Stage) -> dict[str, Any]:
    """Configurations that are refused before anything is mounted."""
    said = {}
    for name, (text, file, args) in REFUSALS.items():
        config = on.config(text, file) if text else str(on.root / file)
        command = ("mount", str(on.target), f"--config-file={config}", "--disable-version-check=true", "--foreground")
        said[name] = on.run(*command, *args)
    return said


def scene_dirty_places(on: Stage) -> dict[str, Any]:
    """A cache and a mount directory that are not empty."""
    command = ("mount", str(on.target), f"--config-file={on.config(loop_config())}", "--disable-version-check=true")
    (on.cache / "left").write_text("over")
    cache = on.run(*command)
    (on.cache / "left").unlink()
    (on.target / "file").touch()
    target = on.run(*command)
    (on.target / "file").unlink()
    return {"cache": cache, "target": target}


def scene_clean_life(on: Stage) -> dict[str, Any]:
    """Read, write, unmount: what is in the cache meanwhile and after, and how the process ends."""
    process = on.start(on.config(loop_config()))
    read = (on.target / "a.txt").read_text()
    (on.target / "new.txt").write_text("written\n")
    kept = on.cached()
    listed = on.run("mount", "list")
    again = on.run("mount", str(on.target), f"--config-file={on.root}/b.yaml", "--disable-version-check=true")
    unmounted = on.run("unmount", str(on.target))
    code = process.wait(DEADLINE_S)
    stored = (on.root / "store" / "new.txt").read_text()
    return {
        "read": read,
        "cache while mounted": kept,
        "mount list": listed,
        "second mount": again,
        "unmount": unmounted,
        "exit": code,
        "cache afterwards": on.cached(),
        "stored": stored,
    }


def scene_attributes(on: Stage) -> dict[str, Any]:
    """What a mount with umask, uid and gid shows."""
    extra = loop_config().replace("libfuse: {", "libfuse: {uid: 1234, gid: 5678, umask: 222, ")
    process = on.start(on.config(extra))
    status = (on.target / "a.txt").stat()
    on.unmount()
    process.wait(DEADLINE_S)
    return {"mode": oct(status.st_mode), "uid": status.st_uid, "gid": status.st_gid, "size": status.st_size}


def scene_timeout_zero(on: Stage) -> dict[str, Any]:
    """A cache that keeps nothing: copies go at close."""
    process = on.start(on.config(loop_config(cache="timeout-sec: 0")))
    (on.target / "a.txt").read_text()
    until(lambda: not on.cached())
    on.unmount()
    return {"exit": process.wait(DEADLINE_S)}


def scene_killed(on: Stage) -> dict[str, Any]:
    """kill -9 with a file unsent: the mount stays dead, the cache stays, the next mount refuses it."""
    process = on.start(on.config(loop_config()))
    (on.target / "a.txt").read_text()
    with open(on.target / "open.txt", "wb", buffering=0) as file:
        file.write(b"never closed")
        process.kill()
        code = process.wait(DEADLINE_S)
        still_there = on.is_mounted()
        error = None
        try:
            os.listdir(on.target)
        except OSError as caught:
            error = caught.errno
        with contextlib.suppress(OSError):
            file.close()
    on.unmount("-z")
    left = on.cached()
    command = ("mount", str(on.target), f"--config-file={on.root}/b.yaml", "--disable-version-check=true")
    return {
        "exit": code,
        "mounted": still_there,
        "errno": error,
        "cache": left,
        "stored": (on.root / "store" / "open.txt").exists(),
        "next mount": on.run(*command),
    }


def scene_signals(on: Stage) -> dict[str, Any]:
    """SIGTERM kills and leaves a dead mount; SIGUSR1 does nothing."""
    process = on.start(on.config(loop_config()))
    process.send_signal(signal.SIGUSR1)
    reads = (on.target / "a.txt").read_text()
    process.send_signal(signal.SIGTERM)
    code = process.wait(DEADLINE_S)
    mounted = on.is_mounted()
    on.unmount("-z")
    return {"read after SIGUSR1": reads, "exit after SIGTERM": code, "mounted": mounted, "cache": on.cached()}


def scene_daemon(on: Stage) -> dict[str, Any]:
    """Daemon mode: pid and trace file while it lives, nothing after a clean unmount."""
    config = on.config(loop_config("default-working-dir: ROOT/w\n"))
    started = on.run("mount", str(on.target), f"--config-file={config}", "--disable-version-check=true")
    name = str(on.target).replace("/", "_")
    work = on.root / "w"
    files = sorted(re.sub(r"\.\d+\.", ".N.", path.name.replace(name, "NAME")) for path in work.iterdir())
    pid = int((work / f"{name}.pid").read_text())
    on.unmount()
    until(lambda: not (work / f"{name}.pid").exists() and not Path(f"/proc/{pid}").exists())
    return {"start": started, "files": files, "afterwards": sorted(path.name for path in work.iterdir())}


def scene_given_descriptor(on: Stage) -> dict[str, Any]:
    """`mount /dev/fd/N`: it serves a descriptor that is mounted already, and ends with it."""
    libc = __import__("ctypes").CDLL(None, use_errno=True)
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,allow_other,max_read=1048576"
    flags = 2 | 4  # MS_NOSUID | MS_NODEV
    assert libc.mount(b"blobfuse2", str(on.target).encode(), b"fuse", flags, options.encode()) == 0
    config = on.config(loop_config())
    command = [on.binary, "mount", f"/dev/fd/{descriptor}", f"--config-file={config}", "--foreground"]
    process = subprocess.Popen(
        [*command, "--disable-version-check=true", "-o", "nonempty"],
        env=on.env(),
        cwd=on.root,
        pass_fds=(descriptor,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    on.started.append(process)
    os.close(descriptor)
    read = (on.target / "a.txt").read_text()
    code_of_unmount = on.unmount()
    return {"read": read, "unmount": code_of_unmount, "exit": process.wait(DEADLINE_S), "cache": on.cached()}


SCENES: dict[str, Callable[[Stage], dict[str, Any]]] = {
    name.removeprefix("scene_"): value for name, value in dict(globals()).items() if name.startswith("scene_")
}


def play(name: str, binary: str) -> dict[str, Any]:
    """Play one scene with a binary and return what happened."""
    with stage(binary) as on:
        return SCENES[name](on)


if __name__ == "__main__":
    print(json.dumps({name: play(name, sys.argv[1]) for name in SCENES}, indent=1, sort_keys=True))
