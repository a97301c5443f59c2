"""The command line that `reading` and `writing` share: what is asked, where numbers are kept, what is printed."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import record, report
from benchmarks.machine import enter_own_namespace
from benchmarks.pairs import Line
from benchmarks.record import Record
from benchmarks.stub import WORK, CannotMeasure


def parser_for(name: str, doc: str | None, groups: Iterable[str], *, trials: int) -> argparse.ArgumentParser:
    """Return a parser of the options that both have."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=(doc or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=trials)
    parser.add_argument("--only", action="append", metavar="GROUP", choices=list(groups))
    parser.add_argument("--peer", action="append", metavar="NAME", help="only peers with this in their names")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the tables between the marks of this document")
    parser.add_argument("--report", action="store_true", help="measure nothing; needs --json")
    parser.add_argument("--tiny", action="store_true", help="little data, to see that everything runs")
    parser.add_argument("--folder", type=Path, default=WORK / name, help="on the disk that is to be measured")
    return parser


def run(
    name: str,
    words: Sequence[str],
    asked: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Record], None],
    markdown: Callable[[Record], str],
    lines: Callable[[Record], Iterable[Line]],
) -> int:
    """Measure, print, write; 1 if a target is missed or something is not there."""
    kept = record.load(asked.json) if asked.json else Record("", (), [])
    try:
        if not asked.report:
            enter_own_namespace([name, *words])
            measure(asked, kept)
    except CannotMeasure as error:
        print(error, file=sys.stderr)
        return 1
    text = markdown(kept)
    print(text)
    if asked.docs:
        report.put_between_marks(asked.docs, text, name)
    return 0 if all(line.holds for line in lines(kept)) else 1
