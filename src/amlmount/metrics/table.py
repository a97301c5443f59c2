"""Every metric there is: name, unit, labels, meaning. docs/metrics.md and what Prometheus reads are made from this.

Names end in their unit, and counters in `_total`, as Prometheus asks for.
"""

from dataclasses import dataclass
from typing import Literal

Type = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `unit` is empty for plain numbers."""

    name: str
    type: Type
    unit: str
    help: str
    labels: tuple[str, ...] = ("mount",)


METRICS: dict[str, Metric] = {}


def _add(name: str, type_: Type, unit: str, text: str, *labels: str, of_daemon: bool = False) -> Metric:
    metric = Metric(f"amlmount_{name}", type_, unit, text, labels if of_daemon else ("mount", *labels))
    METRICS[metric.name] = metric
    return metric


def _counter(name: str, unit: str, text: str, *labels: str) -> Metric:
    return _add(name, "counter", unit, text, *labels)


def _gauge(name: str, unit: str, text: str, *labels: str) -> Metric:
    return _add(name, "gauge", unit, text, *labels)


INFO = _add("build_info", "gauge", "", "Always 1; the version is a label.", "version", of_daemon=True)
DAEMON_CPU = _add("daemon_cpu_seconds_total", "counter", "seconds", "CPU time of the daemon.", of_daemon=True)
DAEMON_MEMORY = _add("daemon_memory_bytes", "gauge", "bytes", "Resident memory of the daemon.", of_daemon=True)
EVENTS = _add(
    "events_total",
    "counter",
    "",
    "Events since the daemon began, by kind (docs/operations.md).",
    "type",
    of_daemon=True,
)
STATE = _gauge("mount_state", "", "1 for the state that a mount is in, 0 for the others.", "state", "target", "engine")
SINCE = _gauge("mount_state_since_seconds", "seconds", "When that state began, in seconds since 1970.")
RESTARTS = _gauge("mount_restarts", "", "How often its engine died since it was last brought up.")
CONDITION = _gauge(
    "mount_condition", "", "1 if a condition is true, 0 if it is false, -1 if it is unknown.", "condition"
)
CPU = _counter("mount_cpu_seconds_total", "seconds", "CPU time of the process that serves it.")
MEMORY = _gauge("mount_memory_bytes", "bytes", "Resident memory of that process.")
CACHE_USED = _gauge("mount_cache_bytes", "bytes", "What its cache takes on disk.")
CACHE_LIMIT = _gauge("mount_cache_limit_bytes", "bytes", "What its cache may take now.")
STALE = _gauge(
    "mount_figures_stale",
    "",
    "1 if its engine did not answer this time: the figures below are its last ones, or missing.",
)
AGE = _gauge("mount_figures_age_seconds", "seconds", "How old the figures below are.")
REQUESTS = _counter("requests_total", "", "Requests of the kernel, by operation.", "operation")
FAILURES = _counter("request_failures_total", "", "Requests answered with an error that is nobody's wish.")
WAITS = _add(
    "request_wait_seconds",
    "histogram",
    "seconds",
    "Requests that had to wait for the store, and how long; all others are answered within microseconds.",
    "operation",
)
READ_BYTES = _counter(
    "read_bytes_total", "bytes", "Bytes read by requests; what the kernel has in its cache it reads itself."
)
WRITTEN_BYTES = _counter(
    "written_bytes_total",
    "bytes",
    "Bytes written by requests, and by which files grew that the kernel writes by itself.",
)
HITS = _counter("cache_hits_total", "", "Reads from a store of the network that were answered without waiting for it.")
MISSES = _counter("cache_misses_total", "", "Reads that had to wait for the store.")
STORE_SECONDS = _add(
    "store_request_seconds",
    "histogram",
    "seconds",
    "What was asked of the store and how long it took, retries included: `read` of bytes, `list` of a whole directory, "
    "`upload` of a file.",
    "request",
)
STORE_FAILURES = _counter("store_failures_total", "", "Of these, those that failed.", "request")
STORE_BYTES = _counter("store_read_bytes_total", "bytes", "Bytes read from the store, ahead of readers too.")
UNSENT_BYTES = _gauge("unsent_bytes", "bytes", "Written, and not in the store yet.")
UNSENT_FILES = _gauge("unsent_files", "", "Files of which the store does not have everything yet.")
UNSENT_AGE = _gauge("unsent_age_seconds", "seconds", "Age of the oldest of them.")
