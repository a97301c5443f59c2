"""All metrics of a daemon as samples: what is known of its mounts, their figures, and itself.

Names and meanings stand in `metrics.table`.
"""

import os
from collections import Counter
from collections.abc import Sequence

from amlmount.events import Event
from amlmount.metrics import table
from amlmount.metrics.text import Samples
from amlmount.states import MountState, MountStatus
from amlmount.states.stats import EngineStats, MountStats
from amlmount.supervisor.measuring import Measurer, process_use
from amlmount.supervisor.supervise import Supervisor

ANSWER_S = 1.0
TRUTHS = {"True": 1, "False": 0}


class Exposition:
    """Makes the text of all metrics. It counts events from when it is made."""

    def __init__(self, supervisor: Supervisor, measurer: Measurer, version: str) -> None:
        self._supervisor = supervisor
        self._measurer = measurer
        self._version = version
        self._events: Counter[str] = Counter()
        supervisor.events.observe(self._count)

    async def text(self) -> str:
        """Return what Prometheus reads, after about a second at most."""
        stats = await self._measurer.measure(within_s=ANSWER_S)
        samples = Samples()
        self._add_daemon(samples)
        _add_states(samples, self._supervisor.status())
        for one in stats:
            _add_figures(samples, one)
        return samples.text()

    def _count(self, event: Event) -> None:
        self._events[event.kind] += 1

    def _add_daemon(self, samples: Samples) -> None:
        samples.add(table.INFO, 1, self._version)
        cpu_s, memory_bytes = process_use(os.getpid())
        samples.add(table.DAEMON_CPU, cpu_s)
        samples.add(table.DAEMON_MEMORY, memory_bytes)
        for kind, count in sorted(self._events.items()):
            samples.add(table.EVENTS, count, kind)


def _add_states(samples: Samples, mounts: Sequence[MountStatus]) -> None:
    for status in mounts:
        for state in MountState:
            labels = (status.name, state.value, status.target, status.engine or "")
            samples.add(table.STATE, int(state is status.state), *labels)
        samples.add(table.SINCE, status.since or None, status.name)
        samples.add(table.RESTARTS, status.restarts, status.name)
        for condition in status.conditions:
            samples.add(table.CONDITION, TRUTHS.get(condition.status, -1), status.name, condition.type)


def _add_figures(samples: Samples, stats: MountStats) -> None:
    samples.add(table.CPU, stats.cpu_s, stats.name)
    samples.add(table.MEMORY, stats.memory_bytes, stats.name)
    samples.add(table.CACHE_USED, stats.cache_bytes, stats.name)
    if stats.engine == "python":
        samples.add(table.STALE, int(stats.is_stale), stats.name)
        samples.add(table.AGE, stats.age_s, stats.name)
    if (counted := stats.counted) is not None:
        _add_requests(samples, stats.name, counted)
        _add_store(samples, stats.name, counted)


def _add_requests(samples: Samples, name: str, counted: EngineStats) -> None:
    for operation, count in sorted(counted.requests.items()):
        samples.add(table.REQUESTS, count, name, operation)
    for operation, spread in sorted(counted.waits.items()):
        samples.add_spread(table.WAITS, spread, name, operation)
    samples.add(table.FAILURES, counted.failures, name)
    samples.add(table.READ_BYTES, counted.read_bytes, name)
    samples.add(table.WRITTEN_BYTES, counted.written_bytes, name)


def _add_store(samples: Samples, name: str, counted: EngineStats) -> None:
    store = counted.store
    for request, spread in (("read", store.reads), ("list", store.listings), ("upload", store.uploads)):
        samples.add_spread(table.STORE_SECONDS, spread, name, request)
        samples.add(table.STORE_FAILURES, spread.failed, name, request)
    samples.add(table.STORE_BYTES, store.read_bytes, name)
    cache, unsent = counted.cache or {}, counted.unsent or {}
    samples.add(table.HITS, cache.get("hits"), name)
    samples.add(table.MISSES, cache.get("misses"), name)
    samples.add(table.CACHE_LIMIT, cache.get("limit_bytes"), name)
    samples.add(table.UNSENT_BYTES, unsent.get("bytes"), name)
    samples.add(table.UNSENT_FILES, unsent.get("files"), name)
    samples.add(table.UNSENT_AGE, unsent.get("oldest_s"), name)
