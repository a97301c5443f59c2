"""The command line of the stand-in: what blobfuse2 2.5.6 takes, prints and exits with.

Left out: mount all (managers do it themselves), secure, gen-config, mountv1, health-monitor.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from standin.serve import STARTUP_LINE, log_line, mount, reset_signals
from standin.settings import FLAGS, Refused

VERSION = "2.5.6"
NO_COMMAND = "missing command options\n\nDid you mean this?\n\tblobfuse2 mount\n\nRun 'blobfuse2 --help' for usage"
VALUED = {"--config-file", "-o", "--passphrase", *FLAGS} - {
    "--foreground",
    "--read-only",
    "--allow-other",
    "--cleanup-on-start",
    "--disable-version-check",
}


def main(argv: list[str]) -> None:
    """Run one command and exit: 0, or 1 with `Error: ...` on standard error."""
    reset_signals()
    if not os.path.exists("/dev/log"):
        print(log_line(STARTUP_LINE), flush=True)
    try:
        code = _run(argv)
    except Refused as refused:
        print(f"Error: {refused}", file=sys.stderr, flush=True)
        code = 1
    sys.exit(code)


def _run(argv: list[str]) -> int:
    if "--version" in argv:
        print(f"blobfuse2 version {VERSION}")
        return 0
    words, flags, options = _split(argv)
    if not words:
        raise Refused(NO_COMMAND)
    command, *rest = words
    if command == "version":
        print(f"blobfuse2 version: {VERSION}")
        return 0
    if command == "unmount":
        return _unmount(rest, lazy="-z" in flags or "--lazy" in flags)
    if command != "mount":
        rest = [command]  # an unknown first word is a mount path (fstab)
    if rest == ["list"] and command == "mount":
        return _list()
    if len(rest) != 1:
        raise Refused(f"accepts 1 arg(s), received {len(rest)}")
    return mount(rest[0], flags, options)


def _split(argv: list[str]) -> tuple[list[str], dict[str, str], list[str]]:
    words: list[str] = []
    flags: dict[str, str] = {}
    options: list[str] = []
    todo = list(argv)
    while todo:
        word = todo.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            words.append(word)
            continue
        if not equals:
            value = todo.pop(0) if name in VALUED and todo else "true"
        if name == "-o":
            options += [part for part in value.split(",") if not part.startswith("--")]
            flags |= {
                part.partition("=")[0]: part.partition("=")[2] or "true"
                for part in value.split(",")
                if part[:2] == "--"
            }
        else:
            flags[name] = value
    return words, flags, options


def _mounted() -> list[str]:
    lines = Path("/etc/mtab").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("blobfuse2")]


def _list() -> int:
    for number, path in enumerate(_mounted(), 1):
        print(f"{number} : {path}")
    return 0


def _unmount(rest: list[str], *, lazy: bool) -> int:
    if len(rest) != 1:
        raise Refused(f"accepts 1 arg(s), received {len(rest)}")
    if rest == ["all"]:
        return _unmount_all(lazy)
    chosen = [path for path in _mounted() if re.search(rest[0], path)] if "*" in rest[0] else rest
    for path in chosen:
        _unmount_one(path, lazy)
    return 0


def _unmount_one(path: str, lazy: bool) -> None:
    done = subprocess.run(
        ["fusermount3", *(["-z"] if lazy else []), "-u", path], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise Refused(f"{done.stderr} exit status {done.returncode}")
    print(f"Successfully unmounted {path}")


def _unmount_all(lazy: bool) -> int:
    paths = _mounted()
    if not paths:
        print("Nothing to unmount")
        return 0
    failed = []
    for path in paths:
        try:
            _unmount_one(path, lazy)
        except Refused as refused:
            failed.append(f" {path} - [{refused}]")
    print(f"{len(paths) - len(failed)} of {len(paths)} mounts were successfully unmounted")
    if failed:
        raise Refused("failed to unmount - \n" + "\n".join(failed))
    return 0
