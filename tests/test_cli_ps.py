"""What ps shows and what a dry run says, on a terminal and in a pipe."""

import json
import os
import pty
import subprocess
from typing import Any

import pytest

from amlmount.cli.output import Console, Format, print_mounts, print_table
from amlmount.states import MountState, MountStatus
from amlmount.states.stats import MountStats
from daemons import Pair, make_pair
from world import World


@pytest.fixture
def pair(world: World) -> Pair:
    return make_pair(world)


def test_a_configuration_without_mounts_is_said(pair: Pair) -> None:
    pair.world.write_config("# nothing yet\n")
    up = pair.world.cli("up")
    assert (up.returncode, up.stderr) == (0, "nothing to mount: the configuration names no mounts\n")
    assert pair.world.cli("down").returncode == 0
    pair.assert_as_before()


def test_unknown_names(pair: Pair) -> None:
    done = pair.world.cli("up", "reed")
    assert done.returncode == 3
    assert done.stderr == "error: cannot find a mount named 'reed'\nhint: did you mean 'red'?\n"
    pair.assert_as_before()


def test_dry_runs_do_nothing(pair: Pair) -> None:
    plans = pair.world.cli_json("up", "--dry-run")
    assert [(p["name"], p["action"], p["engine"]) for p in plans] == [
        ("red", "mount", "python"),
        ("blue", "mount", "python"),
    ]
    assert plans[0]["makes"] == [f"{pair.world.root}/mnt", pair.target("red")] and plans[0]["engine_why"]
    pair.assert_as_before()
    pair.world.cli("up", "red")
    table = pair.world.cli("up", "--dry-run").stdout.splitlines()
    assert table[1].split()[:2] == ["red", "keep"] and table[2].split()[:2] == ["blue", "mount"]
    assert [m["name"] for m in pair.world.cli_json("down", "--dry-run")] == ["red"]
    assert [m["name"] for m in pair.world.cli_json("ps")] == ["red"]
    pair.world.cli("down")


def test_what_a_mount_cannot_do_is_said_in_words(pair: Pair) -> None:
    pair.world.cli("up", "red")
    flushed, pinned = pair.world.cli("flush", "red"), pair.world.cli("cache", "pin", "red", "*")
    assert (flushed.returncode, pinned.returncode) == (2, 2)
    assert flushed.stderr == "error: cannot flush this mount: it is read-only, so nothing is written through it\n"
    assert pinned.stderr == "error: cannot pin anything: this mount keeps no cache on disk\n"
    pair.world.cli("down")


def test_a_dry_run_without_a_daemon_knows_that_the_daemon_can_write(pair: Pair) -> None:
    root = pair.world.root
    pair.world.write_config(
        f"stores: {{s: {{type: local, path: {root}/red}}}}\n"
        f"mounts: {{m: {{target: {root}/mnt/m, source: s, read_only: false}}}}\n"
    )
    [plan] = pair.world.cli_json("up", "--dry-run")
    assert (plan["action"], plan["engine"], plan["error"]) == ("mount", "python", None)


def test_ps_survives_a_pipe_and_colours_a_terminal(pair: Pair) -> None:
    pair.world.cli("up", "red")
    piped = pair.world.cli("ps", "-a").stdout
    assert "\x1b" not in piped
    header = ["NAME", "STATE", "HEALTH", "SINCE", "ENGINE", "PID", "TARGET", "SOURCE", "NOTE"]
    assert piped.splitlines()[0].split() == header
    assert piped.splitlines()[2].split()[:5] == ["blue", "unmounted", "-", "-", "-"]
    shown = on_terminal(pair, "ps")
    assert "\x1b[32mmounted" in shown and pair.target("red") in shown
    assert "\x1b" not in on_terminal(pair, "ps", NO_COLOR="1")
    assert "\x1b" not in on_terminal(pair, "--no-color", "ps")
    lines = pair.world.cli("ps", "-a", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["red", "blue"]
    pair.world.cli("down")


def test_ps_says_what_is_not_sent_and_what_the_cache_takes(capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, Any] = {"source": "s", "read_only": True, "profile": "standard", "state": MountState.MOUNTED}
    mounts = [MountStatus(name, f"/m/{name}", **facts) for name in ("a", "b", "c")]
    figures = {"a": MountStats("a", "python", 1, cache_bytes=1234), "b": MountStats("b", "python", 2)}
    print_mounts(Console(), mounts, Format.TABLE, figures)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[5:7] == ["PID", "CACHE"] and lines[1].split("  ")[0] == "a" and "1.23 kB" in lines[1]
    figures["c"] = MountStats("c", "python", 3, engine_raw={"unsent": {"files": 1, "bytes": 20_000_000, "oldest_s": 1}})
    print_mounts(Console(), mounts, Format.TABLE, figures)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[5:8] == ["PID", "UNSENT", "CACHE"] and "20 MB" in lines[3]
    print_mounts(Console(), mounts, Format.JSONL, figures)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["unsent_bytes"], one["unsent_age_s"], one["cache_bytes"]) for one in found] == [
        (None, None, 1234),
        (None, None, None),
        (20_000_000, 1.0, None),
    ]


def test_only_a_terminal_that_is_too_narrow_cuts_the_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(Console(), ("A", "NOTE"), [("x" * 50, "y" * 100)])
    assert capsys.readouterr().out.splitlines()[1] == f"{'x' * 50}  {'y' * 100}"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_table(Console(), ("A", "NOTE"), [("x" * 10, "y" * 100)])
    assert capsys.readouterr().out.splitlines()[1] == f"{'x' * 10}  {'y' * 27}…"


def on_terminal(pair: Pair, *args: str, **env: str) -> str:
    ours, theirs = pty.openpty()
    try:
        subprocess.run(pair.world.argv(*args), env=pair.world.env | env, stdout=theirs, timeout=30, check=True)
        return os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
