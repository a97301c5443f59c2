"""The shape of one row of the table: what a blobfuse2 key is, and which of our own settings decides it.

The rows themselves stand in the `*_keys` modules, a section each; `table` puts them together.
"""

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["bool", "int", "float", "str", "path", "mode", "umask", "list", "duration"]
Status = Literal["current", "v1", "ignored", "flag", "testing", "removed"]
Value = bool | int | float | str | tuple[str, ...]

UINT16_MAX = 2**16 - 1
UINT32_MAX = 2**32 - 1
INT32_MAX = 2**31 - 1
FIRST_RELEASE = "2.0.0"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of blobfuse2's YAML.

    `default` is blobfuse2's own; where it is computed at mount time it is None and `default_text` says how.
    `minimum` and `maximum` are what it takes without misreading (it wraps -1 to 4294967295). `since` is the release
    that brought it, `until` the last one that read it. `hot` keys are applied by a reload; `reset` ones fall back
    to zero at any reload when they are missing. `owner` is the setting of ours that decides it: such a key cannot be
    overridden. `warn` is what goes wrong with those who set it.
    """

    name: str
    kind: Kind
    doc: str
    default: Value | None = None
    default_text: str = ""
    unit: str = ""
    allowed: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    since: str = FIRST_RELEASE
    until: str = ""
    status: Status = "current"
    secret: bool = False
    hot: bool = False
    reset: bool = False
    conflicts: tuple[str, ...] = ()
    env: str = ""
    flag: str = ""
    owner: str = ""
    instead: str = ""
    warn: str = ""
    section: str = ""

    @property
    def path(self) -> str:
        """`section.name`, or the bare name at the top level."""
        return f"{self.section}.{self.name}" if self.section else self.name


def section(name: str, *rows: Key) -> tuple[Key, ...]:
    """Return `rows` as the keys of section `name` (`""` = top level)."""
    return tuple(replace(row, section=name) for row in rows)
