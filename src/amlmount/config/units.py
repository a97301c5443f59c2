"""Sizes and durations as people write them, and back: "512MiB", "1.5GB", "80%", "30s", "2h".

A bare number is refused (seconds or minutes? bytes or megabytes?), except 0.
"""

import re
from dataclasses import dataclass
from decimal import Decimal

_SIZE_UNITS = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "PiB": 1 << 50,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "PB": 10**15,
}
_SIZE_BY_LOWER = {unit.lower(): factor for unit, factor in _SIZE_UNITS.items()}
_DURATION_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}

SIZE_MAX_BYTES = (1 << 63) - 1
DURATION_MAX_S = 100 * 366 * 86400.0

NUMBER = r"[0-9]+(?:\.[0-9]+)?"
SIZE_PATTERN = rf"^0$|^{NUMBER} ?([KMGTPkmgtp][Ii]?)?[Bb]$"
PERCENT_PATTERN = r"^(?:100(?:\.0+)?|[0-9]{1,2}(?:\.[0-9]+)?) ?%$"
DURATION_PATTERN = rf"^0$|^(?:{NUMBER}(?:ms|[smhdw]))+$"

_SIZE_HINT = "write a number and a unit: KiB MiB GiB TiB (1024) or KB MB GB TB (1000), as in 512MiB"
_DURATION_HINT = "write a number and a unit: ms s m h d w, as in 30s, 5m or 1h30m"


@dataclass(frozen=True, order=True)
class Percent:
    """A share of something that is known only later, such as a disk: 0 to 100."""

    value: float

    def of(self, total: int) -> int:
        """Return this share of `total`, rounded down."""
        return int(Decimal(str(self.value)) * total / 100)


def parse_size(text: object) -> int:
    """Return bytes; raises ValueError whose text ends in what to write instead."""
    written = _written(text)
    if written == "0":
        return 0
    match = re.fullmatch(rf"({NUMBER})\s?([A-Za-z]+)", written)
    factor = _SIZE_BY_LOWER.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{written!r} is not a size; {_bare(written, 'MiB') or _SIZE_HINT}")
    size_bytes = int(Decimal(match[1]) * factor)
    if size_bytes > SIZE_MAX_BYTES:
        raise ValueError(f"{written!r} is more than any disk has; write less than 8192PiB")
    return size_bytes


def parse_size_or_percent(text: object) -> int | Percent:
    """Return bytes, or the share that "80%" stands for; raises ValueError."""
    return parse_percent(text) if _written(text).endswith("%") else parse_size(text)


def parse_percent(text: object) -> Percent:
    """Return the share that "5%" stands for; raises ValueError."""
    written = _written(text)
    number = written.removesuffix("%").strip()
    if not written.endswith("%"):
        raise ValueError(f"{written!r} is not a share; write 0% to 100%")
    if not re.fullmatch(NUMBER, number) or Decimal(number) > 100:
        raise ValueError(f"{written!r} is not a share; write 0% to 100%")
    return Percent(float(number))


def parse_duration(text: object) -> float:
    """Return seconds, exact to the millisecond; raises ValueError whose text ends in what to write instead."""
    written = _written(text)
    if written == "0":
        return 0.0
    parts = re.findall(rf"({NUMBER})(ms|[smhdw])", written)
    if not parts or "".join(number + unit for number, unit in parts) != written:
        raise ValueError(f"{written!r} is not a duration; {_bare(written, 's') or _DURATION_HINT}")
    duration_s = sum(Decimal(number) * _DURATION_MS[unit] for number, unit in parts) / 1000
    if duration_s > DURATION_MAX_S:
        raise ValueError(f"{written!r} is longer than a hundred years; write less")
    return float(duration_s)


def format_size(size: int | Percent) -> str:
    """Write a size so that parsing gives it back: the shortest exact form."""
    if isinstance(size, Percent):
        return f"{Decimal(str(size.value)).normalize():f}%"
    if size == 0:
        return "0"
    exact = [f"{size // factor}{unit}" for unit, factor in _SIZE_UNITS.items() if size % factor == 0]
    return min(exact, key=len)


def format_duration(duration_s: float) -> str:
    """Write a duration so that parsing gives it back, to the millisecond: the largest unit that fits exactly."""
    left_ms = round(duration_s * 1000)
    if left_ms == 0:
        return "0"
    unit = next(unit for unit in ("d", "h", "m", "s", "ms") if left_ms % _DURATION_MS[unit] == 0)
    return f"{left_ms // _DURATION_MS[unit]}{unit}"


def _written(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"a {type(value).__name__} where a number with its unit is expected")
    return str(value).strip()


def _bare(written: str, unit: str) -> str:
    return f"a number needs its unit, as in {written}{unit}" if re.fullmatch(NUMBER, written) else ""


def counted(number: int, what: str) -> str:
    """Write how many there are of something: `1 file`, `2,000 files`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def rough_size(size_bytes: int) -> str:
    """Write a size for people: `0 B`, `10.7 GB`, three digits at most."""
    size, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
