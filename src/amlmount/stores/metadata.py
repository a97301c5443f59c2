"""What this program writes into a blob's metadata, as text: the time of its content, as rclone writes it too.

Nothing here decides what is written where.
"""

import re
from calendar import timegm
from time import gmtime, strptime

MTIME = "mtime"
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")
_NS = 1_000_000_000


def format_mtime(mtime_ns: int) -> str:
    """Return nanoseconds since the epoch as RFC 3339 text, in UTC (rclone's key `mtime` of an Azure blob)."""
    seconds, ns = divmod(mtime_ns, _NS)
    moment = gmtime(seconds)
    day = f"{moment.tm_year:04}-{moment.tm_mon:02}-{moment.tm_mday:02}"
    return f"{day}T{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}.{ns:09}Z"


def parse_mtime(text: str) -> int | None:
    """Return what `format_mtime` was given, None for text that is no time of ours or rclone's."""
    found = _RFC3339.fullmatch(text)
    if not found:
        return None
    try:
        seconds = timegm(strptime(found[1], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
    return seconds * _NS + int((found[2] or "0").ljust(9, "0"))
