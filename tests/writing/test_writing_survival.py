"""The worker is killed again and again while programs write, rename and unlink: they notice nothing, all is there."""

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from amlmount.fuse.negotiate import CAP_VARIABLE
from amlmount.stores.azure import open_azure
from amlmount.stores.base import ObjectStore
from amlmount.stores.local import LocalStore
from fakeblob import FakeBlobService
from mounting import until
from writing import programs
from writing.ground import content_of
from writing.lengths import KILLS
from writing.test_writing_mount import Mount, mounted, writable_spec

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
SHOW = """
import hashlib, json, os, sys
def digest(path):
    try:
        return hashlib.sha256(open(path, "rb").read()).hexdigest()
    except OSError as error:
        return str(error)
print(json.dumps({name: digest(f"{sys.argv[1]}/{name}") for name in os.listdir(sys.argv[1])}))
"""


@pytest.fixture(params=["store", "journal", "journal, in a local folder", "store, on an older kernel"])
def ground(
    request: pytest.FixtureRequest, mountpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Mount, ObjectStore]]:
    """A mount, and what it shows. On the older kernel no file is written without the worker, and no request is sent
    again by the kernel; in a local folder our own uploads are known by their content."""
    durability, _, where = request.param.partition(", ")
    if where == "on an older kernel":
        monkeypatch.setenv(CAP_VARIABLE, "39")
    with contextlib.ExitStack() as held:
        outside: ObjectStore
        definition: dict[str, object]
        if where == "in a local folder":
            (tmp_path / "store").mkdir()
            outside, definition = (
                LocalStore(str(tmp_path / "store")),
                {"type": "local", "path": str(tmp_path / "store")},
            )
        else:
            service = held.enter_context(contextlib.closing(FakeBlobService()))
            outside, definition = (
                held.enter_context(contextlib.closing(open_azure(service.definition()))),
                service.definition(),
            )
        spec = writable_spec(
            definition, mountpoint, str(tmp_path / "state"), durability=durability, upload_timeout_s=30.0
        )
        yield held.enter_context(mounted(spec)), outside


def test_crash_programs_notice_nothing(ground: tuple[Mount, ObjectStore]) -> None:
    mount, outside = ground
    argv = [sys.executable, programs.__file__, mount.path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            dice = random.Random(1)
            for _ in range(KILLS):
                time.sleep(dice.uniform(0.05, 0.4))
                mount.kill()
                mount.take_over()
            output, _ = running.communicate("stop\n", timeout=60)
        except BaseException:
            mount.stop(lazy=True)  # or the programs would wait for ever, and we for them
            running.kill()
            raise
    said = json.loads(output)
    assert said["errors"] == [] and min(said["rounds"]) > 0
    shown = subprocess.run(
        [sys.executable, "-c", SHOW, mount.path], capture_output=True, text=True, check=True, timeout=30
    )
    assert json.loads(shown.stdout) == said["expected"]
    with contextlib.suppress(AssertionError):
        until(lambda: stored(outside) == said["expected"])
    assert stored(outside) == said["expected"]


def stored(outside: ObjectStore) -> dict[str, str]:
    return {name: sha256(data).hexdigest() for name, data in content_of(outside).items()}
