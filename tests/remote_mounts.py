"""Real mounts of the fake blob service, served by real workers: what the tests of reading share."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from amlmount.mounts.target import prepare_target
from amlmount.session.source import resolve_source
from amlmount.session.tied import WorkerHost
from fakeblob import FakeBlobService
from sandbox import all_processes, command_line, descends

MIB = 1 << 20


def fill(fake: FakeBlobService, content: dict[str, bytes], container: str = "data") -> None:
    """Put blobs into the service without asking it."""
    with fake.lock:
        for name, data in content.items():
            fake.put(container, name, data)


def gets(fake: FakeBlobService) -> list[str]:
    """Return the paths of all blobs that were asked for so far, one for each request."""
    with fake.lock:
        return [asked.path for asked in fake.asked if asked.method == "GET" and not asked.is_list]


@contextlib.contextmanager
def mounted(
    definition: dict[str, Any], target: str, profile: str, cache_dir: str | None = None, **policy: Any
) -> Iterator[str]:
    """Mount a store with a worker of its own and yield the mount point. Without `cache_dir` nothing is kept on disk."""
    spec = resolve_source(definition, target, read_only=True, profile=profile, engine="python")
    changed = spec.policy.model_copy(update=policy)
    host = WorkerHost()
    host.start(spec.model_copy(update={"cache_dir": cache_dir, "policy": changed}), prepare_target(target), 30)
    try:
        yield target
    finally:
        host.stop()


def worker_pid() -> int:
    """Return the one worker that this process has started."""
    found = [pid for pid, _ in all_processes() if pid != os.getpid() and descends(pid, os.getpid())]
    (pid,) = [pid for pid in found if "amlmount.worker" in command_line(pid)]
    return pid


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process for a while: whoever gets an answer meanwhile got it from the kernel."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
