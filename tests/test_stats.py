"""What is counted, and who is told: figures of mounts for people and for Prometheus, without waiting for a mount."""

import asyncio
import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from amlmount.api.figures import MetricsListener
from amlmount.client import DaemonClient
from amlmount.config.fields import parse_address, split_address
from amlmount.errors import WaitTimeoutError
from amlmount.metrics import Timings, table
from amlmount.metrics.reference import render
from amlmount.metrics.table import METRICS
from amlmount.metrics.text import Samples
from amlmount.metrics.timings import Spread, total
from amlmount.states.stats import EngineStats
from amlmount.supervisor import Exposition, Measurer, RecordStore
from daemons import Pair, make_pair, poll
from fake_engine import FakeWorld
from sandbox import Sandbox
from world import World

SAMPLE = re.compile(r"^(amlmount_\w+?)(_bucket|_sum|_count)?(?:\{([^{}]*)\})? (-?[\d.e+-]+|\+Inf)$")


@pytest.fixture
def pair(world: World) -> Pair:
    return make_pair(world)


# What is told only of mounts that a process serves; a test with real ones sees them.
OF_REAL_MOUNTS = {f"amlmount_mount_{name}" for name in ("condition", "memory_bytes", "cpu_seconds_total")}


def spread(*microseconds: int) -> Spread:
    timings = Timings()
    for one in microseconds:
        timings.note(one * 1000)
    return Spread.from_json(json.loads(json.dumps(timings.to_json())))


def test_timings_are_counted_by_powers_of_two() -> None:
    found = spread(0, 1, 3, 100, 100, 1_000_000, 10**12)
    assert found.count == 7 and found.below(0) == 1 and found.below(12) == 3 and found.below(17) == 5
    assert found.quantile_s(0.5) == 2**17 / 1e9 and found.quantile_s(0.8) == 2**30 / 1e9
    assert spread().quantile_s(0.5) is None and spread().mean_s is None and spread(2, 4).mean_s == 3e-6
    assert total([spread(1), spread(1, 300)]).counts == spread(1, 1, 300).counts
    assert spread(1, 2, 300).minus(spread(2)).count == 2
    assert spread(1).minus(spread(1, 2)).count == 1, "another process began to count anew"


def test_every_metric_has_a_unit_in_its_name_and_the_page_is_up_to_date() -> None:
    for name, metric in METRICS.items():
        ending = f"_{metric.unit}" if metric.unit else ""
        assert name.removesuffix("_total").endswith(ending) and name.endswith("_total") == (metric.type == "counter")
        assert metric.help.endswith(".") and "|" not in metric.help
    text = (Path(__file__).parents[1] / "docs/metrics.md").read_text()
    assert text == render(), "regenerate: python -m amlmount.metrics.reference > docs/metrics.md"


def test_labels_are_escaped_and_must_be_those_of_the_metric() -> None:
    samples = Samples()
    samples.add(table.MEMORY, 7, 'a"\\\n{}')
    samples.add(table.MEMORY, None, "unknown")
    assert samples.text().splitlines()[2:] == ['amlmount_mount_memory_bytes{mount="a\\"\\\\\\n{}"} 7']
    with pytest.raises(ValueError, match="zip"):
        samples.add(table.MEMORY, 7, "a", "b")


def answer() -> dict[str, Any]:
    waits = {"read": {"counts": [0, 3], "seconds": 0.1, "failed": 0}}
    nothing = {"counts": [], "seconds": 0.0, "failed": 2}
    store = {"reads": waits["read"], "listings": nothing, "uploads": nothing, "read_bytes": 99}
    cache = {"hits": 9, "misses": 1, "used_bytes": 50, "limit_bytes": 100}
    unsent = {"files": 1, "bytes": 11, "oldest_s": 2.5}
    counts = {"requests": {"read": 10}, "failures": 1, "read_bytes": 70, "written_bytes": 7}
    return counts | {"waits": waits, "store": store, "cache": cache, "unsent": unsent}


def test_what_cannot_be_listened_at_is_said_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    async def text() -> str:
        return "amlmount_x 1\n"

    async def scenario() -> None:
        listener = MetricsListener(text)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            await listener.follow(("127.0.0.1", taken.getsockname()[1]))
            await listener.follow(("192.0.2.1", 1))
        port = free_port()
        await listener.follow(("127.0.0.1", port))
        assert await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/metrics") == "amlmount_x 1\n"
        await listener.follow(None)
        assert not await asyncio.to_thread(answers, f"http://127.0.0.1:{port}/metrics")

    asyncio.run(scenario())
    assert caplog.text.count("cannot serve metrics at ") == 2


@pytest.mark.parametrize("address", ["9464", 9464, "127.0.0.1", ":9464", "127.0.0.1:99999", "a b:1", None])
def test_an_address_has_a_host_and_a_port(address: object) -> None:
    with pytest.raises(ValueError, match="is not an address and a port; write it as"):
        parse_address(address)
    assert split_address(parse_address("[::1]:9464")) == ("::1", 9464)
    assert split_address(parse_address("localhost:1")) == ("localhost", 1)


class Talking(FakeWorld):
    """A world whose engine answers `stats`, unless a mount is in `silent`."""

    def prepare(self) -> None:
        self.silent: set[str] = set()
        self.questions = 0

        async def ask(running: Any, what: str, how: Any, *, timeout_s: float) -> Any:
            self.questions += 1
            if running.spec.name in self.silent:
                await asyncio.sleep(timeout_s)
                raise WaitTimeoutError("cannot get an answer")
            return answer()

        self.engine.ask = ask  # type: ignore[attr-defined]


def test_a_mount_that_hangs_is_shown_as_it_was_and_asked_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = Talking(RecordStore(str(tmp_path / "mounts")))
        world.prepare()
        measurer = Measurer(world.supervisor, {"a": 5}.get)
        exposition = Exposition(world.supervisor, measurer, "1.2")
        await world.supervisor.up(None, wait=True, timeout_s=5)
        first = {one.name: one for one in await measurer.measure(within_s=1)}
        assert first["a"].counted == EngineStats.from_json(answer()) and first["a"].unsent_bytes == 11
        assert world.questions == 2
        world.silent.add("a")
        begun = time.monotonic()
        for _ in range(3):
            text = await exposition.text() if _ == 2 else ""
            found = {one.name: one for one in await measurer.measure(within_s=0.02)}
        assert world.questions == 2 + 1 + 4, "one question is open, no more"
        assert time.monotonic() - begun < 3 and found["a"].counted == first["a"].counted
        assert found["a"].age_s is not None and found["b"].age_s is not None and found["a"].age_s > found["b"].age_s
        assert found["a"].is_stale and not found["b"].is_stale and not first["a"].is_stale
        assert 'amlmount_build_info{version="1.2"} 1' in text
        assert 'amlmount_requests_total{mount="a",operation="read"} 10' in text
        assert 'amlmount_mount_figures_age_seconds{mount="a"}' in text
        told = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
        assert told == set(METRICS) - OF_REAL_MOUNTS, "each line of the page is of something that is told"
        await world.supervisor.down(None, lazy=False, timeout_s=5)
        assert await measurer.measure(within_s=1) == []
        measurer.close()

    asyncio.run(scenario())


def samples(text: str) -> dict[str, float]:
    """Read what Prometheus reads, strictly: every sample has its metric announced, and no line is anything else."""
    found, announced = {}, set()
    for line in text.splitlines():
        if line.startswith("# "):
            announced.add(line.split()[2])
            continue
        match = SAMPLE.match(line)
        assert match, line
        assert match[1] in announced and match[1] in METRICS
        labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[3] or ""))
        assert set(labels) - {"le"} == set(METRICS[match[1]].labels)
        found[line.rpartition(" ")[0]] = float(match[4])
    return found


def test_figures_of_real_mounts(pair: Pair, sandbox: Sandbox) -> None:
    world, port = pair.world, free_port()
    with open(world.config, "a") as file:
        file.write(f"metrics: {{listen: '127.0.0.1:{port}'}}\n")
    world.cli("up")
    assert pair.read("red") == "red"
    [red] = world.cli_json("stats", "red")
    counted = red["counted"]
    assert counted["read_bytes"] == 3 and counted["requests"]["read"] == 1 and counted["store"]["read_bytes"] == 3
    assert sum(counted["store"]["reads"]["counts"]) == 1 and counted["store"]["listings"]["failed"] == 0
    assert red["memory_bytes"] > 1e6 and red["cpu_s"] >= 0 and red["age_s"] < 5
    lines = world.cli("stats", "red").stdout.splitlines()
    assert lines[1].split()[:2] == ["red", "python"] and any(line.startswith("store: read ") for line in lines)
    assert world.cli("stats", "nobody").returncode == 3
    url = f"http://127.0.0.1:{port}"
    found = samples(fetch(f"{url}/metrics"))
    assert found['amlmount_read_bytes_total{mount="red"}'] == 3
    assert found['amlmount_store_request_seconds_count{mount="red",request="read"}'] == 1
    assert found['amlmount_mount_condition{mount="red",condition="Mounted"}'] == 1
    assert {name.partition("{")[0] for name in found} >= OF_REAL_MOUNTS
    on_socket = samples(DaemonClient(f"{world.runtime_dir}/amlmount.sock").metrics())
    assert on_socket.keys() == found.keys() and on_socket['amlmount_read_bytes_total{mount="red"}'] == 3
    for path in ("/v1/status", "/v1/stats", "/"):
        with pytest.raises(urllib.error.HTTPError, match="404"), closing(urllib.request.urlopen(url + path)):
            pass
    with stopped(red["pid"]):
        begun = time.monotonic()
        stale = samples(fetch(f"{url}/metrics"))
        shown = pair.mount("red")
        assert time.monotonic() - begun < 4 and shown["name"] == "red"
        assert stale['amlmount_read_bytes_total{mount="red"}'] == 3
        assert [stale[f'amlmount_mount_figures_stale{{mount="{name}"}}'] for name in ("red", "blue")] == [1, 0]
    make_unheard(pair)
    poll(lambda: not answers(f"{url}/metrics"), "it listens on")
    world.cli("down")
    assert world.cli("stats").stdout.count("\n") == 1
    pair.assert_as_before()


def make_unheard(pair: Pair) -> None:
    """Take the TCP address out of the configuration."""
    text = Path(pair.world.config).read_text()
    Path(pair.world.config).write_text("".join(line for line in text.splitlines(True) if "metrics:" not in line))
    assert pair.world.cli("reload").returncode == 0


def test_watching_shows_rates_until_it_is_ended(pair: Pair) -> None:
    pair.world.cli("up", "red")
    with pair.start("stats", "--watch", "--every", "200ms") as watcher:
        try:
            assert watcher.stdout is not None
            lines = [watcher.stdout.readline() for _ in range(4)]
            assert "OPS " in lines[0] and "OPS/s" in lines[2] and "\x1b" not in "".join(lines)
            watcher.send_signal(signal.SIGINT)
            _, errors = watcher.communicate(timeout=10)
            assert watcher.returncode == 130 and "Traceback" not in errors
        finally:
            watcher.kill()
    assert pair.world.cli("stats", "--watch", "-o", "json").returncode == 2
    pair.world.cli("down")


def stopped(pid: int) -> "Any":
    from contextlib import contextmanager

    @contextmanager
    def stop() -> Iterator[None]:
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    return stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def fetch(url: str) -> str:
    with closing(urllib.request.urlopen(url, timeout=10)) as answered:
        assert answered.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(answered.read().decode())


def answers(url: str) -> bool:
    try:
        fetch(url)
    except OSError:
        return False
    return True
