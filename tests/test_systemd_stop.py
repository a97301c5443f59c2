"""What was written through a mount when its service is stopped, or the machine: it is in the store, or on the disk.

The store is beside the machine, on its network: it goes on when the machine is off, and can be slow, silent or refuse.
"""

import ctypes
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fakeblob import Asked, FakeBlobService
from installbox import Box
from servicebox import drop_in, is_mounted, journal, open_service, program_of, show, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(200)]
PORT = 10000
MOUNTS = ("good", "bad")
WRITABLE = {"read_only": False, "durability": "journal"}
RATE = 3e6  # bytes a second
LARGE_BYTES, SMALL_BYTES, SMALL_FILES = 7_000_000, 100_000, 10
CLONE_NEWNET = 0x40000000
# As an impatient administrator sets it: without more time asked for, every stop here would end by SIGKILL.
IMPATIENT = "[Service]\nTimeoutStopSec=2s\nWatchdogSec=2s\n"


@contextmanager
def store_beside(box: Box, before: FakeBlobService | None = None) -> Iterator[FakeBlobService]:
    """A store on the box's network, with what the one before it has."""
    made: list[FakeBlobService] = []

    def make() -> None:
        with open(f"/proc/{box.leader}/ns/net") as network:  # a thread of its own: it stays there
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        made.append(FakeBlobService(port=PORT))

    maker = threading.Thread(target=make)
    maker.start()
    maker.join()
    [service] = made
    if before is not None:
        service.containers = before.containers
    try:
        yield service
    finally:
        service.close()


@pytest.fixture
def box() -> Iterator[Box]:
    """A machine that is up, with nothing mounted yet."""
    with open_service("stores: {}\nmounts: {}\n", daemon=program_of("impatient_daemon.py"), starts=False) as made:
        drop_in(made, "impatient", IMPATIENT)
        yield made


def configure(box: Box, service: FakeBlobService) -> None:
    """Two mounts, each of a container of its own."""
    service.containers = {name: {} for name in MOUNTS}
    mounts = {name: {"target": f"/media/{name}", "source": name, **WRITABLE} for name in MOUNTS}
    config = {"stores": {name: service.definition(name) for name in MOUNTS}, "mounts": mounts}
    box.write("/etc/amlmount/amlmount.yaml", json.dumps(config))


def write(box: Box, mount: str, prefix: str, large_bytes: int = SMALL_BYTES) -> dict[str, int]:
    """Write one file that may be large and some small ones, and return what must be in the store at the end."""
    path = f"/media/{mount}/{prefix}"
    small = f"for i in $(seq {SMALL_FILES}); do head -c {SMALL_BYTES} /dev/zero >{path}-$i; done"
    box.sh(f"head -c {large_bytes} /dev/zero >{path}; {small}")
    return {prefix: large_bytes} | {f"{prefix}-{number + 1}": SMALL_BYTES for number in range(SMALL_FILES)}


def sizes(service: FakeBlobService, mount: str, prefix: str) -> dict[str, int]:
    return {name: len(blob.data) for name, blob in service.containers[mount].items() if name.startswith(prefix)}


def are_mounted(box: Box) -> bool:
    return all(is_mounted(box, f"/media/{name}") for name in MOUNTS)


def is_upload(asked: Asked) -> bool:
    return asked.method == "PUT" and "/bad/" in asked.path


def test_what_is_not_in_the_store_when_a_service_stops_and_when_its_machine_does(box: Box) -> None:
    with store_beside(box) as service:
        service.take_in_little()
        configure(box, service)
        box.sh("systemctl start amlmount")
        until(lambda: are_mounted(box), lambda: journal(box))
        check_a_stop(box, service)
        service.fail("status", 10000, when=is_upload, status=503, code="ServerBusy")
        service.bytes_per_s = RATE
        sent, kept = write(box, "good", "power", LARGE_BYTES), write(box, "bad", "power")
        box.stop()
        assert sizes(service, "good", "power") == sent and sizes(service, "bad", "power") == {}
    box.start()
    with store_beside(box, service) as again:
        until(lambda: sizes(again, "bad", "power") == kept, lambda: journal(box))  # nobody has asked for anything
        until(lambda: are_mounted(box), lambda: journal(box))
        assert box.sh("stat -c %s /media/good/power /media/bad/power").split() == [str(LARGE_BYTES), str(SMALL_BYTES)]


def check_a_stop(box: Box, service: FakeBlobService) -> None:
    """One store is slow and is waited for, the other is silent and is not."""
    box.sh("systemctl log-level debug")  # systemd writes down what it is told
    service.fail("silence", 1000, when=is_upload)
    service.bytes_per_s = RATE
    sent, kept = write(box, "good", "stop", LARGE_BYTES), write(box, "bad", "stop")
    begun = time.monotonic()
    box.sh("systemctl stop amlmount")
    took_s = time.monotonic() - begun
    box.sh("systemctl log-level info; journalctl --sync")
    assert sizes(service, "good", "stop") == sent and 2 < took_s < 30, (took_s, journal(box))
    assert sizes(service, "bad", "stop") == {}
    assert (show(box, "Result"), show(box, "ActiveState")) == ("success", "inactive"), journal(box)
    assert not any(is_mounted(box, f"/media/{name}") for name in MOUNTS)
    assert "amlmount.worker" not in box.sh("ps -e -o args")
    said = box.sh("journalctl --no-pager -o cat -u amlmount")
    assert said.count("EXTEND_TIMEOUT_USEC=60000000") >= 4 and "STATUS=good: " in said, said
    assert f" bytes of {len(kept)} files are not in the store (nothing moves); they are kept" in said, said
    service.heal()
    service.bytes_per_s = None
    box.sh("systemctl start amlmount")
    until(lambda: sizes(service, "bad", "stop") == kept, lambda: journal(box))
    until(lambda: are_mounted(box), lambda: journal(box))
