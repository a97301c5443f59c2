"""`amlmount flush`: what was written through a mount gets into the store now; `down` does the same first.

Nothing here looks below a mount.
"""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amlmount.cli import launch
from amlmount.cli.output import Console, Format, Output, for_each, print_objects
from amlmount.cli.settings import complete_mount, console, parse_duration

if TYPE_CHECKING:
    from amlmount.client import DaemonClient
    from amlmount.states import MountStatus

SLICE_S = 2.0  # how often progress is told
SAME_AGAIN_S = 20.0  # and when there is none


def flush(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The mount.", autocompletion=complete_mount)],
    timeout: Annotated[float, typer.Option(parser=parse_duration, metavar="TIME", help="Wait this long.")] = "5m",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Wait until the store has everything that was written through a mount; of an account, through each of its mounts.

    What cannot be sent stays on the local disk and is tried again; exit code 124 says so.
    """
    from amlmount.errors import DaemonUnreachableError

    talk = console(ctx)
    mounts = launch.ask(ctx, lambda client: launch.mounts_called(client, name))
    if mounts is None:
        raise DaemonUnreachableError(f"cannot flush '{name}': no daemon runs", hint="`amlmount up` starts one")
    objects: list[dict[str, Any]] = []

    def flush_one(status: "MountStatus") -> None:
        found = launch.ask(ctx, lambda client: drain(client, status.name, timeout, talk)) or {}
        objects.append({"schema_version": 1, "name": status.name, **found})
        _check_done(status.name, found, timeout)
        if output is Format.TABLE:
            talk.note(f"{status.name}: everything is in the store")

    try:
        for_each(talk, mounts, "flush", flush_one)
    finally:
        if output is not Format.TABLE and objects:
            print_objects(objects, output)


def _check_done(name: str, found: dict[str, Any], timeout_s: float) -> None:
    from amlmount.errors import DaemonUnreachableError, WaitTimeoutError

    if not found:
        raise DaemonUnreachableError(f"cannot flush '{name}': the daemon has ended", hint="`amlmount up` starts one")
    if not found["is_done"]:
        raise WaitTimeoutError(
            f"cannot flush '{name}' within {timeout_s:g} s: {what_is_left(found)}",
            hint="it is kept and sent as soon as the store takes it; look again with: amlmount flush " + name,
        )


def drain(client: "DaemonClient", name: str, timeout_s: float, talk: Console) -> dict[str, Any]:
    """Have a mount send what it has, telling how much is left; return its last answer."""
    told, before = Told(), None
    while True:
        wait_s = min(SLICE_S, timeout_s)
        found = client.ask_writing(name, "flush", {"timeout_s": wait_s}, timeout_s=wait_s + 60.0)
        timeout_s -= wait_s
        if found["is_done"] or timeout_s <= 0:
            return found
        rate = max(0.0, found["sent_bytes"] - before) / wait_s if before is not None else 0.0
        before = found["sent_bytes"]
        told.tell(talk, f"{name}: {what_is_left(found)}", rate)


class Told:
    """What was told of a wait: the same is told again only after a while."""

    def __init__(self) -> None:
        self._text, self._at_s = "", float("-inf")

    def tell(self, talk: Console, text: str, rate: float) -> None:
        """Tell it, with what is being sent in bytes a second, if that is anything."""
        from amlmount.config.units import rough_size

        now_s = time.monotonic()
        if rate or text != self._text or now_s - self._at_s >= SAME_AGAIN_S:
            talk.note(f"{text}, {rough_size(int(rate))}/s" if rate else text)
            self._text, self._at_s = text, now_s


def what_is_left(found: dict[str, Any]) -> str:
    """Say what is not in the store yet."""
    from amlmount.config.units import counted

    trouble = f" ({found['trouble']})" if found["trouble"] else ""
    files = counted(found["dirty_files"], "file")
    return f"{counted(found['dirty_bytes'], 'byte')} of {files} are not in the store yet{trouble}"


def drain_before_down(client: "DaemonClient", names: list[str] | None, timeout_s: float, talk: Console) -> None:
    """Have mounts that are to go send what they have. Raises BusyError for one that cannot."""
    from amlmount.errors import AmlmountError, BusyError
    from amlmount.states import SERVING

    for status in client.status(names):
        if status.state not in SERVING or status.read_only or status.engine != "python":
            continue
        try:
            found = drain(client, status.name, timeout_s, talk)
        except AmlmountError as error:  # a mount that does not answer has to go all the same; nothing is lost by it
            talk.note(f"{status.name}: {error.message}")
            continue
        if not found["is_done"]:
            raise BusyError(
                f"cannot take down '{status.name}': {what_is_left(found)}",
                hint="wait and try again; with --discard-dirty it goes, and what is left is sent at the next `up`",
            )
