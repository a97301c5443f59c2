"""`amlmount recover`: what a dead blobfuse2 left in its cache, sent to the store or shown.

It needs no daemon; the daemon does the same by itself, and whoever comes first does it.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from amlmount.cli.output import Format, Output, print_objects, print_table
from amlmount.cli.settings import complete_mount, console, locations, setting

if TYPE_CHECKING:
    from amlmount.recovery import Folder, Report


def recover(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A mount, of now or of before.", autocompletion=complete_mount)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what each file is; touch nothing.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Send to the store what a crash of blobfuse2 left behind, and say what each file was.

    Nothing is deleted that is not proven to be in the store: conflicts stay where they are, and the rest is kept
    for some days.
    """
    from amlmount.recovery import salvage

    folders = _find(ctx, name)
    if not folders:
        console(ctx).note(f"{name}: nothing to recover")
    reports = [salvage(folder, dry_run=dry_run) for folder in folders]
    if output is Format.TABLE:
        _print_table(ctx, reports)
    else:
        print_objects([report.to_json() for report in reports], output)
    if not dry_run:
        _raise_for(name, reports)


def _find(ctx: typer.Context, name: str) -> "list[Folder]":
    from amlmount.errors import NotFoundError
    from amlmount.recovery import ASIDE, RUNNING, file_name_of, find_folders

    places = locations(ctx)
    bases = [str(root / "blobfuse2" / file_name_of(name)) for root in (places.state_dir, places.cache_root)]
    found = [folder for base in bases for folder in find_folders(base, ASIDE)]
    left = [folder for base in bases for folder in find_folders(base, RUNNING) if not folder.instance.alive]
    found += [folder.set_aside() for folder in left]
    if not found and name not in _configured(ctx):
        raise NotFoundError(f"cannot find a mount named '{name}'", hint="amlmount ps -a shows what there is")
    return found


def _configured(ctx: typer.Context) -> list[str]:
    from amlmount.config.load import config_files, load_config

    return list(load_config(config_files(setting(ctx, "config"), system=setting(ctx, "system"))).mounts)


def _print_table(ctx: typer.Context, reports: "list[Report]") -> None:
    rows = [
        (found.name, str(found.size_bytes), found.verdict, found.action, found.detail)
        for report in reports
        for found in report.files
    ]
    if rows:
        print_table(console(ctx), ("BLOB", "BYTES", "VERDICT", "ACTION", "NOTE"), rows)


def _raise_for(name: str, reports: "list[Report]") -> None:
    from amlmount.config.units import counted
    from amlmount.errors import PartialError

    kept = {report.folder: report.count("kept") for report in reports if report.count("kept")}
    if not kept:
        return
    pending = any(report.pending for report in reports)
    again = "run it again when the store can be reached" if pending else "compare them with the blobs, and copy by hand"
    raise PartialError(
        f"cannot recover {counted(sum(kept.values()), 'file')} of '{name}': they stay in {', '.join(kept)}",
        hint=f"{again}; they are below data/ there",
        details={"kept": kept},
    )
