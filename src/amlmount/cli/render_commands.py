"""`amlmount render` and `amlmount import`: to blobfuse2's configuration, and from it.

Only typer is imported at the top: `amlmount --help` must not wait for what these commands need.
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amlmount.cli.settings import complete_mount, console, locations, setting

if TYPE_CHECKING:
    from amlmount.config.models import CacheConfig
    from amlmount.config.spec import MountSpec, SourceSpec
    from amlmount.importer import Imported


class RenderedEngine(StrEnum):
    """Engines that have a configuration file of their own."""

    BLOBFUSE2 = "blobfuse2"


def render(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A mount of the configuration.", autocompletion=complete_mount)],
    show_secrets: Annotated[bool, typer.Option("--show-secrets", help="Print secrets instead of ***.")] = False,
    engine: Annotated[RenderedEngine, typer.Option("--engine", help="Whose file.")] = RenderedEngine.BLOBFUSE2,
) -> None:
    """Print the file that the engine of a mount is started with; secrets are masked unless asked for."""
    from amlmount.config.load import config_files, load_config
    from amlmount.config.resolve import find_daemon_user, resolve_mount

    del engine  # there is only one so far
    config = load_config(config_files(setting(ctx, "config"), system=setting(ctx, "system")))
    sudo_uid = os.environ.get("SUDO_UID", "")
    user = find_daemon_user(is_system=setting(ctx, "system"), sudo_uid=int(sudo_uid) if sudo_uid.isdigit() else None)
    spec = resolve_mount(config, name, user)
    texts = [_render_source(ctx, spec, source, config.cache, show_secrets) for source in spec.sources]
    typer.echo("---\n".join(texts).rstrip("\n"))


def import_(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="blobfuse2 YAML, fstab, or Azure ML datastore YAML.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write there instead of printing.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing: print what would be.")] = False,
    secrets_dir: Annotated[
        Path | None, typer.Option("--secrets-dir", help="Put secrets into files there that only you can read.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="Where it is to be mounted.")] = None,
) -> None:
    """Turn existing blobfuse2 configurations into one of amlmount, and say what was wrong with them."""
    from amlmount.importer import import_files

    _refuse_existing(output if not dry_run else None)
    done = import_files(files, secrets_dir=secrets_dir, target=target, dry_run=dry_run)
    if output is None or dry_run:
        typer.echo(done.text, nl=False)
    else:
        _write_new(output, done.text)
    _tell(ctx, done, output if not dry_run else None)


def _render_source(
    ctx: typer.Context, spec: "MountSpec", source: "SourceSpec", cache: "CacheConfig", show_secrets: bool
) -> str:
    from amlmount import secrets
    from amlmount.cli.rendered_paths import paths_of
    from amlmount.render import DEFAULT_MEMORY_BYTES, render_blobfuse2

    own = spec if source.child is None else spec.model_copy(update={"name": f"{spec.name}/{source.child}"})
    found = paths_of(own, locations(ctx), cache)
    granted = spec if found.cache_bytes is None else spec.model_copy(update={"cache_max_bytes": found.cache_bytes})
    return render_blobfuse2(
        granted,
        source=source,
        secrets=(lambda reference: secrets.resolve(reference).reveal()) if show_secrets else None,
        cache_dir=found.cache_dir,
        log_path=found.log_path,
        work_dir=found.work_dir,
        memory_max_bytes=DEFAULT_MEMORY_BYTES if found.memory_bytes is None else found.memory_bytes or 1 << 20,
    )


def _refuse_existing(output: Path | None) -> None:
    from amlmount.errors import UsageError

    if output is not None and output.exists():
        raise UsageError(f"cannot write '{output}': it is there already", hint="name a new file, such as in conf.d/")


def _write_new(output: Path, text: str) -> None:
    from amlmount.errors import UsageError

    try:
        with open(output, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(
            f"cannot write '{output}': {error.strerror}", hint="name a file in a folder of yours"
        ) from None


def _tell(ctx: typer.Context, done: "Imported", output: Path | None) -> None:
    talk = console(ctx)
    for finding in done.findings:
        talk.note(str(finding))
    for path in done.secret_files:
        talk.note(f"wrote {path} (mode 0600)")
    if output is not None:
        talk.note(f"wrote {output}; next: read it, then `amlmount config check` and `amlmount up`")
