"""`amlmount up`, `down` and `ps`: ask the daemon, print what came of it.

Only typer and the standard library are imported at the top: `amlmount --help` must not wait for the rest.
"""

import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amlmount.cli import launch
from amlmount.cli.flush_command import drain_before_down
from amlmount.cli.output import (
    Console,
    Format,
    Output,
    print_mounts,
    print_objects,
    print_table,
    raise_errors,
    raise_for,
)
from amlmount.cli.settings import complete_mount, console, locations, named_config, parse_duration, setting

if TYPE_CHECKING:
    from amlmount.client import DaemonClient
    from amlmount.states import MountStatus, Outcome
    from amlmount.states.stats import MountStats

SETTLE_S = 15.0
FIGURES_WITHIN_S = 0.03

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="Mounts; none means all.", autocompletion=complete_mount),
]
Timeout = Annotated[float, typer.Option(parser=parse_duration, metavar="TIME", help="Wait this long: 30s, 5m.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def up(
    ctx: typer.Context,
    names: Names = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until each is mounted or has failed.")] = True,
    timeout: Timeout = "60s",  # type: ignore[assignment]
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
) -> None:
    """Mount what the configuration says, and keep it mounted.

    Starts a daemon if none runs. Ctrl-C takes back what is not mounted yet; what is mounted stays.
    """
    talk = console(ctx)
    if dry_run:
        plans = _plan(ctx, names)
        _print_plans(talk, plans, output)
        raise_errors({plan["name"]: plan["error"] for plan in plans if plan["error"]}, len(plans), "mount")
        return
    outcome = _up(ctx, names, wait, timeout)
    if output is not Format.TABLE:
        print_mounts(talk, outcome.mounts, output)
    raise_for(outcome, "mount")


def down(
    ctx: typer.Context,
    names: Names = None,
    every: Annotated[bool, typer.Option("--all", help="All mounts of this daemon (as when no name is given).")] = False,
    lazy: Annotated[bool, typer.Option("--lazy", help="Let go of a mount even while it is in use.")] = False,
    discard_dirty: Annotated[
        bool, typer.Option("--discard-dirty", help="Do not wait for what the store does not have yet.")
    ] = False,
    timeout: Timeout = "60s",  # type: ignore[assignment]
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
) -> None:
    """Unmount, and end the daemon that `up` started when nothing is left.

    A mount that is in use stays, and who uses it is said; --lazy lets go of it. What was written through it is sent
    first; what cannot be sent keeps the mount up, or with --discard-dirty waits on the local disk for the next `up`.
    """
    from amlmount.errors import UsageError

    if every and names:
        raise UsageError("cannot take both names and --all", hint="give one or the other")
    talk = console(ctx)
    if dry_run:
        mounts = launch.ask(ctx, lambda client: client.status(names or None)) or []
        print_mounts(talk, [status for status in mounts if status.state != "unmounted"], output)
        return
    if not discard_dirty:
        launch.ask(ctx, lambda client: drain_before_down(client, names or None, timeout, talk))
    outcome = _down(ctx, names or None, lazy, timeout)
    if output is not Format.TABLE:
        print_mounts(talk, outcome.mounts, output)
    raise_for(outcome, "unmount")


def ps(
    ctx: typer.Context,
    every: Annotated[bool, typer.Option("-a", "--all", help="Show what is configured and not mounted too.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show the mounts: state, health, engine, target, source, what is not sent yet, what the cache takes."""
    talk = console(ctx)
    answer = launch.ask(ctx, _look)
    mounts, figures, trouble = answer if answer is not None else (_configured(ctx) if every else [], {}, None)
    shown = [status for status in mounts if every or status.state != "unmounted"]
    print_mounts(talk, shown, output, figures)
    if answer is None and launch.has_leftovers(locations(ctx)):
        talk.note(launch.LEFTOVERS)
    if trouble is not None:
        talk.note(f"the configuration as it is now is not in use: {trouble['message']}")


# --- up ------------------------------------------------------------------------------------------------------------


def _up(ctx: typer.Context, names: list[str] | None, wait: bool, timeout_s: float) -> "Outcome":
    from amlmount.errors import DaemonUnreachableError

    talk = console(ctx)
    for _ in range(launch.MAX_STARTS):
        client = launch.find_or_start_daemon(ctx)
        steps = Steps(talk)
        try:
            outcome = client.up(names or None, wait=wait, timeout_s=timeout_s, sudo_uid=sudo_uid(), progress=steps.tell)
        except DaemonUnreachableError as error:
            if not error.details.get("unheard"):
                raise
            continue  # it was about to end when we asked: the next one takes over
        except KeyboardInterrupt:
            talk.note("interrupted: taking back what is not mounted yet")
            _wait_until_settled(client)
            raise
        for status in outcome.mounts:
            steps.tell(status)
        if not outcome.mounts:
            talk.note("nothing to mount: the configuration names no mounts")
        return outcome
    raise DaemonUnreachableError("cannot keep a daemon running: each ends at once", hint="see daemon.log")


class Steps:
    """Says what happens to each mount, every thing once."""

    def __init__(self, talk: Console) -> None:
        self.told: dict[str, str] = {}
        self._talk = talk

    def tell(self, status: "MountStatus") -> None:
        text = _step(status)
        if text is not None and self.told.get(status.name) != text:
            self._talk.note(text)
        self.told[status.name] = text or ""


def _step(status: "MountStatus") -> str | None:
    match status.state:
        case "mounted" | "degraded":
            return f"{status.name}: mounted at {status.target} ({status.engine}: {status.engine_why})"
        case "mounting":
            return f"{status.name}: mounting ({status.engine}: {status.engine_why})"
        case "pending" if status.retry_in_s is not None and status.last_error:
            return f"{status.name}: trying again, because: {status.last_error.message}"
        case "unmounted":
            return f"{status.name}: unmounted"
    return None


def _wait_until_settled(client: "DaemonClient") -> None:
    """Wait until nothing is on its way any more, or the daemon has gone with the last of it."""
    from amlmount.client import wait_until_gone
    from amlmount.errors import AmlmountError

    deadline = time.monotonic() + SETTLE_S
    try:
        while time.monotonic() < deadline:
            info, mounts = client.ping(), client.status()
            if info["auto"] and all(status.state in ("unmounted", "failed") for status in mounts):
                wait_until_gone(info["pid"], SETTLE_S)
                return
            if all(status.state in ("unmounted", "failed", "mounted", "degraded") for status in mounts):
                return
            time.sleep(0.05)
    except AmlmountError:
        return


def sudo_uid() -> int | None:
    """Return who ran sudo, None if nobody did."""
    value = os.environ.get("SUDO_UID", "")
    return int(value) if value.isdigit() else None


def _plan(ctx: typer.Context, names: list[str] | None) -> list[dict[str, Any]]:
    plans = launch.ask(ctx, lambda client: client.plan(names or None))
    if plans is not None:
        return plans
    from amlmount.daemon import Options, plan_offline

    return [plan.to_json() for plan in plan_offline(Options(locations(ctx), named_config(ctx)), names or None)]


def _print_plans(talk: Console, plans: list[dict[str, Any]], output: Format) -> None:
    if output is not Format.TABLE:
        print_objects(plans, output)
        return
    header = ("NAME", "ACTION", "ENGINE", "TARGET", "SOURCE", "NOTE")
    rows = [
        (plan["name"], plan["action"], plan["engine"] or "-", plan["target"], plan["source"], _plan_note(plan))
        for plan in plans
    ]
    print_table(talk, header, rows)


def _plan_note(plan: dict[str, Any]) -> str:
    if plan["error"]:
        return str(plan["error"]["message"])
    makes = f"; makes {', '.join(plan['makes'])}" if plan["makes"] else ""
    return f"{plan['engine_why'] or ''}{makes}"


def _look(client: "DaemonClient") -> "tuple[list[MountStatus], dict[str, MountStats], dict[str, Any] | None]":
    """Ask for what `ps` shows. Mounts that do not say at once what they take are shown with what they said last."""
    figures = {one.name: one for one in client.stats(within_s=FIGURES_WITHIN_S)}
    return client.status(), figures, client.ping().get("config_error")


# --- down and ps ---------------------------------------------------------------------------------------------------


def _down(ctx: typer.Context, names: list[str] | None, lazy: bool, timeout_s: float) -> "Outcome":
    from amlmount.states import Outcome

    talk = console(ctx)
    if launch.find_daemon(ctx) is None and launch.has_leftovers(locations(ctx)):
        launch.find_or_start_daemon(ctx)  # it knows how to clear away what a killed daemon left
    steps = Steps(talk)
    outcome = launch.ask(ctx, lambda client: client.down(names, lazy=lazy, timeout_s=timeout_s, progress=steps.tell))
    if outcome is None:
        talk.note(launch.NOTHING_RUNS)
    return outcome or Outcome([])


def _configured(ctx: typer.Context) -> "list[MountStatus]":
    """What is configured, when there is no daemon to say what is mounted."""
    from amlmount.config.load import config_files, load_config
    from amlmount.config.resolve import resolve_all
    from amlmount.states import MountStatus

    specs = resolve_all(load_config(config_files(setting(ctx, "config"), system=setting(ctx, "system"))))
    return [
        MountStatus(spec.name, spec.target, spec.description, spec.read_only, spec.policy.profile)
        for spec in specs.values()
    ]
