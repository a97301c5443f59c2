"""`amlmount check`: everything there is to know of whether mounts are well, looked at now, for people and scripts.

Only typer and the standard library are imported at the top.
"""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amlmount.cli import launch
from amlmount.cli.output import Console, Format, Output, age, print_objects, print_table
from amlmount.cli.settings import complete_mount, console, parse_duration

if TYPE_CHECKING:
    from amlmount.states import Condition, MountStatus

HEADER = ("NAME", "CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE")


def check(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Mounts; none means all that are up.", autocompletion=complete_mount),
    ] = None,
    rw: Annotated[
        bool, typer.Option("--rw", help="Write a file through each mount that can be written, read it, remove it.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(parser=parse_duration, metavar="TIME", help="What has not answered by then is silent.")
    ] = "10s",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Look whether mounts are well: process, place, answers, store, credential, disks, uploads, errors, clock.

    One line for each condition of each mount. Exit code 0: all is well; 1: something is wrong; 7: with some of
    several mounts.
    """
    from amlmount.errors import DaemonUnreachableError

    talk = console(ctx)
    found = launch.ask(ctx, lambda client: client.check(names or None, rw=rw, timeout_s=timeout))
    if found is None:
        raise DaemonUnreachableError("cannot check anything: no daemon runs", hint="`amlmount up` starts one")
    rows = [(status, condition) for status in found for condition in status.conditions]
    if output is Format.TABLE:
        print_table(talk, HEADER, [_row(status, condition) for status, condition in rows])
    else:
        print_objects([_object(status, condition) for status, condition in rows], output)
    _raise_for(talk, found)


def _row(status: "MountStatus", condition: "Condition") -> tuple[str, ...]:
    since = age(time.time() - condition.since) if condition.since else "-"
    return status.name, condition.type, condition.status, since, condition.reason, condition.message


def _object(status: "MountStatus", condition: "Condition") -> dict[str, Any]:
    return {"schema_version": 1, "name": status.name, **condition.to_json()}


def _raise_for(talk: Console, found: "list[MountStatus]") -> None:
    """Raise what is wrong, for the exit code."""
    from amlmount.errors import AmlmountError, PartialError

    bad = {status.name: wrong for status in found if (wrong := _wrong(status))}
    if not bad:
        return
    message = "cannot call all well: " + "; ".join(f"{name}: {', '.join(wrong)}" for name, wrong in bad.items())
    kind = PartialError if len(bad) < len(found) else AmlmountError
    raise kind(message, hint="docs/operations.md says what to do about each", details={"wrong": bad})


def _wrong(status: "MountStatus") -> list[str]:
    return [condition.reason for condition in status.conditions if condition.status == "False"]
