"""`amlmount reload` and `restart`: change what is mounted while it is in use.

Only typer and the standard library are imported at the top: `amlmount --help` must not wait for the rest.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from amlmount.cli import launch
from amlmount.cli.mount_commands import Steps, sudo_uid
from amlmount.cli.output import Console, Format, Output, print_mounts, print_objects, print_table, raise_for
from amlmount.cli.settings import complete_mount, console, parse_duration

if TYPE_CHECKING:
    from amlmount.client import DaemonClient
    from amlmount.states import Change, Outcome

Answer = TypeVar("Answer")
SERVICE_PATIENCE_S = 20.0
Names = Annotated[
    list[str] | None, typer.Argument(help="Mounts; none means all that are up.", autocompletion=complete_mount)
]
Timeout = Annotated[
    float, typer.Option("--timeout", parser=parse_duration, metavar="DURATION", help="How long to wait (30s, 5m).")
]


def reload(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    timeout: Timeout = "5m",  # type: ignore[assignment]  # typer parses the default like what a user types
    output: Output = Format.TABLE,
) -> None:
    """Read the configuration again and make what is mounted as it says, without a gap where that can be.

    What is new is mounted, what has left it is let go of, what has changed is replaced: files that are open are read
    to their end from the old mount.
    """
    talk = console(ctx)
    if dry_run:
        _print_changes(talk, _ask(ctx, lambda client: client.changes()), output)
        return
    _tell_gaps(talk, _ask(ctx, lambda client: client.changes()))
    steps = Steps(talk)
    outcome = _ask(ctx, lambda client: client.reload(timeout_s=timeout, sudo_uid=sudo_uid(), progress=steps.tell))
    _finish(talk, outcome, output, "change")


def restart(
    ctx: typer.Context,
    names: Names = None,
    the_daemon: Annotated[
        bool, typer.Option("--daemon", help="Replace the daemon, as after an upgrade; all mounts go on being served.")
    ] = False,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Only what an older amlmount or blobfuse2 serves than is installed now.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    timeout: Timeout = "5m",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Put new mounts in the place of those that are up, without a gap where that can be.

    With --upgrade, after one: first the daemon, if it is older, then the mounts that are served by older programs.
    """
    talk = console(ctx)
    if the_daemon:
        _restart_daemon(ctx, names)
        return
    if dry_run:
        _print_changes(talk, _restarts(ctx, names or None, upgrade), output)
        return
    chosen = _older(ctx, names or None) if upgrade else names or None
    _tell_gaps(talk, _ask(ctx, lambda client: client.restarts(chosen, upgrade=False)))
    steps = Steps(talk)
    outcome = _ask(
        ctx, lambda client: client.restart(chosen, timeout_s=timeout, sudo_uid=sudo_uid(), progress=steps.tell)
    )
    _finish(talk, outcome, output, "restart")


def _older(ctx: typer.Context, names: list[str] | None) -> list[str]:
    """Have the daemon be what is installed, and return which mounts are served by something older."""
    if _daemon_change(ctx) is not None:
        _restart_daemon(ctx, None)
    return [change.name for change in _ask(ctx, lambda client: client.restarts(names, upgrade=True))]


def _restarts(ctx: typer.Context, names: list[str] | None, upgrade: bool) -> "list[Change]":
    """Return what would be done. Workers of a daemon that is older than what is installed are as old as it is."""
    from dataclasses import replace

    found = {change.name: change for change in _ask(ctx, lambda client: client.restarts(names, upgrade=upgrade))}
    if (older := _daemon_change(ctx)) is not None:
        for change in _ask(ctx, lambda client: client.restarts(names, upgrade=False)):
            status = next(iter(_ask(ctx, lambda client, name=change.name: client.status([name]))))  # type: ignore[misc]
            if status.engine == "python":
                found[change.name] = replace(change, fields=(*change.fields, older))
        console(ctx).note(f"the daemon is older than what is installed and would be restarted first: {older}")
    return list(found.values())


def _daemon_change(ctx: typer.Context) -> str | None:
    """Say how the daemon's program differs from what is installed, None if it does not."""
    from amlmount.worker.program import LOADED

    running = _ask(ctx, lambda client: client.ping()).get("program", "an older one")
    return None if running == LOADED.text else f"amlmount: {running} -> {LOADED.text}"


def _restart_daemon(ctx: typer.Context, names: list[str] | None) -> None:
    from amlmount.errors import UsageError

    if names:
        raise UsageError("cannot restart the daemon for some mounts only", hint="leave out the names, or --daemon")
    info = _ask(ctx, lambda client: client.ping())
    _ask(ctx, lambda client: client.hand_over())
    client = launch.find_or_start_daemon(ctx) if info["auto"] else _await_service(ctx, info["pid"])
    console(ctx).note(f"daemon: process {client.ping()['pid']} in the place of {info['pid']}")


def _await_service(ctx: typer.Context, old_pid: int) -> "DaemonClient":
    """Wait for the daemon that a service manager starts in the place of the old one."""
    from amlmount.errors import DaemonUnreachableError

    deadline = time.monotonic() + SERVICE_PATIENCE_S
    while (client := launch.find_daemon(ctx)) is None:
        if time.monotonic() > deadline:
            hint = "start it as you did before: it finds every mount as it was"
            raise DaemonUnreachableError(f"cannot find a daemon in the place of {old_pid}: nobody starts it", hint=hint)
        time.sleep(0.1)
    return client


def _ask(ctx: typer.Context, question: "Callable[[DaemonClient], Answer]") -> Answer:
    from amlmount.errors import DaemonUnreachableError

    answer = launch.ask(ctx, question)
    if answer is None:
        raise DaemonUnreachableError("cannot change anything: no daemon runs", hint="`amlmount up` starts one")
    return answer


def _tell_gaps(talk: Console, changes: "list[Change]") -> None:
    """Say beforehand what nobody could do anything about afterwards; that it is over, the steps say."""
    for change in changes:
        if change.gap:
            talk.note(f"{change.name}: there is a gap, in which it is not mounted: {change.gap}")


def _finish(talk: Console, outcome: "Outcome", output: Format, verb: str) -> None:
    if output is not Format.TABLE:
        print_mounts(talk, outcome.mounts, output)
    elif not outcome.mounts:
        talk.note("nothing has changed")
    raise_for(outcome, verb)


def _print_changes(talk: Console, changes: "list[Change]", output: Format) -> None:
    if output is not Format.TABLE:
        print_objects([change.to_json() for change in changes], output)
        return
    if not changes:
        talk.note("nothing would change")
        return
    rows = [
        (change.name, change.action, change.target, ", ".join(change.fields), f"a gap: {change.gap}" * bool(change.gap))
        for change in changes
    ]
    print_table(talk, ("NAME", "ACTION", "TARGET", "CHANGED", "NOTE"), rows)
