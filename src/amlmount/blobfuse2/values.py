"""Checks of a single value against its row of the table: type, allowed words, range.

blobfuse2 coerces silently (`"77"`, 1.5, -1 as 4294967295); here a value is what it should be or it is a problem.
"""

import difflib
import re
from collections.abc import Callable

from amlmount.blobfuse2.key import Key
from amlmount.blobfuse2.problem import Problem

_DURATION = re.compile(r"^(\d+(\.\d+)?(ns|us|ms|s|m|h))+$")


def check_value(key: Key, value: object) -> list[Problem]:
    """Return what is wrong with `value` for `key`, worst first; empty = good."""
    return _CHECKS[key.kind](key, value)


def _shown(key: Key, value: object) -> str:
    return "the value" if key.secret else repr(value)


def _wrong(key: Key, value: object, expected: str) -> list[Problem]:
    unit = f" ({key.unit})" if key.unit else ""
    return [Problem(key.path, f"{_shown(key, value)} is not {expected}{unit}")]


def _bool(key: Key, value: object) -> list[Problem]:
    return [] if isinstance(value, bool) else _wrong(key, value, "true or false")


def _number(key: Key, value: object) -> list[Problem]:
    kinds: tuple[type, ...] = (int, float) if key.kind == "float" else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds):
        return _wrong(key, value, "a number" if key.kind == "float" else "a whole number")
    assert isinstance(value, int | float)
    # Written this way round so that NaN fails too.
    if (key.minimum is not None and not value >= key.minimum) or (key.maximum is not None and not value <= key.maximum):
        return _wrong(key, value, _range(key))
    return []


def _range(key: Key) -> str:
    if key.maximum is None:
        return f"{key.minimum:g} or more"
    return f"between {key.minimum or 0:.10g} and {key.maximum:.10g}"


def _text(key: Key, value: object) -> list[Problem]:
    if not isinstance(value, str):
        return _wrong(key, value, "text; put it in quotes")
    return _word(key, value) if key.allowed else []


def _word(key: Key, value: str) -> list[Problem]:
    if value.lower() in key.allowed:
        return []
    near = difflib.get_close_matches(value.lower(), key.allowed, n=1)
    hint = f"did you mean {near[0]}?" if near else ""
    return [Problem(key.path, f"{value!r} is not one of {', '.join(key.allowed)}", hint)]


def _path(key: Key, value: object) -> list[Problem]:
    if not isinstance(value, str):
        return _wrong(key, value, "a path")
    if not value.isprintable():
        return [Problem(key.path, f"{value!r} has control characters in it")]
    if "$" in value:
        return [
            Problem(key.path, f"{value!r}: blobfuse2 expands $NAME in it, and an unset one vanishes", "write it out")
        ]
    return []


def _mode(key: Key, value: object) -> list[Problem]:
    if isinstance(value, str) and re.fullmatch(r"0o?[0-7]{3}", value):
        return []
    if isinstance(value, bool) or not isinstance(value, int):
        return _wrong(key, value, "a mode such as 0644")
    written = int(str(value), 8) if re.fullmatch(r"[0-7]{3}", str(value)) else None
    if 0 <= value <= 0o777 and (_narrows(value) or written is None or not _narrows(written)):
        return []
    hint = f"write it with a leading 0: 0{value}" if written is not None else "write it as in 0644"
    return [Problem(key.path, f"{value} is decimal, which is mode {value:04o}", hint)]


def _umask(key: Key, value: object) -> list[Problem]:
    if isinstance(value, bool) or not isinstance(value, int):
        return _wrong(key, value, "a mask such as 22")
    written = int(str(value), 8) if re.fullmatch(r"[0-7]{1,3}", str(value)) else None
    if written is not None and (_narrows(~written & 0o777) or not _narrows(~value & 0o777)):
        return []
    message = "is read by its decimal digits, and a leading 0 makes YAML hand over other ones"
    return [Problem(key.path, f"{value} {message}", f"for {value:04o} write {value:o}")]


def _narrows(mode: int) -> bool:
    """Tell whether the group may no more than the owner and the others no more than the group: a mode people mean.

    YAML hands over a number without its leading 0, so what was written can only be guessed from what makes sense.
    """
    owner, group, other = mode >> 6 & 7, mode >> 3 & 7, mode & 7
    return mode <= 0o777 and group & ~owner == 0 and other & ~group == 0


def _list(key: Key, value: object) -> list[Problem]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        return _wrong(key, value, "a list of names")
    return [problem for item in value for problem in (_word(key, item) if key.allowed else [])]


def _duration(key: Key, value: object) -> list[Problem]:
    good = isinstance(value, str) and _DURATION.match(value)
    return [] if good else _wrong(key, value, "a duration such as 30s")


_CHECKS: dict[str, Callable[[Key, object], list[Problem]]] = {
    "bool": _bool,
    "int": _number,
    "float": _number,
    "str": _text,
    "path": _path,
    "mode": _mode,
    "umask": _umask,
    "list": _list,
    "duration": _duration,
}
