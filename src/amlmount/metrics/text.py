"""Samples as the text that Prometheus reads (exposition format 0.0.4)."""

from collections.abc import Mapping

from amlmount.metrics.table import METRICS, Metric
from amlmount.metrics.timings import Spread

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKET_STEPS = range(18, 36, 2)  # upper bounds from 262 microseconds to 17.2 seconds, each four times the one before


class Samples:
    """Takes samples in any order and writes them metric by metric, in the order of the table."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {name: [] for name in METRICS}

    def add(self, metric: Metric, value: float | None, *labels: str) -> None:
        """Add one sample; nothing if the value is unknown. Raises ValueError for labels that the metric has not."""
        if value is not None:
            self._put(metric, "", _pairs(metric, labels), value)

    def add_spread(self, metric: Metric, spread: Spread, *labels: str) -> None:
        """Add a histogram."""
        pairs = _pairs(metric, labels)
        for step in BUCKET_STEPS:
            self._put(metric, "_bucket", pairs | {"le": f"{2**step / 1e9:.6g}"}, spread.below(step))
        self._put(metric, "_bucket", pairs | {"le": "+Inf"}, spread.count)
        self._put(metric, "_sum", pairs, spread.seconds)
        self._put(metric, "_count", pairs, spread.count)

    def text(self) -> str:
        """Return all of it."""
        parts = []
        for name, lines in self._lines.items():
            if lines:
                parts += [
                    f"# HELP {name} {_escaped(METRICS[name].help)}",
                    f"# TYPE {name} {METRICS[name].type}",
                    *lines,
                ]
        return "\n".join(parts) + "\n"

    def _put(self, metric: Metric, ending: str, pairs: Mapping[str, str], value: float) -> None:
        labels = ",".join(f'{key}="{_escaped(text, quotes=True)}"' for key, text in pairs.items())
        self._lines[metric.name].append(f"{metric.name}{ending}{f'{{{labels}}}' if labels else ''} {value!r}")


def _pairs(metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(metric.labels, labels, strict=True))


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
