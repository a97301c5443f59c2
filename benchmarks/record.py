"""The raw numbers on disk: one JSON file, a sample a line, so that runs of single groups can be put together."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.sampling import Sample

DEFAULTS = asdict(Sample("", "", 0))


@dataclass
class Record:
    """Where it was measured, what could not be, and every sample."""

    where: str
    missing: Sequence[str]
    samples: list[Sample]

    def replace(self, samples: Sequence[Sample]) -> None:
        """Put new samples in the place of all older ones of the same works."""
        works = {sample.work for sample in samples}
        self.samples = [sample for sample in self.samples if sample.work not in works] + list(samples)

    def save(self, path: Path) -> None:
        """Write it; what is as by default is left out."""
        rows = [{key: value for key, value in asdict(s).items() if value != DEFAULTS[key]} for s in self.samples]
        lines = ",\n".join(json.dumps(row) for row in rows)
        head = f'{{"where": {json.dumps(self.where)},\n"missing": {json.dumps(list(self.missing))}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{head},\n"samples": [\n{lines}\n]}}\n')


def load(path: Path) -> Record:
    """Read a file that `save` wrote; nothing there is an empty record."""
    if not path.exists():
        return Record("", (), [])
    data = json.loads(path.read_text())
    return Record(data["where"], data["missing"], [Sample(**(DEFAULTS | row)) for row in data["samples"]])
