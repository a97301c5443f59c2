"""`amlmount config check | show | schema` and `amlmount init`.

Only typer is imported at the top: `amlmount --help` must not wait for what these commands need.
"""

import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amlmount.cli.settings import setting

if TYPE_CHECKING:
    from amlmount.config.load import Loaded

config_app = typer.Typer(no_args_is_help=True, help="Check and show the configuration.")


class Output(StrEnum):
    """Formats of `config show`."""

    YAML = "yaml"
    JSON = "json"


@config_app.command()
def check(ctx: typer.Context) -> None:
    """Say whether the configuration is right, and if not, what is wrong in which line."""
    from amlmount.config.resolve import resolve_all
    from amlmount.config.units import counted

    loaded = _load(ctx)
    mounts = resolve_all(loaded.config, _daemon_user(ctx))
    for file in loaded.files:
        typer.echo(file)
    typer.echo(f"right: {counted(len(loaded.config.stores), 'store')}, {counted(len(mounts), 'mount')}")


@config_app.command()
def show(
    ctx: typer.Context,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value came from.")] = False,
    output: Annotated[Output, typer.Option("-o", "--output", help="Format.")] = Output.YAML,
) -> None:
    """Show the whole configuration as it is used: all files merged, every default filled in."""
    from amlmount.config import show as showing

    loaded = _load(ctx)
    render = showing.to_json if output is Output.JSON else showing.to_yaml
    typer.echo(render(loaded, _daemon_user(ctx), with_origin=origin).rstrip("\n"))


@config_app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    import json

    from amlmount.config.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def init(
    ctx: typer.Context,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented configuration file to start from."""
    from amlmount.config.load import main_file
    from amlmount.config.starter import write_starter

    path = main_file(setting(ctx, "config"), system=setting(ctx, "system"))
    write_starter(path, force=force)
    said = _program(setting(ctx, "config"))
    typer.echo(f"wrote {path}; next: edit it, then `{said} config check` and `{said} up`")


def _program(explicit: Path | None) -> str:
    """Return how to call this program with the same configuration again."""
    return "amlmount" if explicit is None else f"amlmount --config {shlex.quote(str(explicit))}"


def _load(ctx: typer.Context) -> "Loaded":
    from amlmount.config.load import load_with_places, required_files

    explicit: Path | None = setting(ctx, "config")
    return load_with_places(required_files(explicit, system=setting(ctx, "system"), program=_program(explicit)))


def _daemon_user(ctx: typer.Context) -> Any:
    from amlmount.config.resolve import find_daemon_user

    sudo_uid = os.environ.get("SUDO_UID", "")
    return find_daemon_user(is_system=setting(ctx, "system"), sudo_uid=int(sudo_uid) if sudo_uid.isdigit() else None)
