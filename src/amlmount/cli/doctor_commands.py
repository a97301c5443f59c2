"""`amlmount doctor`: what this machine can do, what is wrong with it, and what to do about it.

Only typer and the standard library are imported at the top: `amlmount --help` must not wait for the rest.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from amlmount.cli.output import Console, Format, print_objects
from amlmount.cli.settings import console

if TYPE_CHECKING:
    from amlmount.doctor import Finding

COLOURS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
INDENT = " " * 6


def doctor(
    ctx: typer.Context,
    output: Annotated[Format, typer.Option("-o", "--output", help="Format of what is printed.")] = Format.TABLE,
) -> None:
    """Examine this machine and say what to do. Changes nothing; exit code 1 if mounting cannot work."""
    from amlmount.doctor import CHECKS, examine

    findings = examine(CHECKS)
    if output is Format.TABLE:
        _print(console(ctx), findings)
    else:
        print_objects([finding.to_json() for finding in findings], output)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


def _print(talk: Console, findings: "list[Finding]") -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        level = talk.paint(finding.level.ljust(4), COLOURS.get(finding.level))
        typer.echo(f"{level}  {finding.name.ljust(width)}  {finding.text}")
        if finding.fix:
            typer.echo(f"{INDENT}{' ' * width}  -> {finding.fix}")
