"""The daemon is killed at every await point of what it does; the next one gets there, and readers notice nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from amlmount.fuse.negotiate import CAP_VARIABLE
from mounting import make_source
from sandbox import Sandbox

SCRIPT = str(Path(__file__).with_name("killpoints.py"))
# How many points there are at least: fewer would mean that they are not counted any more.
LEAST = {"up": 20, "down": 8, "takeover": 8, "reload": 20}


@pytest.mark.root
@pytest.mark.parametrize(
    ("operation", "cap"),
    [*((operation, "") for operation in LEAST), ("up", "34"), ("takeover", "34")],  # as the kernel is, and as 5.15
)
def test_killed_at_every_await_point(operation: str, cap: str, sandbox: Sandbox) -> None:
    source = make_source(sandbox.make_dir("s"))
    argv = [sys.executable, SCRIPT, operation, sandbox.make_dir("r"), source]
    env = os.environ | {"PYTHONPATH": os.path.dirname(__file__), CAP_VARIABLE: cap}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=110, check=False)
    points = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and not points[-1]["killed"], done.stderr[-2000:]
    assert len(points) > LEAST[operation]
    assert [point for point in points if point["trouble"]] == []
