"""The frame: what a check returns, and running them all so that one that breaks does not hide the others."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from amlmount.errors import AmlmountError

# ok: as it should be; info: good to know; warn: works, but something will hurt; fail: mounting cannot work.
Level = Literal["ok", "info", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` is what to do, a command where there is one."""

    name: str
    level: Level
    text: str
    fix: str | None = None

    def to_json(self) -> dict[str, str | int | None]:
        """Return it as JSON-able data."""
        return {"schema_version": 1, **asdict(self)}


Check = Callable[[], list[Finding]]


def examine(checks: Iterable[Check]) -> list[Finding]:
    """Run the checks in order. A check that fails itself becomes a finding of its own."""
    found: list[Finding] = []
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            found += check()
        except AmlmountError as error:
            found.append(Finding(name, "warn", error.message, error.hint))
        except Exception as error:
            found.append(Finding(name, "warn", f"cannot check: {type(error).__name__}: {error}", "please report it"))
    return found
