"""A daemon that is stuck is ended by systemd's watchdog, and the next one finds every mount and open file as it was.

Stuck is one that the kernel does not run, and one whose supervisor stands still while its other threads go on.
"""

from collections.abc import Iterator

import pytest

from installbox import Box
from servicebox import (
    amlmount,
    daemon,
    drop_in,
    is_mounted,
    journal,
    mount,
    open_service,
    program_of,
    reading,
    show,
    until,
    wait_for_another,
)
from stuck_daemon import BEATS, STUCK

pytestmark = [pytest.mark.root, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """A machine with our unit, whose watchdog is less patient, and whose daemon can be made to stand still."""
    with open_service(daemon=program_of("stuck_daemon.py")) as made:
        drop_in(made, "watchdog", "[Service]\nWatchdogSec=1500ms\n")
        old = daemon(made)
        made.sh("systemctl restart amlmount")
        wait_for_another(made, old)
        yield made


@pytest.mark.parametrize("how", ["stopped", "stuck"])
def test_a_daemon_that_does_not_go_on(box: Box, how: str) -> None:
    pid, old = mount(box)["pid"], daemon(box)
    already = show(box, "NRestarts")
    with reading(box) as tally:
        box.sh(f"kill -STOP {old}" if how == "stopped" else f"touch {STUCK}")
        until(lambda: daemon(box) != old, lambda: journal(box))
        box.sh(f"rm -f {STUCK}")
        wait_for_another(box, old)
        found = tally()
    assert not found["errors"] and not found["wrong"] and found["done"]["read_held"], journal(box)
    assert mount(box)["pid"] == pid and is_mounted(box) and amlmount(box, "check").returncode == 0
    assert int(show(box, "NRestarts")) == int(already) + 1 and show(box, "NFileDescriptorStore") == "3"
    said = box.sh("journalctl --sync; journalctl --no-pager -u amlmount")
    assert "Watchdog timeout" in said and "status=6/ABRT" in said, said
    if how == "stuck":
        beats = [line.split() for line in box.read(BEATS).splitlines()]
        while_stuck = [float(at) for who, at, is_stuck in beats if who == old and is_stuck == "True"]
        assert while_stuck[-1] - while_stuck[0] > 0.7, "its other threads went on"
        assert "in look" in said.partition("Current thread")[2] or 'stuck_daemon.py", line' in said, said
