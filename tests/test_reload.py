"""`amlmount reload` and `restart NAME`: mounts are changed under readers, who notice nothing."""

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from amlmount.fuse.negotiate import CAP_VARIABLE
from daemons import CONFIG, Pair, poll
from readers import make_readable_pair, reading
from sandbox import command_line
from world import World


@pytest.fixture
def pair(world: World) -> Pair:
    return make_readable_pair(world)


def configure(pair: Pair, red: str = "", more: str = "") -> None:
    text = CONFIG.format(root=pair.world.root).replace("source: red}", f"source: red{red}}}")
    pair.world.write_config(text + more)


def changes(pair: Pair) -> list[tuple[str, str, list[str]]]:
    done = pair.world.cli_json("reload", "--dry-run")
    return [(change["name"], change["action"], change["fields"]) for change in done]


def assert_clean(tally: dict[str, Any], least: int = 50) -> None:
    assert not tally["errors"] and not tally["wrong"] and sum(tally["done"].values()) > least


@pytest.mark.root
def test_changes_under_readers(pair: Pair) -> None:
    """Files that are open are read to their end from the old mount, and its process ends by itself."""
    assert pair.world.cli("up").returncode == 0
    with reading(pair) as readers:
        for turn in range(5):
            old = pair.mount("red")["pid"]
            configure(pair, f", profile: {('fresh', 'epochs')[turn % 2]}")
            done = pair.world.cli("reload")
            assert done.returncode == 0, done.stderr
            new = pair.mount("red")
            assert new["pid"] != old and new["state"] == "mounted" and new["profile"] == ("fresh", "epochs")[turn % 2]
        assert len(pair.workers()) > 2, "the readers still have files open in the first"
        tally = readers.tally()
    assert_clean(tally)
    poll(lambda: len(pair.workers()) == 2, "old workers stay")
    assert pair.mount("red")["restarts"] == 0
    assert len([point for point in pair.world.mounts() if point == pair.target("red")]) == 1
    pair.world.cli("down")
    pair.assert_as_before()


@pytest.mark.root
def test_restart_of_a_name(pair: Pair) -> None:
    pair.world.cli("up")
    before = {name: pair.mount(name)["pid"] for name in ("red", "blue")}
    with reading(pair) as readers:
        for _ in range(3):
            assert pair.world.cli("restart", "red").returncode == 0
        tally = readers.tally()
    assert_clean(tally)
    assert pair.mount("red")["pid"] != before["red"] and pair.mount("blue")["pid"] == before["blue"]
    pair.world.cli("down")
    pair.assert_as_before()


@pytest.mark.root
def test_the_plan_is_what_is_done(pair: Pair) -> None:
    pair.world.cli("up")
    assert changes(pair) == []
    root = pair.world.root
    configure(pair, ", profile: fresh", f"  green: {{target: {root}/mnt/green, source: blue}}\n")
    text = Path(pair.world.config).read_text()
    pair.world.write_config("\n".join(line for line in text.splitlines() if not line.startswith("  blue: {target")))
    found = changes(pair)
    assert [(name, action) for name, action, _ in found] == [("red", "replace"), ("blue", "remove"), ("green", "add")]
    assert "policy.attr_timeout_s" in found[0][2] and "policy.profile" in found[0][2]
    assert pair.world.mounts() == [pair.target("blue"), pair.target("red")] or len(pair.world.mounts()) == 2
    table = pair.world.cli("reload", "--dry-run").stdout
    assert table.splitlines()[0].split() == ["NAME", "ACTION", "TARGET", "CHANGED", "NOTE"]
    assert pair.world.cli("reload").returncode == 0
    assert sorted(pair.world.mounts()) == [pair.target("green"), pair.target("red")]
    assert changes(pair) == []
    pair.world.cli("down")
    assert pair.world.cli("reload").returncode == 4, "no daemon"


def test_what_was_taken_down_stays_down(pair: Pair) -> None:
    pair.world.cli("up", "red")
    assert pair.world.cli("reload").returncode == 0
    assert pair.state("blue") == "unmounted"
    pair.world.cli("down")


def test_a_bad_configuration_changes_nothing(pair: Pair) -> None:
    pair.world.cli("up")
    pid = pair.mount("red")["pid"]
    pair.world.write_config("mounts: [\n")
    assert pair.world.cli("reload").returncode == 2
    assert pair.world.cli("restart", "red").returncode == 2
    assert pair.mount("red")["pid"] == pid
    pair.world.cli("down")


@pytest.mark.root
def test_a_new_definition_that_does_not_work_leaves_the_old_mount(pair: Pair) -> None:
    pair.world.cli("up")
    pid = pair.mount("red")["pid"]
    text = Path(pair.world.config).read_text().replace("path: ./red", "path: ./missing")
    pair.world.write_config(text)
    done = pair.world.cli("reload")
    assert done.returncode == 3 and "cannot restart 'red'" in done.stderr
    assert pair.mount("red")["pid"] == pid and pair.read("blue") == "blue"
    pair.world.cli("down")
    pair.assert_as_before()


def test_on_an_older_kernel_there_is_a_gap_and_it_is_said(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.world.cli("up", env={CAP_VARIABLE: "34"})
    old = pair.mount("red")["pid"]
    configure(pair, ", profile: fresh")
    [change] = json.loads(pair.world.cli("reload", "--dry-run", "-o", "json").stdout)
    assert "Linux 6.5" in change["gap"] or os.geteuid() != 0
    with subprocess.Popen(["sleep", "60"], cwd=pair.target("red")) as holder:
        try:
            busy = pair.world.cli("reload")
            assert busy.returncode == 8 and f"sleep (pid {holder.pid}" in busy.stderr
            assert pair.mount("red")["pid"] == old, "a mount that is in use stays"
        finally:
            holder.kill()
    done = pair.world.cli("reload")
    assert done.returncode == 0 and "red: there is a gap" in done.stderr and "red: mounted at" in done.stderr
    assert pair.mount("red")["pid"] != old and pair.mount("red")["profile"] == "fresh"
    pair.world.cli("down")
    pair.assert_as_before()


@pytest.mark.root
def test_sighup_does_the_same(pair: Pair) -> None:
    pair.world.cli("up")
    old = pair.mount("red")["pid"]
    configure(pair, ", profile: fresh")
    with reading(pair) as readers:
        os.kill(pair.daemon(), signal.SIGHUP)
        pair.until_replaced("red", old)
        tally = readers.tally()
    assert_clean(tally, 0)
    pair.world.cli("down")


@pytest.mark.root
def test_killed_while_it_is_replaced(pair: Pair) -> None:
    """The old one dies in the middle: the new one is there, or a successor of the old."""
    pair.world.cli("up")
    with reading(pair) as readers:
        for turn in range(4):
            configure(pair, f", profile: {('fresh', 'epochs')[turn % 2]}")
            call = pair.start("reload")
            [worker] = [pid for pid in pair.workers() if command_line(pid).endswith("red")][:1]
            with suppress(ProcessLookupError):  # the swap was quicker than we are: the old one has ended by itself
                os.kill(pair.mount("red")["pid"] or worker, signal.SIGKILL)
            _, errors = call.communicate(timeout=60)
            assert call.returncode == 0, errors
            poll(lambda: pair.state("red") == "mounted", "it does not come back")
        tally = readers.tally()
    assert not tally["wrong"]
    assert pair.world.cli("down").returncode == 0
    poll(lambda: not pair.workers(), "workers stay")


class TestWatch:
    """`daemon: {watch: true}` and `amlmount daemon --watch`: files that are saved count at once."""

    def test_a_file_that_is_saved_counts(self, pair: Pair) -> None:
        configure(pair, more="daemon: {watch: true}\n")
        pair.world.cli("up")
        old = pair.mount("red")["pid"]
        configure(pair, ", profile: fresh", more="daemon: {watch: true}\n")
        pair.until_replaced("red", old)
        configure(pair, ", profile: stream")  # and says that it is not to be watched any more
        poll(lambda: pair.mount("red")["profile"] == "stream", "not read")
        configure(pair, ", profile: random", more="daemon: {watch: true}\n")
        assert pair.world.cli("reload").returncode == 0 and pair.mount("red")["profile"] == "random"
        pair.world.cli("down")
        pair.assert_as_before()

    def test_what_cannot_be_used_changes_nothing_and_is_said(self, pair: Pair) -> None:
        configure(pair, more="daemon: {watch: true}\n")
        pair.world.cli("up")
        before = {name: pair.mount(name)["pid"] for name in ("red", "blue")}
        for text, said in (("mounts: [\n", "cannot read"), ("", "names no mounts any more"), (None, "no such file")):
            os.unlink(pair.world.config) if text is None else pair.world.write_config(text)
            poll(lambda said=said: said in pair.world.cli("ps").stderr, f"it is not said: {said}")  # type: ignore[misc]
        assert {name: pair.mount(name)["pid"] for name in ("red", "blue")} == before
        configure(pair, ", profile: fresh", more="daemon: {watch: true}\n")
        poll(lambda: pair.mount("red")["profile"] == "fresh", "a good one does not count afterwards")
        assert pair.world.cli("ps").stderr == ""
        pair.world.cli("down")

    def test_a_daemon_that_is_told_to(self, pair: Pair) -> None:
        with pair.start("daemon", "--watch") as daemon:
            try:
                # Not by `up`: that would start a daemon of its own, which nobody has told to watch.
                poll(lambda: os.path.exists(f"{pair.world.runtime_dir}/amlmount.sock"), "it does not come")
                assert pair.world.cli("up").returncode == 0
                configure(pair, ", profile: fresh")
                poll(lambda: pair.mount("red")["profile"] == "fresh", "not read")
            finally:
                daemon.terminate()
                daemon.communicate(timeout=30)
        pair.assert_as_before()
