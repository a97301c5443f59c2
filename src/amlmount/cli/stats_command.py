"""`amlmount stats`: what mounts have done since they began, or with --watch what they do now.

Nobody waits for a mount that hangs: its last figures are shown, with their age.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amlmount.cli import launch
from amlmount.cli.output import Console, Format, Output, age, print_objects, print_table, size_text
from amlmount.cli.settings import complete_mount, console, locations, parse_duration

if TYPE_CHECKING:
    from amlmount.metrics.timings import Spread
    from amlmount.states.stats import MountStats

WITHIN_S = 1.0
CLEAR = "\x1b[H\x1b[2J"
Row = tuple[str, ...]


def stats(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Mounts; none means all.", autocompletion=complete_mount),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, as rates, until Ctrl-C.")] = False,
    every: Annotated[
        float, typer.Option("--every", parser=parse_duration, metavar="TIME", help="With --watch: this often.")
    ] = "2s",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Show what mounts have done: operations, bytes, latencies of the store, cache hits, CPU, memory.

    Counts begin with the process that serves a mount. blobfuse2 counts nothing: of its mounts there are process and
    cache. One NAME shows its operations one by one too. docs/metrics.md says what is counted.
    """
    from amlmount.errors import UsageError

    talk = console(ctx)
    if watch and output is Format.JSON:
        raise UsageError("cannot watch as JSON: a list has an end", hint="use -o jsonl: one object a line")
    if not watch:
        _print(talk, _asked(ctx, names), output, is_single=len(names or ()) == 1)
        return
    _watch(ctx, talk, names, every, output)


def _asked(ctx: typer.Context, names: list[str] | None) -> "list[MountStats]":
    found = launch.ask(ctx, lambda client: client.stats(names, within_s=WITHIN_S))
    if found is None:
        console(ctx).note(launch.LEFTOVERS if launch.has_leftovers(locations(ctx)) else launch.NOTHING_RUNS)
    return found or []


def _watch(ctx: typer.Context, talk: Console, names: list[str] | None, every_s: float, output: Format) -> None:
    before: dict[tuple[str, int], MountStats] = {}
    at = time.monotonic()
    for found in _again(ctx, names, every_s):
        now = time.monotonic()
        if output is not Format.TABLE:
            print_objects([one.to_json() for one in found], Format.JSONL)
        else:
            if sys.stdout.isatty():
                typer.echo(CLEAR, nl=False)
            elapsed_s = now - at if before else 1.0
            rows = [_row(one, before.get((one.name, one.pid)), elapsed_s) for one in found]
            print_table(talk, RATES if before else TOTALS, rows)
        before, at = {(one.name, one.pid): one for one in found}, now
        sys.stdout.flush()


def _again(ctx: typer.Context, names: list[str] | None, every_s: float) -> "Iterator[list[MountStats]]":
    while True:
        yield _asked(ctx, names)
        time.sleep(every_s)


def _print(talk: Console, found: "Sequence[MountStats]", output: Format, *, is_single: bool) -> None:
    if output is not Format.TABLE:
        print_objects([one.to_json() for one in found], output)
        return
    print_table(talk, TOTALS, [_row(one, None, 1.0) for one in found])
    for one in found if is_single and len(found) == 1 else ():
        if one.counted is not None:
            typer.echo("")
            print_table(talk, OPERATIONS, list(_operations(one)))


# --- tables --------------------------------------------------------------------------------------------------------

TOTALS = (
    *("NAME", "ENGINE", "OPS", "READ", "WRITTEN", "STORE READS", "STORE BYTES", "MEAN", "P99", "HITS", "CACHE"),
    *("UNSENT", "CPU", "MEMORY", "NOTE"),
)
RATES = tuple(
    {"OPS": "OPS/s", "READ": "READ/s", "WRITTEN": "WRITTEN/s", "CPU": "CPU %"}.get(name, name) for name in TOTALS
)
RATES = tuple({"STORE READS": "STORE READS/s", "STORE BYTES": "STORE BYTES/s"}.get(name, name) for name in RATES)
OPERATIONS = ("OPERATION", "COUNT", "WAITED", "MEAN", "P50", "P99", "FAILED")


def _row(now: "MountStats", before: "MountStats | None", elapsed_s: float) -> Row:
    """Write one mount: totals, or with `before` what came in `elapsed_s`, per second."""
    process = (_cpu(now, before, elapsed_s), size_text(now.memory_bytes))
    new, old = now.counted, before.counted if before is not None else None
    if new is None:
        why = "it counts nothing" if now.engine == "blobfuse2" else "it does not answer"
        return (now.name, now.engine, *["-"] * 8, size_text(now.cache_bytes), "-", *process, why)

    def since(key: str) -> int:
        value: int = getattr(new, key)
        return round((value - (getattr(old, key) if old else 0)) / elapsed_s)

    def requests(counts: Mapping[str, int]) -> int:
        return sum(counts.values())

    operations = round((requests(new.requests) - (requests(old.requests) if old else 0)) / elapsed_s)
    reads = new.store.reads.minus(old.store.reads) if old else new.store.reads
    store_bytes = round((new.store.read_bytes - (old.store.read_bytes if old else 0)) / elapsed_s)
    return (
        *(now.name, now.engine, f"{operations:,}", size_text(since("read_bytes")), size_text(since("written_bytes"))),
        *(
            f"{round(reads.count / elapsed_s):,}",
            size_text(store_bytes),
            _span(reads.mean_s),
            _span(reads.quantile_s(0.99)),
        ),
        *(
            _hits(new.cache, old.cache if old else None),
            size_text(now.cache_bytes),
            size_text(now.unsent_bytes),
            *process,
        ),
        f"figures of {age(now.age_s)} ago" if now.is_stale and now.age_s is not None else "",
    )


def _operations(stats: "MountStats") -> Iterator[Row]:
    counted = stats.counted
    assert counted is not None
    for name, count in sorted(counted.requests.items(), key=lambda pair: -pair[1]):
        waits = counted.waits.get(name)
        yield (name, f"{count:,}", f"{waits.count:,}" if waits else "0", *_times(waits), "-")
    store = counted.store
    for name, spread in (("read", store.reads), ("list", store.listings), ("upload", store.uploads)):
        yield (f"store: {name}", f"{spread.count:,}", "-", *_times(spread), f"{spread.failed:,}")


def _times(spread: "Spread | None") -> Row:
    if spread is None:
        return ("-", "-", "-")
    return (_span(spread.mean_s), _span(spread.quantile_s(0.5)), _span(spread.quantile_s(0.99)))


def _cpu(now: "MountStats", before: "MountStats | None", elapsed_s: float) -> str:
    if now.cpu_s is None:
        return "-"
    if before is None or before.cpu_s is None:
        return f"{now.cpu_s:.1f}s"
    return f"{(now.cpu_s - before.cpu_s) / elapsed_s * 100:.0f}%"


def _hits(now: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> str:
    if now is None:
        return "-"
    hits, misses = (now[key] - (before[key] if before else 0) for key in ("hits", "misses"))
    return f"{hits / (hits + misses):.0%}" if hits + misses else "-"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f}us"
    return f"{seconds * 1e3:.3g}ms" if seconds < 1 else f"{seconds:.3g}s"
