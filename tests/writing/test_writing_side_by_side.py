"""Random operations through the kernel and on a local directory side by side: alone, with kills, in bad weather.

Short in CI; CONTRIBUTING.md says how all random tests of writing are run in full.
"""

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from amlmount.stores.azure import open_azure
from fakeblob import Asked, FakeBlobService
from mounting import until
from writing import sidebyside
from writing.ground import content_of
from writing.lengths import FULL, KILLS, MOUNT_STEPS, SEEDS
from writing.test_writing_mount import Mount, mounted, writable_spec

pytestmark = [pytest.mark.root, pytest.mark.timeout(3000)]
RUN_S = 2000
TURNS = Path(__file__).with_name("turns")
CALM_REQUESTS = 8  # after a fault: one call that met nothing but faults would rightly fail


class Weather:
    """Something that goes on beside the operations; `storm` is called again and again until all is done."""

    def __init__(self, mount: Mount, service: FakeBlobService, seed: int) -> None:
        self.mount, self.service, self.random = mount, service, random.Random(seed)
        self.kills = self.calm_until = 0

    def calm(self) -> None:
        time.sleep(0.05)

    def kill(self) -> None:
        """Kill the worker in the middle of things, and let another one take over."""
        time.sleep(self.random.uniform(0.02, 0.5))
        if self.kills < KILLS:
            self.kills += 1
            self.mount.kill()
            self.mount.take_over()

    def fault(self) -> None:
        """Have the next request, or two, go wrong; each passes within the time that a close waits."""
        time.sleep(self.random.uniform(0.01, 0.1))
        if any(fault.times for fault in self.service._faults):
            self.calm_until = len(self.service.asked) + CALM_REQUESTS
        if len(self.service.asked) < self.calm_until:
            return
        kind = self.random.choice(
            ["reset", "done_reset", "busy", "error", "precondition", *(["stall"] if FULL else [])]
        )
        if kind == "precondition":
            self.service.fail("status", 1, when=_is_upload, status=412, code="ConditionNotMet")
        elif kind in ("busy", "error"):
            busy = {"status": 503, "code": "ServerBusy"} if kind == "busy" else {"status": 500}
            self.service.fail("status", self.random.randint(1, 2), **busy)
        else:
            self.service.fail(kind, 1)


def _is_upload(asked: Asked) -> bool:
    return asked.method == "PUT" and not asked.query.get("comp") and "x-ms-copy-source" not in asked.headers


@contextmanager
def going_on(storm: Callable[[], None]) -> Iterator[None]:
    stopping, failures = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            while not stopping.is_set():
                storm()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(60)
    assert not failures, failures


@pytest.fixture
def service() -> Iterator[FakeBlobService]:
    with closing(FakeBlobService()) as fake:
        yield fake


@pytest.mark.parametrize("durability", ["store", "journal"])
@pytest.mark.parametrize("weather", ["calm", "kill", "fault"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_mount_is_like_a_directory(
    service: FakeBlobService, mountpoint: str, tmp_path: Path, durability: str, weather: str, seed: int
) -> None:
    (tmp_path / "local").mkdir()
    spec = writable_spec(service.definition(), mountpoint, str(tmp_path / "state"), durability=durability)
    with mounted(spec.model_copy(update={"upload_timeout_s": 60.0})) as mount:
        storm = getattr(Weather(mount, service, seed), weather)
        with going_on(storm):
            run(mount, tmp_path / "local", seed)
        service._faults.clear()
        with closing(open_azure(service.definition())) as store:
            expected = digests({str(p.relative_to(tmp_path / "local")): p for p in files_of(tmp_path / "local")})
            with contextlib.suppress(AssertionError):
                until(lambda: stored(store) == expected, 30)
            assert stored(store) == expected


@pytest.mark.parametrize("durability", ["journal", *(["store"] if FULL else [])])
@pytest.mark.parametrize("weather", ["kill", "fault"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_so_it_is_whatever_the_order_of_threads(
    service: FakeBlobService,
    mountpoint: str,
    tmp_path: Path,
    durability: str,
    weather: str,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TURNS))
    test_a_mount_is_like_a_directory(service, mountpoint, tmp_path, durability, weather, seed)
    assert any("threads nap" in log.read_text() for log in tmp_path.glob("*.log"))


def run(mount: Mount, local: Path, seed: int) -> None:
    argv = [sys.executable, sidebyside.__file__, mount.path, str(local), str(seed), str(MOUNT_STEPS)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        try:
            _, said = running.communicate(timeout=RUN_S)
        except BaseException:
            mount.stop(lazy=True)  # or it would wait for ever, and we for it
            running.kill()
            raise
    assert running.returncode == 0, said


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def digests(paths: dict[str, Path]) -> dict[str, str]:
    return {name: sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


def stored(store: object) -> dict[str, str]:
    found = content_of(store)  # type: ignore[arg-type]
    head = store.head  # type: ignore[attr-defined]
    return {
        name: sha256(data).hexdigest()
        for name, data in found.items()
        if data or head(name).metadata.get("hdi_isfolder") != "true"
    }
