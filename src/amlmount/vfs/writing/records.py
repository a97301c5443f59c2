"""How the journal's bytes become records and records become bytes: docs/journal.md in code.

A record is taken only if its checksum holds; what lies between records that hold is damage, and is counted.
"""

import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1
MAGIC = b"amljrnl\0"
_HEADER = struct.Struct("<8sII")  # magic, format, salt
HEADER_BYTES = _HEADER.size
_MARK = b"\xa5REC"
_RECORD = struct.Struct("<4sIIQI")  # mark, length of fields, length of data, number, checksum of all the rest
RECORD_HEADER_BYTES = _RECORD.size
MAX_FIELDS_BYTES = 64 << 20
_as_json = json.JSONEncoder(separators=(",", ":")).encode  # made once: json.dumps makes one each time


class JournalFormatError(Exception):
    """A file that is no journal, or one of another version."""


@dataclass(frozen=True, slots=True)
class Record:
    """One entry: what happened (`kind`), to what (`fields`, as JSON has it), and bytes of content, mostly none."""

    kind: str
    fields: dict[str, Any]
    data: bytes = b""


@dataclass(slots=True)
class Found:
    """What a journal holds. `end`: up to where it can be trusted and written on; `damaged_bytes`: lost in between.

    `torn_bytes` at the end is what was being written when the power went: nobody was told that it is there.
    """

    records: list[Record] = field(default_factory=list)
    end: int = HEADER_BYTES
    next_number: int = 1
    damaged_bytes: int = 0
    torn_bytes: int = 0
    salt: int = 0


def encode_header(salt: int) -> bytes:
    """Return the beginning of a journal. `salt` goes into every checksum: no other journal's records look like ours."""
    return _HEADER.pack(MAGIC, FORMAT, salt)


def encode(record: Record, number: int, salt: int) -> bytes:
    """Return the bytes of a record; numbers grow by one."""
    fields = _as_json([record.kind, record.fields]).encode()
    head = _RECORD.pack(_MARK, len(fields), len(record.data), number, 0)
    checksum = zlib.crc32(record.data, zlib.crc32(fields, zlib.crc32(head, salt)))
    return _RECORD.pack(_MARK, len(fields), len(record.data), number, checksum) + fields + record.data


def decode(content: bytes) -> Found:
    """Read a whole journal. Raises JournalFormatError."""
    found = Found()
    if len(content) < HEADER_BYTES:
        found.torn_bytes = len(content)
        return found
    magic, version, found.salt = _HEADER.unpack_from(content)
    if magic != MAGIC or version != FORMAT:
        raise JournalFormatError(f"magic {magic!r}, format {version}; this program knows {MAGIC!r}, {FORMAT}")
    place = HEADER_BYTES
    while place < len(content):
        read = _read(content, place, found.salt)
        if read is not None:
            record, number, end = read
            found.damaged_bytes += place - found.end
            found.records.append(record)
            found.next_number, found.end = number + 1, end
            place = end
            continue
        following = content.find(_MARK, place + 1)
        if following < 0:
            break
        place = following
    found.torn_bytes = len(content) - found.end
    return found


def _read(content: bytes, place: int, salt: int) -> tuple[Record, int, int] | None:
    if place + RECORD_HEADER_BYTES > len(content):
        return None
    mark, fields_bytes, data_bytes, number, checksum = _RECORD.unpack_from(content, place)
    start = place + RECORD_HEADER_BYTES
    end = start + fields_bytes + data_bytes
    if mark != _MARK or fields_bytes > MAX_FIELDS_BYTES or end > len(content):
        return None
    head = _RECORD.pack(mark, fields_bytes, data_bytes, number, 0)
    if zlib.crc32(content[start:end], zlib.crc32(head, salt)) != checksum:
        return None
    kind, fields = json.loads(content[start : start + fields_bytes])
    return Record(kind, fields, content[start + fields_bytes : end]), number, end
