"""`amlmount events` and `amlmount wait`: what happened to mounts, and waiting for what is to happen.

Both follow the daemon's stream; neither asks again and again. What is kept can be read without a daemon.
"""

import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from amlmount.cli import launch
from amlmount.cli.output import Console, Format, Output, print_mounts, print_objects, raise_for
from amlmount.cli.settings import complete_mount, console, locations, parse_duration

if TYPE_CHECKING:
    from amlmount.events.event import Event
    from amlmount.states import MountStatus, Outcome

LOOK_AGAIN_S = 0.5  # for a daemon that is not there (yet)
SEVERITY_COLOURS = {"warning": typer.colors.YELLOW, "error": typer.colors.RED}


class WaitGoal(StrEnum):
    """What `wait` waits for."""

    MOUNTED = "mounted"
    HEALTHY = "healthy"
    GONE = "gone"


def events(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Mounts; none means everything.", autocompletion=complete_mount),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on printing what happens, until Ctrl-C.")] = False,
    since: Annotated[
        float | None, typer.Option("--since", parser=parse_duration, metavar="TIME", help="Only the last 10m, 2h.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show what happened to mounts, the oldest first: kept over restarts of the daemon.

    docs/operations.md says what each kind of event means and what to do. With -f across restarts of the daemon too.
    """
    from amlmount.errors import UsageError

    if follow and output is Format.JSON:
        raise UsageError("cannot follow as JSON: a list has an end", hint="use -o jsonl: one object a line")
    since_s = time.time() - since if since is not None else 0.0
    found = _followed(ctx, names, since_s) if follow else _kept(ctx, names, since_s)
    if output is Format.JSON:
        print_objects([event.to_json() for event in found], output)
        return
    talk, widths = console(ctx), [0, 0]
    for event in found:
        if output is Format.JSONL:
            print_objects([event.to_json()], output)
        else:
            typer.echo(_line(talk, event, widths))


def wait(
    ctx: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Mounts.", autocompletion=complete_mount)],
    goal: Annotated[WaitGoal, typer.Option("--for", help="What to wait for.")] = WaitGoal.MOUNTED,
    timeout: Annotated[float, typer.Option(parser=parse_duration, metavar="TIME", help="Wait this long.")] = "2m",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Wait until mounts are there (or well, or gone), and change nothing.

    Exit code 124 if it takes too long; the mount's own (3, 5, 6, ...) if it has failed and is not tried again. Without
    a daemon everything is gone; for the rest it waits for one.
    """
    talk = console(ctx)
    outcome = _wait(ctx, names, goal, timeout)
    if output is not Format.TABLE:
        print_mounts(talk, outcome.mounts, output)
    elif not outcome.errors:
        talk.note(f"{', '.join(names)}: {goal.value}")
    raise_for(outcome, "wait for")


# --- events --------------------------------------------------------------------------------------------------------


def _kept(ctx: typer.Context, names: list[str] | None, since_s: float) -> "list[Event]":
    found = launch.ask(ctx, lambda client: list(client.events(names, since_s=since_s)))
    if found is not None:
        return found
    from amlmount.events.file import EventFile, events_dir

    wanted = frozenset(names) if names else None
    kept = EventFile(events_dir(locations(ctx).state_dir)).read()
    return [event for event in kept if event.concerns(wanted, since_s)]


def _followed(ctx: typer.Context, names: list[str] | None, since_s: float) -> "Iterator[Event]":
    """Yield what is kept and what happens, whichever daemon tells of it."""
    from amlmount.errors import DaemonUnreachableError

    after = 0
    for event in _kept(ctx, names, since_s):
        after = event.number
        yield event
    while True:
        client = launch.find_daemon(ctx)
        try:
            for event in client.events(names, since_s=since_s, after=after, follow=True) if client else ():
                after = event.number
                yield event
        except DaemonUnreachableError:
            pass
        time.sleep(LOOK_AGAIN_S)


def _line(talk: Console, event: "Event", widths: list[int]) -> str:
    """Write an event as a line. Its columns grow with what has been seen, as the end of a stream is not known."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time_s))
    severity = talk.paint(event.severity.ljust(7), SEVERITY_COLOURS.get(event.severity))
    cells = (event.mount or "-", event.kind)
    widths[:] = [max(width, len(cell)) for width, cell in zip(widths, cells, strict=True)]
    columns = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    text = "".join(char if char.isprintable() else "?" for char in event.message)
    return f"{moment}  {severity}  {columns}  {text}".rstrip()


# --- wait ----------------------------------------------------------------------------------------------------------


def _wait(ctx: typer.Context, names: list[str], goal: WaitGoal, timeout_s: float) -> "Outcome":
    """Wait, with the next daemon if one ends meanwhile."""
    from amlmount.errors import DaemonUnreachableError, WaitTimeoutError
    from amlmount.states import Outcome

    deadline, tell = time.monotonic() + timeout_s, _teller(console(ctx), goal)
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        client = launch.find_daemon(ctx)
        if client is None and goal is WaitGoal.GONE:
            return Outcome([])
        try:
            if client is not None:
                return client.wait(names, goal.value, timeout_s=left_s, progress=tell)
        except DaemonUnreachableError:
            pass
        if left_s <= 0:
            why = "no daemon runs" if client is None else "the daemon went away"
            text = f"cannot see {', '.join(names)} {goal.value} within {timeout_s:g} s: {why}"
            raise WaitTimeoutError(text, hint="`amlmount up` starts one")
        time.sleep(min(LOOK_AGAIN_S, left_s))


def _teller(talk: Console, goal: WaitGoal) -> "Callable[[MountStatus], None]":
    told: dict[str, str] = {}

    def tell(status: "MountStatus") -> None:
        if told.get(status.name) != status.state.value and status.state.value != goal.value:
            talk.note(f"{status.name}: {status.state.value}")
        told[status.name] = status.state.value

    return tell
