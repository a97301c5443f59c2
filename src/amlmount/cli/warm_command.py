"""`amlmount cache warm`: read what will be needed before it is, through the mount, so with any engine.

Says how far it is: one line that changes on a terminal, a line now and then in a pipe, objects with -o jsonl.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amlmount.cli import launch
from amlmount.cli.output import Console, Format, Output, for_each, print_objects
from amlmount.cli.settings import complete_mount, console, parse_duration

if TYPE_CHECKING:
    from amlmount.cache.warming import FoundFile, Progress
    from amlmount.client import DaemonClient
    from amlmount.states import MountStatus

ASKED_AT_ONCE = 1000
ANSWER_S = 60.0
PLAIN_EVERY_S = 10.0
MAX_NAMED = 5


def warm(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The mount.", autocompletion=complete_mount)],
    glob: Annotated[str, typer.Argument(metavar="GLOB", help="Files below the mount, such as 'train/**'.")] = "**",
    since: Annotated[
        float | None, typer.Option(parser=parse_duration, metavar="TIME", help="Only what is younger: 7d, 12h.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="How many files are read at a time.")] = 16,
    output: Output = Format.TABLE,
) -> None:
    """Read files into the cache of a mount, in parallel.

    What is in the cache already is left alone, so a warm-up that was interrupted goes on where it was.
    """
    from amlmount.errors import DaemonUnreachableError

    mounts = launch.ask(ctx, lambda client: launch.mounts_called(client, name))
    client = launch.find_daemon(ctx)
    if mounts is None or client is None:
        raise DaemonUnreachableError(f"cannot warm '{name}': no daemon runs", hint=f"run: amlmount up {name}")
    talk = console(ctx)

    def warm_one(status: "MountStatus") -> None:
        _check_mounted(status.name, status.state)
        warmup = _WarmUp(client, status.name, status.target, talk, output)
        try:
            warmup.run(glob, since, jobs)
        except KeyboardInterrupt:
            warmup.line.end()
            talk.note("interrupted: what was read stays; the same command goes on from there")
            raise

    # Of an account each container is a mount, with a cache of its own.
    for_each(talk, mounts, "warm", warm_one)


class _WarmUp:
    """One run: find, leave out what is there, read the rest, say what came of it."""

    def __init__(self, client: "DaemonClient", name: str, target: str, talk: Console, output: Format) -> None:
        self._client = client
        self._name = name
        self._target = target
        self._output = output
        self.line = _Line(talk, name, output)

    def run(self, glob: str, since_s: float | None, jobs: int) -> None:
        """Raises AmlmountError, PartialError if some files could not be read."""
        from amlmount.cache.warming import Progress, read_files

        found = list(self._matching(glob, since_s))
        wanted = list(self._missing(found))
        total = sum(file.size_bytes for file in wanted)
        progress = Progress()
        begun = time.monotonic()
        for progress in read_files(self._target, [file.path for file in wanted], jobs=jobs) if wanted else ():
            self.line.show(progress, len(wanted), total, time.monotonic() - begun)
        self.line.end()
        self._tell(progress, len(found) - len(wanted), time.monotonic() - begun)

    def _matching(self, glob: str, since_s: float | None) -> "Iterator[FoundFile]":
        from amlmount.cache.warming import list_files
        from amlmount.vfs.globs import Glob

        shown, oldest = Glob(glob), 0.0 if since_s is None else time.time() - since_s
        for file in list_files(self._target):
            if shown.shows_file(file.path) and file.mtime_s >= oldest:
                yield file

    def _missing(self, found: "list[FoundFile]") -> "Iterator[FoundFile]":
        """Leave out what the mount says it has; an engine that cannot say is read through as a whole."""
        from amlmount.errors import AmlmountError

        for part in _batched(found):
            how = {"paths": [file.path for file in part]}
            try:
                missing = self._client.ask_cache(self._name, "cache_missing", how, timeout_s=ANSWER_S)["missing"]
            except AmlmountError:
                missing = range(len(part))
            yield from (part[index] for index in missing)

    def _tell(self, progress: "Progress", skipped: int, took_s: float) -> None:
        from amlmount.config.units import counted, rough_size
        from amlmount.errors import PartialError

        done = progress.files - len(progress.failed)
        if self._output is not Format.TABLE:
            result: dict[str, Any] = {"schema_version": 1, "name": self._name, "read": done, "bytes": progress.bytes}
            result |= {"skipped": skipped, "failed": len(progress.failed), "seconds": round(took_s, 3)}
            print_objects([result], self._output)
        else:
            self.line.say(
                f"{counted(done, 'file')} read ({rough_size(progress.bytes)}), {skipped:,} were there already"
            )
        if progress.failed:
            raise PartialError(
                f"cannot read {len(progress.failed)} of {counted(progress.files, 'file')} of '{self._name}'",
                hint="; ".join(f"{path}: {os.strerror(n).lower()}" for path, n in progress.failed[:MAX_NAMED]),
            )


class _Line:
    """Progress as it is shown: one line rewritten on a terminal, else lines now and then, or JSON objects."""

    def __init__(self, talk: Console, name: str, output: Format) -> None:
        self._talk = talk
        self._name = name
        self._output = output
        self._is_open = False
        self._told_at = time.monotonic()

    def show(self, progress: "Progress", files: int, size_bytes: int, took_s: float) -> None:
        """Show how far it is."""
        if self._output is Format.JSONL:
            far = {"files": progress.files, "bytes": progress.bytes, "of_files": files}
            typer.echo(json.dumps({"schema_version": 1, "name": self._name, "progress": far}))
        elif self._talk.quiet or self._output is Format.JSON:
            return
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{self._text(progress, files, size_bytes, took_s)}")
            sys.stderr.flush()
            self._is_open = True
        elif time.monotonic() - self._told_at > PLAIN_EVERY_S:
            self._told_at = time.monotonic()
            self._talk.note(self._text(progress, files, size_bytes, took_s))

    def say(self, text: str) -> None:
        """Say something on a line of its own."""
        self.end()
        self._talk.note(f"{self._name}: {text}")

    def end(self) -> None:
        """Leave the line that was rewritten."""
        if self._is_open:
            sys.stderr.write("\n")
            self._is_open = False

    def _text(self, progress: "Progress", files: int, size_bytes: int, took_s: float) -> str:
        from amlmount.config.units import counted, rough_size

        rate = progress.bytes / took_s if took_s > 0 else 0.0
        left = f", {(size_bytes - progress.bytes) / rate:.0f} s left" if rate and progress.bytes < size_bytes else ""
        amount = f"{rough_size(progress.bytes)} of {rough_size(size_bytes)}"
        return (
            f"{self._name}: {progress.files:,} of {counted(files, 'file')}, {amount}, {rough_size(int(rate))}/s{left}"
        )


def _batched(found: "list[FoundFile]") -> "Iterator[tuple[FoundFile, ...]]":
    for start in range(0, len(found), ASKED_AT_ONCE):
        yield tuple(found[start : start + ASKED_AT_ONCE])


def _check_mounted(name: str, state: str) -> None:
    from amlmount.errors import AmlmountError
    from amlmount.states import SERVING

    if state not in SERVING:
        raise AmlmountError(f"cannot warm '{name}': it is {state}", hint=f"run: amlmount up {name}")
