"""What tests of engines and sessions share: a small container on disk, a spec of it, waiting with a deadline."""

import filecmp
import os
import select
import time
from collections.abc import Callable

from amlmount.config.spec import MountSpec
from amlmount.session.source import resolve_source
from sandbox import mounts_below

DIGITS = ("0 - zero", "1 - one", "2 - two")


def make_source(path: str) -> str:
    """Fill a directory with the seed's shape in small: folders with spaces, files of 0, 700 and 300,000 bytes."""
    for digit, name in enumerate(DIGITS):
        folder = os.path.join(path, "MNIST_FLAT", name)
        os.makedirs(folder)
        for index in range(5):
            with open(os.path.join(folder, f"{name}_{index}.jpg"), "wb") as file:
                file.write(bytes([digit, index]) * 350)
    for name, size_bytes in (("big.bin", 300_000), ("empty", 0), ("naïve ☃.txt", 5)):
        with open(os.path.join(path, name), "wb") as file:
            file.write(bytes(i % 251 for i in range(size_bytes)))
    return path


def spec_of(source: str, target: str, **changes: object) -> MountSpec:
    """Return the spec of a local folder, with the defaults of a user's mount."""
    spec = resolve_source(os.path.abspath(source), target, read_only=True, profile=None, engine="auto")
    return spec.model_copy(update=changes)


def differences(one: str, other: str) -> list[str]:
    """Compare two trees byte by byte, as `diff -r` does; only for mounts that answer."""
    found = filecmp.dircmp(one, other, ignore=[], hide=[])
    names = [*found.left_only, *found.right_only, *found.funny_files, *found.common_funny]
    _, mismatch, errors = filecmp.cmpfiles(one, other, found.common_files, shallow=False)
    bad = [os.path.join(one, name) for name in [*names, *mismatch, *errors]]
    for name in found.common_dirs:
        bad += differences(os.path.join(one, name), os.path.join(other, name))
    return bad


def mounted_at(path: str) -> bool:
    """Say whether the mount table has a mount at exactly `path`; never looks at the path."""
    return any(point == path for _, point in mounts_below(path))


def until(what: Callable[[], object], deadline_s: float = 10.0) -> None:
    """Wait until `what()` is true, or fail."""
    deadline = time.monotonic() + deadline_s
    while not what():
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.01)


def ended(pidfd: int, deadline_s: float = 10.0) -> bool:
    """Wait for the end of the process behind `pidfd`."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(deadline_s * 1000))
