"""What the global options say, as the dictionary that typer hands from command to command (`ctx.obj`).

Keys: `config` (Path or None), `system` (True, False or None: whoever we are), `verbose`, `console`.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from amlmount.cli.output import Console

if TYPE_CHECKING:
    from amlmount.config.locations import Locations


def setting(ctx: typer.Context, key: str) -> Any:
    """Return what the root command was told, None if nothing."""
    return (ctx.obj or {}).get(key)


def console(ctx: typer.Context) -> Console:
    """Return how to talk."""
    return setting(ctx, "console") or Console()


def locations(ctx: typer.Context) -> "Locations":
    """Return the places of the daemon that is meant. Raises ConfigError."""
    from amlmount.config.locations import find_locations

    return find_locations(system=setting(ctx, "system"))


def named_config(ctx: typer.Context) -> Path | None:
    """Return the configuration that --config or AMLMOUNT_CONFIG names, as an absolute path."""
    named = setting(ctx, "config") or os.environ.get("AMLMOUNT_CONFIG")
    return Path(os.path.abspath(os.path.expanduser(named))) if named else None


def parse_duration(text: str) -> float:
    """Read `30s`, `5m`, `1h30m` as seconds."""
    from amlmount.config.units import parse_duration as parse

    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def complete_mount(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer the names of the configured mounts; whatever goes wrong offers nothing."""
    try:
        from amlmount.config.documents import read_document
        from amlmount.config.load import config_files

        root = ctx.find_root().params
        explicit = Path(root["config"]) if root.get("config") else None
        files = config_files(explicit, system=True if root.get("system") else False if root.get("user") else None)
        names = [name for file in files for name in read_document(file).data.get("mounts", {})]
    except Exception:
        return []
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
