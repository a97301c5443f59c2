"""Entries of systemd's journal: the protocol's bytes, the fields, secrets, and what happens where there is no journal.

That `journalctl` finds them by field is tried with a real journal: `tests/test_systemd.py`.
"""

import logging
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from amlmount.events import Event
from amlmount.journal import JournalHandler, about, encode, message_id
from sandbox import Sandbox


class Journal:
    """A socket that takes what journald would take."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.settimeout(5)

    def entry(self) -> dict[str, str]:
        """Return the next entry, from the datagram or from the memfd that it passes."""
        data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 1)
        for descriptor in descriptors:
            data = os.pread(descriptor, 1 << 24, 0)
            os.close(descriptor)
        return decode(data)


def decode(data: bytes) -> dict[str, str]:
    """Read what systemd.io/JOURNAL_NATIVE_PROTOCOL describes."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if equals:
            data = rest
        else:
            (length,) = struct.unpack_from("<Q", rest)
            value, data = rest[8 : 8 + length], rest[8 + length + 1 :]
        found[name.decode()] = value.decode()
    return found


@pytest.fixture
def journal(sandbox: Sandbox) -> Iterator[Journal]:
    made = Journal(f"{sandbox.make_dir('j')}/socket")
    yield made
    made.socket.close()


@pytest.fixture
def log(journal: Journal) -> Iterator[logging.Logger]:
    """A logger whose records go to the journal and nowhere else."""
    logger, handler = logging.getLogger("amlmount.journaltest"), JournalHandler(path=journal.path)
    logger.addHandler(handler)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)
    handler.close()


def test_what_is_written_can_be_read() -> None:
    fields = {"MESSAGE": "two\nlines", "PRIORITY": "4", "EMPTY": "", "LAST": "x=y"}
    assert decode(encode(fields)) == fields


def test_a_record_has_its_fields_and_no_secret(journal: Journal, log: logging.Logger) -> None:
    with about("mnist"):
        log.warning("refused: AccountKey=%s", "hunter2")
    entry = journal.entry()
    assert entry["MESSAGE"] == "refused: AccountKey=[hidden]"
    assert (entry["AMLMOUNT_MOUNT"], entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("mnist", "4", "amlmount")
    log.error("of nobody")
    assert "AMLMOUNT_MOUNT" not in (entry := journal.entry()) and entry["PRIORITY"] == "3"


def test_an_event_has_the_number_of_its_kind(journal: Journal, log: logging.Logger) -> None:
    event = Event(7, time.time(), "mounted", "info", "mnist", "it is there")
    for _ in range(9):  # events are never held back as repetitions
        log.warning("mnist: mounted", extra={"event": event})
    entries = [journal.entry() for _ in range(9)]
    assert {(e["AMLMOUNT_MOUNT"], e["AMLMOUNT_EVENT"], e["AMLMOUNT_EVENT_NUMBER"]) for e in entries} == {
        ("mnist", "mounted", "7")
    }
    # Written out: whoever has this number in a script must find it in every version.
    assert {e["MESSAGE_ID"] for e in entries} == {message_id("mounted")} == {"a9f368b626b95487816ae6f9d8652b7a"}


def test_what_is_too_large_for_a_datagram_goes_in_a_memfd(journal: Journal, log: logging.Logger) -> None:
    text = "x" * 5_000_000
    log.error(text)
    assert journal.entry()["MESSAGE"] == text


def test_without_a_journal_it_goes_to_standard_error(
    journal: Journal, log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    os.unlink(journal.path)
    handler = JournalHandler(path=journal.path)
    handler.handle(log.makeRecord("amlmount.x", logging.ERROR, __file__, 1, "lost? sig=abc", (), None))
    handler.close()
    assert capsys.readouterr().err == "<3>x: lost? sig=[hidden]\n"


def test_a_journal_that_is_stuck_is_not_waited_for(
    journal: Journal, log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    handler = JournalHandler(path=journal.path)
    for number in range(2000):  # nobody reads: the queue of the socket is full at some time
        handler.handle(log.makeRecord("amlmount.x", logging.ERROR, __file__, 1, f"entry {number}", (), None))
    handler.close()
    assert time.monotonic() - begun < 10 and "<3>x: entry 1999" in capsys.readouterr().err
