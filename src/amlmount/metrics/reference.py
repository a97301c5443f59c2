"""docs/metrics.md, made from the table: `python -m amlmount.metrics.reference > docs/metrics.md`."""

from amlmount.metrics.table import METRICS, Metric

HEAD = """\
# Metrics

<!-- made by `python -m amlmount.metrics.reference`; a test compares -->

What Prometheus can read of a running daemon. On its socket, for whoever may use it:

```sh
curl --unix-socket "${XDG_RUNTIME_DIR:-/run}/amlmount/amlmount.sock" http://amlmount/metrics
```

By TCP only if the configuration says so; nothing else is served there, nobody is asked who they are, and names of
mounts and their targets can be read (never a secret, never a file's name):

```yaml
metrics: {listen: 127.0.0.1:9464}
```

The same figures for people: `amlmount stats`. Asking never waits for a mount that hangs: engines that do not answer
within a second are marked `amlmount_mount_figures_stale`, and what they said last is shown with its age. Counters begin
anew with each process that serves a mount. blobfuse2 counts nothing that could be had: of its mounts there are state,
process and cache.

| metric | type | labels | meaning |
| --- | --- | --- | --- |
"""


def render() -> str:
    """Return the document."""
    return HEAD + "".join(_row(metric) for metric in METRICS.values())


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
    return f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |\n"


if __name__ == "__main__":
    print(render(), end="")
