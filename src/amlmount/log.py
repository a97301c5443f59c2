"""How amlmount logs: a console format and a journal format, secrets cut out, repetitions counted instead of repeated.

`setup_logging` is called once by an entry point; everybody else uses `logging.getLogger(__name__)`.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from amlmount.redaction import redact

BURST, WINDOW_S, MAX_REMEMBERED = 3, 60.0, 1000
_COLOURS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31", logging.DEBUG: "2"}
# sd-daemon(3): a line may begin with its syslog priority.
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))


class ConsoleFormatter(logging.Formatter):
    """`12:00:00 warning supervisor: text`, the level coloured on a terminal."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, secrets hidden."""
        level = record.levelname.lower()
        if self._colour and (code := _COLOURS.get(record.levelno)):
            level = f"\x1b[{code}m{level}\x1b[0m"
        return f"{self.formatTime(record, self.datefmt)} {level} {_text(self, record)}"


class JournalFormatter(logging.Formatter):
    """`<4>supervisor: text`; every line of a long text carries the priority, as the journal reads them one by one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines, secrets hidden."""
        priority = priority_of(record.levelno)
        return "\n".join(f"<{priority}>{line}" for line in _text(self, record).splitlines())


class RedactingFormatter(logging.Formatter):
    """Any format, secrets hidden."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines."""
        return redact(super().format(record))


class RepeatFilter(logging.Filter):
    """Let the same message through 3 times a minute; the next one after that minute says how often it was held back.

    Safe to use from several threads as a handler's filter (the handler holds its lock).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide on one message. What tells an event passes: each of them has happened."""
        if hasattr(record, "event"):
            return True
        key = (record.name, record.levelno, record.getMessage())
        now = self._clock()
        since, count = self._seen.pop(key, (now, 0))
        if now - since >= WINDOW_S:
            if count > BURST:
                record.msg, record.args = f"{key[2]} (and {count - BURST} times more in {now - since:.0f} s)", None
            since, count = now, 0
        self._seen[key] = (since, count + 1)
        if len(self._seen) > MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return count < BURST


def priority_of(level: int) -> int:
    """Return the syslog priority of a level of `logging`."""
    return next(number for least, number in _PRIORITIES if level >= least)


def setup_logging(level: str = "info", *, journal: bool | None = None, stream: TextIO | None = None) -> None:
    """Send what amlmount logs at `level` and above to standard error (or `stream`), in one format.

    `journal`: None finds out whether the stream leads to systemd's journal (`JOURNAL_STREAM`, systemd.exec(5)).
    The Azure libraries and others are heard from warnings upwards. Calling it again replaces the first set-up.
    """
    out = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(out)
    to_journal = leads_to_journal(out) if journal is None else journal
    handler.setFormatter(JournalFormatter() if to_journal else ConsoleFormatter(colour=wants_colour(out)))
    handler.addFilter(RepeatFilter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("amlmount").setLevel(level.upper())
    logging.captureWarnings(True)


def wants_colour(stream: TextIO) -> bool:
    """Say whether to colour: a terminal, and nobody has set NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def leads_to_journal(stream: TextIO) -> bool:
    """Say whether the stream is the one that systemd has connected to the journal."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _text(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = f"{record.name.removeprefix('amlmount.')}: {record.getMessage()}"
    if record.exc_info:
        text = f"{text}\n{formatter.formatException(record.exc_info)}"
    return redact(text)
