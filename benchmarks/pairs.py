"""Two ways of the same work in turn, trial by trial: the ratio of each pair, its median and its spread."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

READER = Path(__file__).with_name("reader.py")


@dataclass(frozen=True)
class Line:
    """One line of the table. `ratios` are speeds relative to the yardstick (1.0 = as fast), or plain numbers."""

    name: str
    target: str
    ratios: tuple[float, ...]
    holds: bool
    unit: str = "x"

    @property
    def median(self) -> float:
        """Return the middle one."""
        return statistics.median(self.ratios)

    def row(self) -> str:
        """Return the Markdown row."""
        spread = f"{min(self.ratios):.2f}-{max(self.ratios):.2f}" if len(self.ratios) > 1 else ""
        verdict = "yes" if self.holds else "**no**"
        return f"| {self.name} | {self.target} | {self.median:.2f} {self.unit} | {spread} | {verdict} |"


def read_in_child(work: str, folder: str | Path, timeout_s: float = 300) -> float:
    """Run reader.py and return its own seconds."""
    done = subprocess.run(
        [sys.executable, str(READER), work, str(folder)], capture_output=True, text=True, check=True, timeout=timeout_s
    )
    return float(json.loads(done.stdout)["seconds"])


def paired(ours: Callable[[], float], yardstick: Callable[[], float], trials: int) -> tuple[float, ...]:
    """Return yardstick seconds / our seconds, one for each trial, the two run one after the other."""
    found = []
    for trial in range(trials):
        if trial % 2:
            mine = ours()
            theirs = yardstick()
        else:
            theirs = yardstick()
            mine = ours()
        found.append(theirs / mine)
    return tuple(found)


def at_least(name: str, ratios: tuple[float, ...], floor: float | None) -> Line:
    """Judge speeds: the median must reach the floor; without a floor there is nothing to miss."""
    target = "-" if floor is None else f">= {floor}x"
    return Line(name, target, ratios, holds=floor is None or statistics.median(ratios) >= floor)


def at_most(name: str, numbers: tuple[float, ...], ceiling: float, unit: str) -> Line:
    """Judge costs: the median must stay under the ceiling."""
    return Line(name, f"<= {ceiling:g} {unit}", numbers, holds=statistics.median(numbers) <= ceiling, unit=unit)
