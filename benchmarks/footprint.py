"""Memory of an idle daemon and of an idle worker with one local mount."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.pairs import Line, at_most

MB = 1 << 20


@contextmanager
def own_world(container: Path) -> Iterator[dict[str, str]]:
    """Yield an environment in which `amlmount` meets no other daemon, with one mount `data` up; take it down after."""
    with tempfile.TemporaryDirectory(prefix="amb-") as folder:
        config = Path(folder, "amlmount.yaml")
        config.write_text(
            f"stores: {{data: {{type: local, path: {container}}}}}\n"
            f"mounts: {{data: {{target: {folder}/mnt, source: data, profile: epochs}}}}\n"
        )
        names = ("RUNTIME_DIR", "STATE_DIR", "CACHE_ROOT")
        env = os.environ | {f"AMLMOUNT_{name}": f"{folder}/{name.lower()}" for name in names}
        env["AMLMOUNT_CONFIG"] = str(config)
        command(env, "up")
        try:
            yield env
        finally:
            command(env, "down")


def command(env: dict[str, str], *words: str) -> str:
    """Run an amlmount command and return what it printed."""
    argv = [sys.executable, "-m", "amlmount", *words]
    return subprocess.run(argv, env=env, check=True, capture_output=True, text=True, timeout=60).stdout


def footprint_lines(container: Path) -> Iterator[Line]:
    """Measure resident memory of both, once the first listing is done."""
    with own_world(container) as env:
        worker = psutil.Process(json.loads(command(env, "ps", "-o", "json"))[0]["pid"])
        daemon = worker.parent()
        if daemon is None:
            raise RuntimeError("the worker has no parent")
        for name, process in (("idle worker", worker), ("idle daemon", daemon)):
            yield at_most(f"{name}, resident", (process.memory_info().rss / MB,), 60, "MB")
