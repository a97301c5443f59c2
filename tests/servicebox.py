"""A machine with a real systemd on which amlmount is installed: units as they stand, run from the checkout.

Boots in half a second (`installbox`); one mount, `images`, is up. What unit, mounts and journal say is asked here.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amlmount.installer import paths
from installbox import ROOT, Box, needed_binds, open_box
from readers import ORACLE

LOWER = os.environ.get("AMLMOUNT_TEST_TREE", "/")
CONFIG = """\
stores: {images: {type: local, path: /srv/images}}
mounts: {images: {target: /media/images, source: images}}
"""
READ = "cat /media/images/sub/7.txt"
DEADLINE_S = 40.0
IMAGES = """
mkdir -p /srv/images/sub; cd /srv/images
for i in $(seq 40); do echo $i >sub/$i.txt; done
head -c 300000 /dev/urandom >big.bin
"""
# What stands where the installer puts the program. A daemon can be another program than the other commands.
PROGRAM = """\
#!/bin/sh
{environment}
for word; do if [ "$word" = daemon ]; then exec {python} -P {daemon} "$@"; fi; done
exec {python} -P -m amlmount "$@"
"""
AMLMOUNT = ("-m", "amlmount")


@contextmanager
def open_service(config: str = CONFIG, *, daemon: tuple[str, ...] = AMLMOUNT, starts: bool = True) -> Iterator[Box]:
    """A machine with amlmount. `daemon`: what python runs as the daemon; `starts`: it runs, and its mount is up."""
    with open_box(LOWER, systemd=True, binds=needed_binds(LOWER)) as box:
        box.sh(IMAGES)
        box.write("/etc/amlmount/amlmount.yaml", config)
        put_program(box, daemon, python_path="" if daemon == AMLMOUNT else str(ROOT / "tests"))
        put_units(box)
        if starts:
            box.sh("systemctl start amlmount")
            until(lambda: is_mounted(box), lambda: journal(box))
        yield box


def put_program(box: Box, daemon: tuple[str, ...] = AMLMOUNT, *, python_path: str = "") -> None:
    """Put the program where units look for it. `python_path`: where modules come from, before the checkout's."""
    environment = f"export PYTHONPATH={python_path}" if python_path else ""
    text = PROGRAM.format(python=sys.executable, daemon=" ".join(daemon), environment=environment)
    box.write(f"{paths.PROGRAM}.new", text)
    box.sh(f"chmod 755 {paths.PROGRAM}.new; mv {paths.PROGRAM}.new {paths.PROGRAM}")


def put_units(box: Box) -> None:
    """Install what the installer would."""
    files = {path: f"systemd/{name}" for path, name in paths.UNITS.items()}
    files |= {paths.MOUNT_HELPER: "systemd/mount.amlmount", paths.SYSUSERS: "systemd/amlmount.sysusers.conf"}
    packed = json.dumps({path: (ROOT / name).read_text() for path, name in files.items()})
    script = "import json, os, sys; [(os.makedirs(os.path.dirname(p), exist_ok=True), open(p, 'w').write(t)) "
    box.run(sys.executable, "-c", f"{script}for p, t in json.load(sys.stdin).items()]", input=packed, check=True)
    box.sh(f"chmod 755 {paths.MOUNT_HELPER}; systemd-sysusers {paths.SYSUSERS}; systemctl daemon-reload")
    box.sh("systemctl enable -q amlmount")


def drop_in(box: Box, name: str, text: str) -> None:
    """Change the unit as an administrator does, and have systemd know it."""
    box.write(f"{paths.UNIT}.d/{name}.conf", text)
    box.sh("systemctl daemon-reload")


def take_back(box: Box, name: str) -> None:
    """Change it back."""
    box.sh(f"rm {paths.UNIT}.d/{name}.conf; systemctl daemon-reload")


def until(what: Callable[[], bool], saying: Callable[[], str]) -> None:
    """Wait until something is so; `saying` explains why it does not come."""
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline, saying()
        time.sleep(0.1)


def journal(box: Box) -> str:
    """Return the end of what the unit has logged."""
    return box.run("journalctl", "--no-pager", "-u", "amlmount").stdout[-3000:]


def is_mounted(box: Box, target: str = "/media/images") -> bool:
    """Say whether the mount table has our mount there; nothing is asked of the mount itself."""
    return "fuse.amlmount" in box.run("findmnt", "-n", "-o", "FSTYPE", target).stdout


def amlmount(box: Box, *args: str) -> "subprocess.CompletedProcess[str]":
    """Run `amlmount --system ARGS`, whatever its exit code."""
    return box.run(paths.PROGRAM, "--system", *args)


def mount(box: Box) -> dict[str, Any]:
    """Return what `ps` says of the only mount."""
    done = amlmount(box, "ps", "-o", "json")
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)
    return dict(found)


def show(box: Box, name: str) -> str:
    """Return a property of the unit."""
    return box.sh(f"systemctl show -P {name} amlmount").strip()


def daemon(box: Box) -> str:
    """Return the daemon's pid, "0" if there is none."""
    return show(box, "MainPID")


def wait_for_another(box: Box, old: str) -> None:
    """Wait for the daemon after `old`, until it knows its mounts."""
    until(lambda: daemon(box) not in ("0", old), lambda: journal(box))
    until(lambda: json.loads(amlmount(box, "ps", "-o", "json").stdout or "[]") != [], lambda: journal(box))


@contextmanager
def reading(
    box: Box, source: str = "/srv/images", target: str = "/media/images", *, user: str = "root"
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Readers in the box, with files open all the time; the function that is yielded ends and counts them."""
    pipe = subprocess.PIPE
    argv = (
        "setpriv",
        f"--reuid={user}",
        f"--regid={user}",
        "--clear-groups",
        sys.executable,
        ORACLE,
        source,
        target,
        "2",
        "1",
    )
    process = subprocess.Popen(box.argv(*argv), stdin=pipe, stdout=pipe)

    def tally() -> dict[str, Any]:
        out, _ = process.communicate(timeout=30)
        return dict(json.loads(out))

    try:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        yield tally
    finally:
        process.kill()
        process.communicate()


def let_others_in(box: Box) -> None:
    """Let other users than root reach what is bound from this machine; only the box's own folders are changed."""
    above = {str(parent) for bind in box.binds for parent in Path(bind).parents}
    closed = [path for path in above if not any(f"{path}/".startswith(f"{bind}/") for bind in box.binds)]
    box.run("chmod", "a+x", *closed, check=True)


def program_of(name: str) -> tuple[str, ...]:
    """Return what python runs as the daemon: a script of the tests."""
    return (str(ROOT / "tests" / name),)
