"""`blobfuse2 mount`: its checks in their order, then a daemon with pid and trace file, or service in the foreground."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from standin.container import AnyContainer, open_container
from standin.settings import (
    Refused,
    Settings,
    check_cache_dir,
    check_pipeline,
    check_storage,
    read_settings,
)

STARTUP_LINE = "LOG_DEBUG [custom.go (54)]: initializePlugins: No plugins to load."


def mount(path: str, flags: dict[str, str], options: list[str]) -> int:
    """Mount and return the exit code: in the foreground when the mount has ended, else when it is there."""
    target = os.path.abspath(path)
    settings = read_settings(flags.get("--config-file"), flags, options)
    check_pipeline(settings)
    _check_target(path, target, settings)
    work_dir = _work_dir(settings)
    if settings.truth("cleanup-on-start") or settings.truth(f"{settings.cache}.cleanup-on-start"):
        from standin.filesystem import wipe

        wipe(str(settings.get(f"{settings.cache}.path")))
    check_storage(settings)
    cache_dir = check_cache_dir(settings, target)
    container = open_container(settings, flags.get("--config-file"))
    if settings.truth("foreground"):
        return _serve(target, settings, container, cache_dir, lambda: None, lambda: None)
    return _daemonize(target, settings, container, cache_dir, work_dir)


def _check_target(given: str, target: str, settings: Settings) -> None:
    try:
        os.stat(target)
    except FileNotFoundError:
        raise Refused("mount directory does not exist") from None
    except OSError:
        pass
    if _is_mounted(target):
        if _is_served(given):
            raise Refused("directory is already mounted")
        subprocess.run(["fusermount3", "-z", "-u", target], check=False, capture_output=True)
    try:
        empty = not os.listdir(target)
    except OSError:
        empty = False
    if not empty and not settings.truth("nonempty"):
        raise Refused("mount directory is not empty")


def _is_mounted(target: str) -> bool:
    lines = Path("/etc/mtab").read_text().splitlines()
    return any(line.split()[1:2] == [target] and "fuse" in line for line in lines)


def _is_served(given: str) -> bool:
    """Look for the path as a substring of the arguments of processes called blobfuse2, as IsMountActive does."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                if (entry / "comm").read_text().strip() == "blobfuse2" and given in words:
                    return True
    return False


def _work_dir(settings: Settings) -> Path:
    chosen = settings.get("default-working-dir") or os.path.join(os.environ.get("HOME", "."), ".blobfuse2")
    folder = Path(str(chosen))
    if folder.exists() and not folder.is_dir():
        raise Refused(f"default work dir '{folder}' is not a directory")
    folder.mkdir(mode=0o777, parents=True, exist_ok=True)
    return folder


def _serve(
    target: str,
    settings: Settings,
    container: AnyContainer,
    cache_dir: str | None,
    mounted: object,
    end: object,
) -> int:
    import mfusepy

    from standin.filesystem import MAX_READ_BYTES, FileCacheOperations

    warnings.simplefilter("ignore")
    operations = FileCacheOperations(
        settings, container, cache_dir or tempfile.mkdtemp(prefix="standin-blocks-"), mounted, end
    )
    seconds = {
        "attr_timeout": settings.number("libfuse.attribute-expiration-sec", 120),
        "entry_timeout": settings.number("libfuse.entry-expiration-sec", 120),
        "negative_timeout": settings.number("libfuse.negative-entry-expiration-sec", 120),
    }
    switches = {"allow_other": settings.truth("allow-other"), "ro": settings.truth("read-only")}
    try:
        mfusepy.FUSE(
            operations, target, foreground=True, fsname="blobfuse2", max_read=MAX_READ_BYTES, **switches, **seconds
        )
    except RuntimeError:
        raise Refused("unable to start pipeline [failed to mount fuse]") from None
    return 0


def _daemonize(target: str, settings: Settings, container: AnyContainer, cache_dir: str | None, work_dir: Path) -> int:
    name = target.replace("/", "_")
    pid_file, trace = work_dir / f"{name}.pid", work_dir / f"{name}.{os.getpid()}.trace"
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        os.setsid()
        os.umask(0o022)  # in the foreground it is the caller's
        with open(trace, "w") as file:
            os.chmod(trace, 0o640)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        pid_file.write_text(f"{os.getpid()}\n")
        os._exit(_child(target, settings, container, cache_dir, write_end, [pid_file, trace]))
    os.close(write_end)
    return _wait(child, read_end, trace, pid_file, settings)


def _child(
    target: str,
    settings: Settings,
    container: AnyContainer,
    cache_dir: str | None,
    ready: int,
    files: list[Path],
) -> int:
    def end() -> None:
        for file in files:
            file.unlink(missing_ok=True)

    def mounted() -> None:
        os.write(ready, b"1")

    try:
        return _serve(target, settings, container, cache_dir, mounted, end)
    except Refused as refused:
        print(f"Error: {refused}", file=sys.stderr, flush=True)
        return 1


def _wait(child: int, ready: int, trace: Path, pid_file: Path, settings: Settings) -> int:
    import select

    seconds = float(re.sub(r"s$", "", str(settings.get("wait-for-mount", "5s"))))
    if not select.select([ready], [], [], seconds)[0]:
        return 0  # as the real one: whether anything is mounted or not
    if os.read(ready, 1):
        return 0
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    said = trace.read_text() if trace.exists() else ""
    trace.unlink(missing_ok=True)
    pid_file.unlink(missing_ok=True)
    raise Refused(said)


def log_line(words: str) -> str:
    """Return a line as the base logger writes it; without syslog it goes to standard output before the answer."""
    moment = time.strftime("%a %b %e %H:%M:%S", time.gmtime())
    return f"{moment}.000 UTC {time.gmtime().tm_year} : blobfuse2[{os.getpid()}] : [] {words}"


def reset_signals() -> None:
    """Let Ctrl-C end the command and the others do nothing, as in a Go program, before there is a mount to be seen."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
