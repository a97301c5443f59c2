"""A probe never hangs, never leaves more than one child behind, and tells silence from death."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

import tiny_fuse
from amlmount import probes
from amlmount.mounts import abort, find_mount, open_and_mount, waiting
from amlmount.probes import probe_mounted
from sandbox import lazy_unmount

pytestmark = pytest.mark.root


@pytest.fixture
def served(mountpoint: str) -> Iterator["subprocess.Popen[bytes]"]:
    fuse_fd = open_and_mount(mountpoint, source="t", read_only=True, allow_other=True, default_permissions=True)
    server = tiny_fuse.start(fuse_fd)
    os.close(fuse_fd)
    yield server
    lazy_unmount(mountpoint)
    server.kill()
    server.wait()


def test_nothing_there(mountpoint: str) -> None:
    assert probe_mounted(mountpoint, 5).answer == "not_mounted"


def test_a_mount_that_answers(mountpoint: str, served: "subprocess.Popen[bytes]") -> None:
    found = probe_mounted(mountpoint, 10)
    assert found.ok and found.text.startswith("answered in ")


@pytest.mark.parametrize("known", [True, False])
def test_a_dead_one(
    mountpoint: str, served: "subprocess.Popen[bytes]", known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe_mounted(mountpoint, 10).ok
    served.kill()
    served.wait()
    if not known:  # as for a user without fusectl: then the child finds it out
        monkeypatch.setattr(probes, "is_dead", lambda entry: None)
    assert probe_mounted(mountpoint, 10).answer == "dead"


def test_a_hung_one_is_abandoned_and_asked_once(mountpoint: str, served: "subprocess.Popen[bytes]") -> None:
    assert probe_mounted(mountpoint, 10).ok
    served.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    found = probe_mounted(mountpoint, 0.3)
    assert found.answer == "hung" and "0.3 s" in found.text and time.monotonic() - begun < 5
    entry = find_mount(mountpoint)
    assert entry is not None
    served.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 10
    while not (found := probe_mounted(mountpoint, 5)).ok and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found.ok and waiting(entry) == 0 and probes._silent == {}


def test_a_child_in_d_state_is_not_doubled(mountpoint: str, served: "subprocess.Popen[bytes]") -> None:
    """A request that was read and not answered makes its caller immune to SIGKILL: take it away from the server."""
    served.kill()
    served.wait()
    lazy_unmount(mountpoint)
    fuse_fd = open_and_mount(mountpoint, source="t", read_only=True, allow_other=True, default_permissions=True)
    try:
        init = os.read(fuse_fd, 1 << 18)
        _, _, unique, node, *_ = tiny_fuse.IN_HEADER.unpack_from(init)
        answer = tiny_fuse.ANSWERS[tiny_fuse.INIT](node, b"")
        assert isinstance(answer, bytes)
        os.write(fuse_fd, tiny_fuse.OUT_HEADER.pack(16 + len(answer), 0, unique) + answer)
        swallower = subprocess.Popen(["dd", "bs=262144", "count=1", "of=/dev/null", "status=none"], stdin=fuse_fd)
        assert probe_mounted(mountpoint, 1).answer == "hung"
        swallower.wait(10)
        again = probe_mounted(mountpoint, 1)
        assert again.answer == "hung" and "earlier question" in again.text and again.elapsed_s < 0.5
        assert len(probes._silent) == 1
        entry = find_mount(mountpoint)
        assert entry is not None
        abort(entry)
        assert probe_mounted(mountpoint, 5).answer == "dead"
        deadline = time.monotonic() + 10
        while probes._still_silent(mountpoint) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert probes._silent == {}
    finally:
        os.close(fuse_fd)
