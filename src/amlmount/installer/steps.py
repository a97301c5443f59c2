"""The steps a plan is made of: data only, printable as commands and as JSON; `apply` carries them out.

`why` is a clause for people: what the step is for.
"""

import shlex
from dataclasses import dataclass, fields
from typing import Any

from amlmount.installer.record import FileState


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Write a file whole (an existing one is replaced, and kept for the way back)."""

    path: str
    content: str
    why: str
    mode: int = 0o644

    @property
    def text(self) -> str:
        """One line for people."""
        return f"write {self.path}"


@dataclass(frozen=True, slots=True)
class FetchKey:
    """Bring a repository's public key; `fingerprint` must be its (None: any, it is shown)."""

    url: str
    path: str
    fingerprint: str | None
    why: str

    @property
    def text(self) -> str:
        """One line for people."""
        return f"fetch {self.url} to {self.path}"


@dataclass(frozen=True, slots=True)
class MakeDir:
    """Make a directory (parents too) with an owner and a mode."""

    path: str
    why: str
    mode: int = 0o755

    @property
    def text(self) -> str:
        """One line for people."""
        return f"mkdir -m {self.mode:o} -p {self.path}"


@dataclass(frozen=True, slots=True)
class Link:
    """Make a symbolic link, replacing a link that points elsewhere."""

    path: str
    target: str
    why: str

    @property
    def text(self) -> str:
        """One line for people."""
        return f"ln -s {self.target} {self.path}"


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a file or link, or a directory if it is empty."""

    path: str
    why: str
    is_directory: bool = False

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{'rmdir' if self.is_directory else 'rm'} {self.path}"


@dataclass(frozen=True, slots=True)
class Restore:
    """Put back what was at a path before we changed it (None: nothing)."""

    path: str
    before: FileState | None
    why: str

    @property
    def text(self) -> str:
        """One line for people."""
        return f"restore {self.path}" if self.before is not None else f"rm {self.path}"


@dataclass(frozen=True, slots=True)
class Command:
    """Run a program. `undo` takes it back if a later step fails, `keep_undo` remembers that for uninstall.

    `changes_packages`: what it installs and removes is seen in dpkg's state and taken back from there.
    `may_fail`: a failure is told and the plan goes on.
    """

    argv: tuple[str, ...]
    why: str
    timeout_s: float = 120.0
    undo: tuple[str, ...] = ()
    changes_packages: bool = False
    may_fail: bool = False

    @property
    def text(self) -> str:
        """One line for people, fit for a shell."""
        return shlex.join(self.argv)


Step = WriteFile | FetchKey | MakeDir | Link | Remove | Restore | Command


def to_json(step: Step) -> dict[str, Any]:
    """Return a step as JSON-able data: its kind, the line for people, and its fields (not the bytes it puts back)."""
    values = {field.name: getattr(step, field.name) for field in fields(step) if field.name != "before"}
    shown = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {"kind": type(step).__name__, "text": step.text} | shown
