"""`amlmount refresh`: a mount looks at its store again, now.

The path is taken as text: nothing below the mount is looked at by this process.
"""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from amlmount.cli import launch
from amlmount.cli.output import Console, Format, Output, print_objects
from amlmount.cli.settings import complete_mount, console, parse_duration, setting

if TYPE_CHECKING:
    from amlmount.client import DaemonClient
    from amlmount.states import MountStatus, Refreshed

SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def refresh(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The mount.", autocompletion=complete_mount)],
    path: Annotated[
        str | None, typer.Argument(metavar="PATH", help="Only this, below the mount or with its target in front.")
    ] = None,
    names: Annotated[bool, typer.Option("-v", "--verbose", help="Print every name that changed.")] = False,
    timeout: Annotated[float, typer.Option(parser=parse_duration, metavar="TIME", help="Wait this long.")] = "5m",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Show at once what others have changed in the store.

    Looks again at what has been listed before and says what changed. Who has an old version of a file open goes on
    reading that version, or gets ESTALE.
    """
    from amlmount.errors import DaemonUnreachableError

    def ask(client: "DaemonClient") -> "list[tuple[str, Refreshed]]":
        meant = _meant(client.status([name]), name, path)
        return [(one, client.refresh(one, below, timeout_s=timeout)) for one, below in meant]

    found = launch.ask(ctx, ask)
    if found is None:
        raise DaemonUnreachableError(f"cannot refresh '{name}': no daemon runs", hint="`amlmount up` starts one")
    if output is not Format.TABLE:
        print_objects([{"schema_version": 1, "name": one, **changes.to_json()} for one, changes in found], output)
        return
    for one, changes in found:
        _tell(console(ctx), one, changes, names or bool(setting(ctx, "verbose")))


def _meant(found: "list[MountStatus]", name: str, path: str | None) -> list[tuple[str, str | None]]:
    """Return which mounts are to look again, and at what: of an account each container is a mount."""
    from amlmount.states import SERVING

    whole = next(status for status in found if status.name == name)
    below = None if path is None else _below(path, whole.target, name)
    if len(found) == 1:
        return [(name, below)]
    if below is None:
        return [(status.name, None) for status in found if status is not whole and status.state in SERVING]
    container, _, rest = below.partition("/")
    return [(f"{name}/{container}", rest or None)]


def _below(path: str, target: str, name: str) -> str | None:
    from amlmount.errors import UsageError

    if not os.path.isabs(path):
        below = os.path.normpath(path)
    elif f"{os.path.normpath(path)}/".startswith(f"{target}/"):
        below = os.path.relpath(os.path.normpath(path), target)
    else:
        below = ".."
    if below == ".." or below.startswith("../"):
        raise UsageError(f"cannot refresh '{path}': it is not below {target}, where '{name}' is mounted")
    return None if below == "." else below


def _tell(talk: Console, name: str, found: "Refreshed", with_names: bool) -> None:
    counts = [f"{getattr(found, kind)} {kind}" for kind in SIGNS if getattr(found, kind)]
    talk.note(f"{name}: {', '.join(counts) or 'nothing changed'}")
    if with_names:
        for kind, path in found.names:
            typer.echo(f"{SIGNS[kind]} {_printable(path)}")
        if found.more:
            talk.note(f"and {found.more} more")


def _printable(path: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in path)
