"""`amlmount doctor`: what this machine can do, what is wrong with it, and what to do about it.

Only typer and the standard library are imported at the top: `amlmount --help` must not wait for the rest.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amlmount.cli.output import Console, Format, Output, print_objects
from amlmount.cli.settings import console, locations, setting

if TYPE_CHECKING:
    from amlmount.doctor import Finding

COLOURS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
INDENT = " " * 6


def doctor(
    ctx: typer.Context,
    stores: Annotated[
        bool, typer.Option("--stores/--no-stores", help="Try the stores of the configuration too.")
    ] = True,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="FILE", help="Write an archive for who helps, without secrets."),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Examine this machine and the stores, and say what to do. Changes nothing; exit code 1 if mounting cannot work."""
    from amlmount.doctor import CHECKS, examine

    findings = examine(CHECKS)
    if stores:
        findings += _examine_stores(ctx)
    if bundle is not None:
        _write_bundle(ctx, bundle, findings)
    if output is Format.TABLE:
        _print(console(ctx), findings)
    else:
        print_objects([finding.to_json() for finding in findings], output)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


def _examine_stores(ctx: typer.Context) -> "list[Finding]":
    from concurrent.futures import ThreadPoolExecutor

    from amlmount.config.load import load_config
    from amlmount.doctor import Finding, examine, store_checks
    from amlmount.errors import AmlmountError

    try:
        checks = store_checks(load_config(_config_files(ctx)))
    except AmlmountError as error:
        return [Finding("configuration", "fail", error.message, error.hint)]
    # Each waits for its own network, and most for nothing else.
    with ThreadPoolExecutor(max_workers=8) as pool:
        return [finding for found in pool.map(lambda check: examine([check]), checks) for finding in found]


def _write_bundle(ctx: typer.Context, path: Path, findings: "list[Finding]") -> None:
    from amlmount.cli import launch
    from amlmount.config.units import counted
    from amlmount.doctor.bundle import Sources, write_bundle
    from amlmount.errors import AmlmountError

    mounts = None
    with contextlib.suppress(AmlmountError):
        mounts = launch.ask(ctx, lambda client: client.status())
    told = None if mounts is None else [status.to_json() for status in mounts]
    sources = Sources(findings, told, _config_files(ctx), locations(ctx))
    count = len(write_bundle(str(path), sources))
    console(ctx).note(f"wrote {path}: {counted(count, 'file')}, without secrets; look through it before you send it")


def _config_files(ctx: typer.Context) -> list[Path]:
    from amlmount.config.load import config_files
    from amlmount.errors import AmlmountError

    try:
        return config_files(setting(ctx, "config"), system=setting(ctx, "system"))
    except AmlmountError:
        return []


def _print(talk: Console, findings: "list[Finding]") -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        level = talk.paint(finding.level.ljust(4), COLOURS.get(finding.level))
        typer.echo(f"{level}  {finding.name.ljust(width)}  {finding.text}")
        if finding.fix:
            typer.echo(f"{INDENT}{' ' * width}  -> {finding.fix}")
