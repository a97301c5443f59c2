"""The machine under the measurements: a namespace to itself, cold caches, which CPUs, and a line that describes it."""

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.stub import CannotMeasure

INSIDE = "AMLMOUNT_BENCHMARK_INSIDE"
UNSHARE = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "--kill-child"]


def enter_own_namespace(arguments: Sequence[str]) -> None:
    """Go on in mount and pid namespaces of our own: whatever happens to us, no mount and no process stays.

    Returns when we are in there. A shell is pid 1, because somebody must reap what peers leave behind.
    Raises CannotMeasure for anybody but root.
    """
    if os.environ.get(INSIDE):
        return
    if os.geteuid() != 0:
        raise CannotMeasure("cannot measure reading: it drops the kernel's caches and mounts; run it as root")
    environment = os.environ | {INSIDE: "1"}
    script = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "benchmarks", *arguments]
    os.execvpe("unshare", [*UNSHARE, *script], environment)


def drop_caches() -> None:
    """Forget pages, dentries and inodes."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def heading() -> str:
    """Say where and when, because absolute machines differ and ratios only hold for one."""
    today = datetime.datetime.now(datetime.UTC).date()
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{today}, Linux {kernel}, {os.cpu_count()} cores, Python {platform.python_version()}"


def disk_of(path: Path) -> str:
    """Return the type of the file system that a path is on."""
    argv = ["findmnt", "-no", "FSTYPE", "-T", str(path)]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def mount_points() -> set[str]:
    """Return every mount point, without touching one."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split()[4].encode().decode("unicode_escape") for line in lines}
