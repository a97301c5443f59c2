"""`amlmount logs`: what the engine of a mount has written, followed if wanted; both engines, no daemon needed."""

import os
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from amlmount.cli.settings import complete_mount, console, locations, parse_duration, setting

if TYPE_CHECKING:
    from datetime import datetime

POLL_S = 0.2
MAX_ROTATED = 20
# `Tue Nov 24 07:48:32.683 UTC 2026 : blobfuse2[1] : ...` and `2026-11-24 07:48:32,683 ...` or its ISO spelling.
_GO_TIME = re.compile(r"^\w{3} (\w{3} +\d+ [\d:]{8})(?:\.\d+)? (\w+) (\d{4}) ")
_PYTHON_TIME = re.compile(r"^(\d{4}-\d\d-\d\d[ T][\d:]{8})")


def logs(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A mount.", autocompletion=complete_mount)],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on printing what is added, until Ctrl-C.")] = False,
    since: Annotated[
        float | None, typer.Option("--since", parser=parse_duration, metavar="TIME", help="Only the last 10m, 2h.")
    ] = None,
) -> None:
    """Print the log of a mount's engine, secrets hidden."""
    paths = _paths(ctx, name)
    earliest_s = time.time() - since if since is not None else 0.0
    for line in _since(_lines(paths), earliest_s):
        typer.echo(line)
    if follow:
        for line in _followed(paths[-1]):
            typer.echo(line)


def _paths(ctx: typer.Context, name: str) -> list[str]:
    """Return the log with what was rotated, the oldest first; what blobfuse2 wrote elsewhere comes before its log."""
    from amlmount.errors import NotFoundError

    folder = str(locations(ctx).state_dir / "logs")
    base = os.path.join(folder, f"{name.replace('/', ':')}.log")
    rotated = [f"{base}.{number}" for number in range(MAX_ROTATED, 0, -1)]
    found = [path for path in (*rotated, base.removesuffix(".log") + ".out") if os.path.exists(path)]
    if not found and not os.path.exists(base):
        if name in _configured(ctx):
            console(ctx).note(f"{name}: its engine has written nothing yet")
        else:
            raise NotFoundError(f"cannot find a log of '{name}' in {folder}", hint="amlmount ps -a shows what there is")
    return [*found, base]


def _configured(ctx: typer.Context) -> list[str]:
    from amlmount.config.load import config_files, load_config

    return list(load_config(config_files(setting(ctx, "config"), system=setting(ctx, "system"))).mounts)


def _lines(paths: list[str]) -> Iterator[str]:
    for path in paths:
        try:
            with open(path, "rb") as file:
                for line in file:
                    yield _shown(line)
        except FileNotFoundError:
            continue


def _shown(line: bytes) -> str:
    from amlmount.redaction import redact

    return redact(line.decode(errors="replace").rstrip("\r\n"))


def _since(lines: Iterator[str], earliest_s: float) -> Iterator[str]:
    """Pass on what is not older; a line without a time has that of the line before it."""
    moment_s = 0.0
    for line in lines:
        found = _time_of(line)
        moment_s = found.timestamp() if found is not None else moment_s
        if moment_s >= earliest_s:
            yield line


def _time_of(line: str) -> "datetime | None":
    from datetime import UTC, datetime

    try:
        if match := _GO_TIME.match(line):
            found = datetime.strptime(f"{match[3]} {' '.join(match[1].split())}", "%Y %b %d %H:%M:%S")
            return found.replace(tzinfo=UTC) if match[2] == "UTC" else found
        if match := _PYTHON_TIME.match(line):
            return datetime.fromisoformat(match[1])
    except ValueError:
        return None
    return None


def _followed(path: str) -> Iterator[str]:
    """Yield what is added to a file, across its being rotated or made anew."""
    file: BinaryIO | None = None
    at_end = True
    while True:
        if file is None:
            file = _opened(path, at_end=at_end)
            at_end = False
        line = file.readline() if file is not None else b""
        if line.endswith(b"\n"):
            yield _shown(line)
            continue
        if file is not None and line:
            file.seek(-len(line), os.SEEK_CUR)
        elif file is not None and _was_replaced(file, path):
            file.close()
            file = None
            continue
        time.sleep(POLL_S)


def _opened(path: str, *, at_end: bool) -> BinaryIO | None:
    try:
        file = open(path, "rb")  # noqa: SIM115 (it outlives this function)
    except FileNotFoundError:
        return None
    if at_end:
        file.seek(0, os.SEEK_END)
    return file


def _was_replaced(file: BinaryIO, path: str) -> bool:
    try:
        now, ours = os.stat(path), os.fstat(file.fileno())
    except FileNotFoundError:
        return True
    return not os.path.samestat(now, ours) or now.st_size < file.tell()
