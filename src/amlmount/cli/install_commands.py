"""`amlmount install`, `uninstall` and `export`: make a machine able to mount, take it back, carry it to others.

Only typer and the standard library are imported at the top: `amlmount --help` must not wait for the rest.
"""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amlmount.cli.output import Console, Format, Output
from amlmount.cli.settings import complete_mount, console, parse_duration, setting

if TYPE_CHECKING:
    from amlmount.installer import Needs, Plan, Report, Wanted


class InstalledEngine(StrEnum):
    """For which engine the machine is made ready."""

    BLOBFUSE2 = "blobfuse2"
    PYTHON = "python"


class BuildChannel(StrEnum):
    """Which builds of blobfuse2."""

    STABLE = "stable"
    PREVIEW = "preview"


class Service(StrEnum):
    """What is done about the system's daemon."""

    NO = "no"
    YES = "yes"
    START = "start"


export_app = typer.Typer(no_args_is_help=True, help="Carry the configuration to other machines and to systemd.")
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
LockTimeout = Annotated[
    float, typer.Option(parser=parse_duration, metavar="TIME", help="Wait this long for another apt or dpkg.")
]


def install(
    ctx: typer.Context,
    engine: Annotated[
        InstalledEngine, typer.Option("--engine", help="For which engine; python needs FUSE only.")
    ] = InstalledEngine.BLOBFUSE2,
    version: Annotated[
        str | None, typer.Option("--version", metavar="X", help="Exactly this blobfuse2, and keep it there.")
    ] = None,
    channel: Annotated[BuildChannel, typer.Option("--channel", help="Which builds.")] = BuildChannel.STABLE,
    offline: Annotated[
        Path | None, typer.Option("--offline", metavar="DIR", help="Use the .deb files in this folder, no network.")
    ] = None,
    repo_url: Annotated[
        str | None, typer.Option("--repo-url", metavar="URL", help="A mirror instead of Microsoft's package host.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="The public key of that mirror, if it has its own.")
    ] = None,
    service: Annotated[
        Service, typer.Option("--service", help="Set up the system's daemon: no, yes, or start it too.")
    ] = Service.NO,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether everything is there; exit code 1 if not.")
    ] = False,
    dry_run: DryRun = False,
    lock_timeout: LockTimeout = "10m",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Install what mounting needs: fuse3, and blobfuse2 from Microsoft's signed repository.

    Asks nothing. A second run changes nothing and says so; a run that fails takes back what it changed.
    """
    from amlmount.installer import Channel, Wanted, WantedEngine, load_record, observe, plan_install
    from amlmount.installer.wanted import MICROSOFT

    offline_dir = str(offline) if offline else None
    wanted = Wanted(
        engine=WantedEngine(engine.value),
        version=version,
        channel=Channel(channel.value),
        lock_timeout_s=lock_timeout,
        service=service.value,
        program=_program(),
        completions=_completions() if service is not Service.NO else {},
        needs=_needs(ctx),
        offline_dir=offline_dir,
        key_file=str(key) if key else None,
        repo_url=repo_url or MICROSOFT,
    )
    plan = plan_install(observe(offline_dir=offline_dir), wanted, load_record())
    if check or dry_run:
        _show(console(ctx), plan, None, output)
        if check and plan.steps:
            raise typer.Exit(1)
        return
    _show(console(ctx), plan, _apply(console(ctx), plan, wanted) if plan.steps else None, output)


def uninstall(
    ctx: typer.Context,
    dry_run: DryRun = False,
    lock_timeout: LockTimeout = "10m",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Take back everything that `amlmount install` changed on this machine.

    Configuration, journals, caches and logs stay, and so does what others have changed since.
    """
    from amlmount.installer import load_record, plan_uninstall
    from amlmount.installer.apply import Ground, apply_undo
    from amlmount.installer.record import read_state

    talk = console(ctx)
    runs_systemd = os.path.isdir("/run/systemd/system")
    record = load_record()
    plan = plan_uninstall(record, read_state, lock_timeout_s=lock_timeout, runs_systemd=runs_systemd)
    if dry_run or not plan.steps:
        _show(talk, plan, None, output)
        return
    _need_root("uninstall")
    _show(talk, plan, apply_undo(plan, Ground(tell=talk.note, lock_timeout_s=lock_timeout)), output)


def _apply(talk: Console, plan: "Plan", wanted: "Wanted") -> "Report":
    from amlmount.installer import Record, apply, plan_uninstall
    from amlmount.installer.apply import Ground
    from amlmount.installer.record import read_state

    _need_root("install")

    def undo(record: Record) -> "Plan":
        return plan_uninstall(record, read_state, lock_timeout_s=wanted.lock_timeout_s)

    return apply(plan, undo, Ground(tell=talk.note, lock_timeout_s=wanted.lock_timeout_s))


def _need_root(verb: str) -> None:
    from amlmount.errors import UsageError

    if os.geteuid() != 0:
        raise UsageError(f"cannot {verb}: that takes root", hint=f"sudo amlmount {verb}; --dry-run needs no rights")


def _needs(ctx: typer.Context) -> "Needs":
    from amlmount.errors import AmlmountError
    from amlmount.installer import Needs, find_needs

    try:
        return find_needs(setting(ctx, "config"), login_user=os.environ.get("SUDO_USER"))
    except AmlmountError as error:
        # A configuration that is wrong must not keep the machine from being made ready.
        console(ctx).note(f"{error.message}: what it needs of the machine is not known")
        return Needs()


def _program() -> str:
    """Return the path by which the service and the command on PATH start us."""
    from amlmount.installer import paths

    beside = os.path.join(os.path.dirname(sys.executable), "amlmount")
    if sys.executable.startswith(f"{paths.HOME}/") or not os.path.exists(beside):
        return paths.PROGRAM
    return beside


def _completions() -> dict[str, str]:
    from typer import completion as scripts

    return {
        shell: scripts.get_completion_script(  # type: ignore[attr-defined]
            prog_name="amlmount", complete_var="_AMLMOUNT_COMPLETE", shell=shell
        )
        + "\n"
        for shell in ("bash", "zsh", "fish")
    }


def _show(talk: Console, plan: "Plan", report: "Report | None", output: Format) -> None:
    if output is not Format.TABLE:
        data: dict[str, Any] = plan.to_json() | {"changed": report is not None}
        data |= report.to_json() if report else {}
        typer.echo(json.dumps(data) if output is Format.JSONL else json.dumps(data, indent=2))
        return
    for sentence in plan.present:
        typer.echo(f"{talk.paint('ok  ', typer.colors.GREEN)}  {sentence}")
    if report is None:
        for step in plan.steps:
            typer.echo(f"do    {step.text}  ({step.why})")
    for text in report.warnings if report else ():
        typer.echo(f"{talk.paint('warn', typer.colors.YELLOW)}  {text}")
    for text in plan.notes:
        typer.echo(f"note  {text}")
    typer.echo(_verdict(plan, report))


def _verdict(plan: "Plan", report: "Report | None") -> str:
    from amlmount.config.units import counted

    if not plan.steps:
        return "nothing to do" if plan.title == "install" else "nothing to take back"
    if report is None:
        return f"{counted(len(plan.steps), 'step')} to do"
    return f"done: {len(report.done)} of {counted(len(plan.steps), 'step')}"


@export_app.command("cloud-init")
def export_cloud_init(
    ctx: typer.Context,
    engine: Annotated[
        InstalledEngine, typer.Option("--engine", help="For which engine; python needs FUSE only.")
    ] = InstalledEngine.BLOBFUSE2,
    source: Annotated[
        str, typer.Option("--from", metavar="WHAT", help="What pip installs there, such as amlmount==1.2.")
    ] = "amlmount",
) -> None:
    """Print user data (64 KiB at most) that makes a fresh virtual machine mount what this configuration says.

    A secret is never in it, only the reference: what it names must be there on the new machine.
    """
    from amlmount.config.load import config_files, load_config
    from amlmount.errors import ConfigError
    from amlmount.installer import paths
    from amlmount.installer.export import cloud_init

    found = config_files(setting(ctx, "config"), system=setting(ctx, "system"))
    if not found:
        raise ConfigError("cannot export: there is no configuration", hint="`amlmount init` writes one")
    load_config(found)
    texts = {_place_of(path, index, paths.CONFIG_DIR): path.read_text() for index, path in enumerate(found)}
    typer.echo(cloud_init(texts, options=("--from", source, "--engine", engine.value)), nl=False)


@export_app.command("systemd-mount")
def export_systemd_mount(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A mount of the configuration.", autocompletion=complete_mount)],
    directory: Annotated[
        Path | None, typer.Option("--directory", metavar="DIR", help="Write the unit there instead of printing it.")
    ] = None,
) -> None:
    """Print a systemd mount unit, for units that need the folder (RequiresMountsFor=, Requires=)."""
    from amlmount.config.load import config_files, load_config
    from amlmount.config.resolve import find_mount, target_path
    from amlmount.installer.export import systemd_mount

    config = load_config(config_files(setting(ctx, "config"), system=setting(ctx, "system")))
    unit, text = systemd_mount(name, target_path(find_mount(config, name)))
    if directory is None:
        typer.echo(f"# /etc/systemd/system/{unit}\n{text}", nl=False)
        return
    (directory / unit).write_text(text)
    console(ctx).note(f"wrote {directory / unit}; next: systemctl daemon-reload")


def _place_of(path: Path, index: int, folder: str) -> str:
    return f"{folder}/amlmount.yaml" if index == 0 else f"{folder}/conf.d/{path.name}"
