"""The one rule that says which blob names appear as files and directories, and why the others do not.

Pure: it knows strings and bytes, no store and no tree. docs/semantics.md states the rule in prose.
"""

import enum

MAX_SEGMENT_BYTES = 1024  # FUSE_NAME_MAX, fs/fuse/fuse_i.h: the kernel refuses longer names


class HiddenReason(enum.Enum):
    """Why a blob is not shown. The value is a phrase that fits after `hidden: `."""

    EMPTY_SEGMENT = "empty path segment (`a//b`, `/a`)"
    DOT_SEGMENT = "path segment `.` or `..`"
    NUL = "NUL character in the name"
    TOO_LONG = "path segment longer than 1,024 bytes"
    NOT_UTF8 = "name that UTF-8 cannot express"
    SHADOWED = "a directory has the same name"
    MARKER_WITH_DATA = "name ends in `/` but the blob is not empty"


_DOTS = (".", "..")


def encode_segment(segment: str) -> bytes | HiddenReason:
    """Return the file name of one `/`-free segment of a blob name, or why it cannot be one.

    Surrogate escapes stand for the bytes of a local name that is not UTF-8 and come out as those bytes.
    """
    if segment.isascii() and "\0" not in segment and 0 < len(segment) <= MAX_SEGMENT_BYTES and segment not in _DOTS:
        return segment.encode("ascii")  # nearly all names: this runs once for every blob of a listing
    try:
        name = segment.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return HiddenReason.NOT_UTF8
    if not name:
        return HiddenReason.EMPTY_SEGMENT
    if segment in _DOTS:
        return HiddenReason.DOT_SEGMENT
    if b"\0" in name:
        return HiddenReason.NUL
    if len(name) > MAX_SEGMENT_BYTES:
        return HiddenReason.TOO_LONG
    if decode_segment(name) != segment:
        return HiddenReason.NOT_UTF8  # escapes that spell valid UTF-8: two names for one file
    return name


def decode_segment(name: bytes) -> str:
    """Return the segment that `encode_segment` made this file name of."""
    return name.decode("utf-8", "surrogateescape")
