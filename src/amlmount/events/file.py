"""Where events are kept over a restart: JSON lines in a private directory, bounded by two files that take turns.

Reading needs no daemon; writing is one process's only, the daemon's.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from amlmount.events.event import Event

MAX_BYTES = 1 << 20  # of each of the two files: some 3,000 events
NAME = "events.jsonl"
TAIL_BYTES = 65536


def events_dir(state_dir: Path) -> str:
    """Return the directory in which the daemon with this state directory keeps events."""
    return str(state_dir / "events")


class EventFile:
    """The events below `directory` (made when needed, mode 0700, files 0600)."""

    def __init__(self, directory: str, *, max_bytes: int = MAX_BYTES) -> None:
        self._directory = directory
        self._path = os.path.join(directory, NAME)
        self._max_bytes = max_bytes

    def append(self, event: Event) -> None:
        """Add one event; the file before the last is forgotten when a file is full. Raises OSError."""
        line = json.dumps(event.to_json(), separators=(",", ":")).encode() + b"\n"
        try:
            descriptor = self._open()
        except FileNotFoundError:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            descriptor = self._open()
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # the machine went down in the middle of a line
                line = b"\n" + line
            os.write(descriptor, line)
            is_full = size + len(line) > self._max_bytes
        finally:
            os.close(descriptor)
        if is_full:
            os.replace(self._path, f"{self._path}.1")

    def read(self) -> Iterator[Event]:
        """Yield what is kept, the oldest first; lines that are no event are passed over."""
        for path in (f"{self._path}.1", self._path):
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                yield from (event for line in file if (event := _event(line)) is not None)

    def last_number(self) -> int:
        """Return the number of the last event that is kept, 0 if there is none."""
        for path in (self._path, f"{self._path}.1"):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
                numbers = [event.number for line in file if (event := _event(line)) is not None]
                if numbers:
                    return max(numbers)
        return 0

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path, flags, 0o600)


def _event(line: bytes) -> Event | None:
    try:
        return Event.from_json(json.loads(line))
    except (ValueError, KeyError, TypeError):
        return None
