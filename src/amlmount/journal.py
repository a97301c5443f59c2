"""Log records as entries of systemd's journal, with fields, so that `journalctl AMLMOUNT_MOUNT=mnist` finds them.

The native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram an entry, a memfd for one that is too large.
Where there is no journal, or it does not take an entry, it goes to standard error as a line with its priority.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from amlmount.log import JournalFormatter, RepeatFilter, priority_of
from amlmount.redaction import redact

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "amlmount"
# MESSAGE_ID of an event: one number a kind, made from its name, so that it is the same in every version.
_KINDS = uuid.UUID("6f0b3a52-8d1e-4a86-9c55-0c1f8f2b7a10")
_LENGTH = struct.Struct("<Q")
_TOO_LARGE = {errno.EMSGSIZE, errno.ENOBUFS}
_ABOUT: ContextVar[str | None] = ContextVar("mount", default=None)


@contextlib.contextmanager
def about(mount: str) -> Iterator[None]:
    """What is logged within the block (also in tasks and threads begun there) is about this mount."""
    token = _ABOUT.set(mount)
    try:
        yield
    finally:
        _ABOUT.reset(token)


def message_id(kind: str) -> str:
    """Return the MESSAGE_ID (32 hexadecimal digits) of events of a kind."""
    return uuid.uuid5(_KINDS, kind).hex


def fields_of(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, str]:
    """Return the entry for a record, secrets hidden.

    A record with an `event` (`events.Event`) also gets AMLMOUNT_EVENT, MESSAGE_ID and the event's number.
    """
    text = record.getMessage()
    if record.exc_info:
        text = f"{text}\n{formatter.formatException(record.exc_info)}"
    event: Any = getattr(record, "event", None)
    found = {
        "MESSAGE": redact(text),
        "PRIORITY": str(priority_of(record.levelno)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "AMLMOUNT_LOGGER": record.name.removeprefix("amlmount."),
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": str(record.funcName),
    }
    if event is not None:
        found |= {"AMLMOUNT_EVENT": event.kind, "AMLMOUNT_EVENT_NUMBER": str(event.number)}
        found["MESSAGE_ID"] = message_id(event.kind)
    mount = event.mount if event is not None else _ABOUT.get()
    return found | ({"AMLMOUNT_MOUNT": mount} if mount else {})


def encode(fields: Mapping[str, str]) -> bytes:
    """Return one entry in the native protocol; a value of several lines goes with its length."""
    parts = []
    for name, text in fields.items():
        value = text.encode(errors="replace")
        head = name.encode()
        parts.append(head + (b"\n" + _LENGTH.pack(len(value)) if b"\n" in value else b"=") + value + b"\n")
    return b"".join(parts)


class JournalHandler(logging.Handler):
    """Sends records to the journal, and does not wait for one that is stuck. `mount`: all are about this one."""

    def __init__(self, *, path: str = SOCKET, mount: str | None = None) -> None:
        super().__init__()
        self._path = path
        self._mount = mount
        self._otherwise = logging.StreamHandler(sys.stderr)
        self._otherwise.setFormatter(JournalFormatter())
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.setFormatter(logging.Formatter())
        self.addFilter(RepeatFilter())

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        assert self.formatter
        try:
            fields = fields_of(record, self.formatter)
            self._send(encode(({"AMLMOUNT_MOUNT": self._mount} if self._mount else {}) | fields))
        except OSError:
            self._otherwise.emit(record)

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
        super().close()

    def _send(self, entry: bytes) -> None:
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        try:
            self._socket.sendmsg([entry], [], flags, self._path)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
            with _sealed(entry) as descriptor:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
                self._socket.sendmsg([], rights, flags, self._path)


@contextlib.contextmanager
def _sealed(entry: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("amlmount-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, entry)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)
