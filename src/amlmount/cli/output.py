"""What commands print: data to standard output, talk to standard error, colours only on a terminal.

Only the standard library and typer here, because every command imports it.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from amlmount.errors import AmlmountError
    from amlmount.states import MountStatus, Outcome
    from amlmount.states.stats import MountStats

COLOURS = {
    "mounted": typer.colors.GREEN,
    "degraded": typer.colors.YELLOW,
    "pending": typer.colors.YELLOW,
    "mounting": typer.colors.YELLOW,
    "unmounting": typer.colors.YELLOW,
    "failed": typer.colors.RED,
}
# Columns of `ps` that are there when a mount has something to say in them, and what of MountStats stands there.
SIZES = {"UNSENT": "unsent_bytes", "CACHE": "cache_bytes"}
MIN_NOTE = 20
UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


class Format(StrEnum):
    """Formats of commands that print data."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


Output = Annotated[Format, typer.Option("-o", "--output", help="Format of what is printed.")]


class Console:
    """How this run of the program talks: `quiet` without the talk, `as_json` for errors too, `colour` if wanted."""

    def __init__(self) -> None:
        self.quiet = False
        self.as_json = False
        self.no_colour = bool(os.environ.get("NO_COLOR"))

    def note(self, text: str) -> None:
        """Say something to a person."""
        if not self.quiet:
            typer.echo(text, err=True)

    def paint(self, text: str, colour: str | None) -> str:
        """Colour `text` if standard output is a terminal."""
        if colour is None or self.no_colour or not sys.stdout.isatty():
            return text
        return typer.style(text, fg=colour)

    def error(self, error: "AmlmountError") -> None:
        """Print an error: what happened and what to do; with several in it, each of them."""
        if self.as_json:
            typer.echo(json.dumps({"error": error.to_json()}), err=True)
            return
        for single in error.details.get("errors", {}).values() or [error.to_json()]:
            typer.echo(f"error: {single['message']}", err=True)
            if single.get("hint"):
                typer.echo(f"hint: {single['hint']}", err=True)


def print_objects(objects: Sequence[dict[str, Any]], form: Format) -> None:
    """Print a list as JSON, or one object a line."""
    if form is Format.JSONL:
        for item in objects:
            typer.echo(json.dumps(item))
    else:
        typer.echo(json.dumps(list(objects), indent=2))


def print_table(console: Console, header: Sequence[str], rows: Iterable[Sequence[str]], state_column: int = -1) -> None:
    """Print columns parted by at least two spaces; the last column may hold any text.

    Nothing is cut but the last column, and that only on a terminal that is too narrow for it.
    """
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    lines = [[_one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for number, line in enumerate(lines):
        line[-1] = _cut(line[-1], room - sum(widths[:-1]) - 2 * (len(widths) - 1))
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        if number and state_column >= 0:
            cells[state_column] = console.paint(cells[state_column], COLOURS.get(line[state_column]))
        typer.echo("  ".join(cells).rstrip())


def print_mounts(
    console: Console, mounts: "Sequence[MountStatus]", form: Format, figures: "Mapping[str, MountStats] | None" = None
) -> None:
    """Print what `ps` prints; with the `figures` of mounts that are served, what they take and have not sent."""
    if form is Format.TABLE:
        _print_mount_table(console, mounts, figures or {})
        return
    objects = [status.to_json() for status in mounts]
    for status, item in zip(mounts, objects if figures is not None else (), strict=False):
        item |= {key: getattr((figures or {}).get(status.name), key, None) for key in (*SIZES.values(), "unsent_age_s")}
    print_objects(objects, form)


def _print_mount_table(console: Console, mounts: "Sequence[MountStatus]", figures: "Mapping[str, MountStats]") -> None:
    header: tuple[str, ...] = ("NAME", "STATE", "HEALTH", "SINCE", "ENGINE", "PID", "TARGET", "SOURCE", "NOTE")
    rows = [_row(status) for status in mounts]
    for title, key in SIZES.items():
        sizes = [getattr(figures.get(status.name), key, None) for status in mounts]
        if any(size is not None for size in sizes):
            header = (*header[:-3], title, *header[-3:])
            rows = [(*row[:-3], size_text(size), *row[-3:]) for row, size in zip(rows, sizes, strict=True)]
    print_table(console, header, rows, state_column=1)


def size_text(size_bytes: int | None) -> str:
    """Write a size for people, `-` if it is not known."""
    from amlmount.config.units import rough_size

    if size_bytes is None:
        return "-"
    return rough_size(size_bytes)


def age(seconds: float) -> str:
    """Write a span roughly: `5s`, `3m`, `2h`, `9d`."""
    for unit_s, name in UNITS:
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)}{name}"
    return "0s"


def raise_for(outcome: "Outcome", verb: str) -> None:
    """Raise what an outcome with errors means for the exit code: one asked for, its own; some of several, partial."""
    raise_errors({name: failure.to_json() for name, failure in outcome.errors.items()}, len(outcome.mounts), verb)


def for_each(talk: Console, mounts: "Sequence[MountStatus]", verb: str, act: "Callable[[MountStatus], None]") -> None:
    """Do something with each mount: one that fails is told and does not keep the next from it; raises at the end."""
    from amlmount.errors import AmlmountError

    errors: dict[str, dict[str, Any]] = {}
    for status in mounts:
        try:
            act(status)
        except AmlmountError as error:
            errors[status.name] = error.to_json()
            if len(mounts) > 1:
                talk.note(f"{status.name}: {error.message}")
    raise_errors(errors, len(mounts), verb)


def raise_errors(errors: dict[str, dict[str, Any]], mounts: int, verb: str) -> None:
    """Do as `raise_for`, with errors as JSON by the name of the mount, of so many `mounts`."""
    from amlmount.errors import PartialError, from_json

    if not errors:
        return
    if mounts == 1:
        raise from_json(next(iter(errors.values())))
    message = f"cannot {verb} {len(errors)} of {mounts} mounts: {', '.join(errors)}"
    if len(errors) < mounts:
        raise PartialError(message, details={"errors": errors})
    codes = {data["code"] for data in errors.values()}
    code = codes.pop() if len(codes) == 1 else "failed"
    raise from_json({"code": code, "message": message, "hint": None, "details": {"errors": errors}})


def _row(status: "MountStatus") -> tuple[str, ...]:
    from amlmount.states import SERVING, MountState, health_of

    down = status.state is MountState.UNMOUNTED
    trouble = status.last_error.message if status.last_error and status.state not in SERVING else None
    again = f" (next try within {max(1, round(status.retry_in_s))} s)" if status.retry_in_s is not None else ""
    why = "; ".join(filter(None, (status.engine_why, f"cache: {status.cache_note}" if status.cache_note else "")))
    return (
        status.name,
        status.state.value,
        health_of(status.conditions),
        "-" if down or not status.since else age(time.time() - status.since),
        status.engine or "-" if not down else "-",
        str(status.pid or "-"),
        status.target,
        status.source,
        trouble + again if trouble else (why if not down else ""),
    )


def _cut(text: str, room: int) -> str:
    return text if len(text) <= max(room, MIN_NOTE) else f"{text[: max(room, MIN_NOTE) - 1]}…"


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
