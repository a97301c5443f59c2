"""The stand-in for the store (storestub, in Go): built when needed, run as a process, asked what was asked of it."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".work"
SOURCE = Path(__file__).with_name("storestub")
ACCOUNT = "devstoreaccount1"
STOP_TIMEOUT_S = 10


class CannotMeasure(Exception):
    """Something is missing without which there is nothing to measure; the text says what to do."""


@dataclass(frozen=True)
class Served:
    """What a store was asked for since it was last asked about it. `requests` by operation."""

    requests: dict[str, int]
    read_bytes: int
    sent_bytes: int = 0

    @property
    def total(self) -> int:
        """Return the number of requests of every kind."""
        return sum(self.requests.values())


@dataclass(frozen=True)
class Stub:
    """A running stand-in."""

    port: int
    pid: int

    @property
    def endpoint(self) -> str:
        """Return the account's address."""
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def served(self) -> Served:
        """Return what was asked of it, and count anew from here."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/__stats", timeout=30) as reply:
            counts = json.load(reply)
        requests = {operation: int(count["requests"]) for operation, count in counts.items()}
        sent = sum(int(counts.get(operation, {}).get("bytes", 0)) for operation in ("put", "put block"))
        return Served(requests, int(counts.get("get", {}).get("bytes", 0)), sent)


def build_stub() -> Path:
    """Compile storestub into .work and return the program. Raises CannotMeasure without a Go compiler."""
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        raise CannotMeasure("cannot build the stand-in for the store: there is no `go`; install Go >= 1.21 (golang-go)")
    WORK.mkdir(exist_ok=True)
    program = WORK / "storestub"
    done = subprocess.run([go, "build", "-o", program, "."], cwd=SOURCE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMeasure(f"cannot build the stand-in for the store:\n{done.stderr}")
    return program


@contextmanager
def running_stub(program: Path, options: Sequence[str], placement: Sequence[str]) -> Iterator[Stub]:
    """Run it until the end of the block; `placement` is a command line that starts another one on chosen CPUs."""
    process = subprocess.Popen([*placement, str(program), *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise CannotMeasure(f"the stand-in for the store did not start: {line!r}")
        yield Stub(int(line.split()[-1]), process.pid)
    finally:
        process.kill()
        process.communicate(timeout=STOP_TIMEOUT_S)
