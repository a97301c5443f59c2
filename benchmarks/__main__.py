"""Run the benchmarks and print the README's table: `python -m benchmarks [--trials N] [--json FILE]`.

`python -m benchmarks reading` and `python -m benchmarks writing` work against a store on a network, beside peers.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import footprint, help_time, small_files, workload
from benchmarks.machine import heading
from benchmarks.pairs import Line


def lines(folder: Path, trials: int) -> Iterator[Line]:
    """Measure everything, one after the other."""
    container = workload.make_small(folder / "container")
    yield from small_files.listing_lines(container, trials)
    yield from small_files.epoch_lines(container, trials)
    yield from small_files.front_lines(container, trials)
    yield help_time.help_line(trials)
    yield from footprint.footprint_lines(container)


def main() -> None:
    """Print the table as it grows; exit 1 if a target is missed."""
    if sys.argv[1:2] == ["writing"]:
        from benchmarks import writing

        sys.exit(writing.main(sys.argv[2:]))
    if sys.argv[1:2] == ["reading"]:
        from benchmarks import reading

        sys.exit(reading.main(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(
        f"{heading()}; medians of {args.trials}\n\n| work | target | median | spread | holds |\n|---|---|---|---|---|"
    )
    done = []
    with tempfile.TemporaryDirectory(prefix="amb-") as folder:
        for line in lines(Path(folder), args.trials):
            print(line.row(), flush=True)
            done.append(line)
    if args.json:
        args.json.write_text(json.dumps({"where": heading(), "lines": [dataclasses.asdict(x) for x in done]}, indent=1))
    sys.exit(0 if all(line.holds for line in done) else 1)


if __name__ == "__main__":
    main()
