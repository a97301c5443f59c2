"""What the caller of `amlmount install` asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from amlmount.installer import paths
from amlmount.installer.needs import Needs

MICROSOFT = "https://packages.microsoft.com"


class WantedEngine(StrEnum):
    """For which engine the machine is made ready; python needs FUSE and nothing of Microsoft's."""

    BLOBFUSE2 = "blobfuse2"
    PYTHON = "python"


class Channel(StrEnum):
    """Which builds of blobfuse2."""

    STABLE = "stable"
    PREVIEW = "preview"

    @property
    def package(self) -> str:
        """The name of the package."""
        return "blobfuse2" if self is Channel.STABLE else "blobfuse2-preview"

    @property
    def other(self) -> "Channel":
        """The other one: both packages hold the same files, so only one can be there."""
        return Channel.PREVIEW if self is Channel.STABLE else Channel.STABLE


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options. `version`: exactly this one, and held at it. `offline_dir`: a folder of .deb files, no network.

    `repo_url` replaces Microsoft's package host; `key_file` is then the key it signs with, if it is not Microsoft's.
    `service`: set up the system's daemon, and start it; it runs `program`. `completions`: scripts by shell.
    """

    engine: WantedEngine = WantedEngine.BLOBFUSE2
    version: str | None = None
    channel: Channel = Channel.STABLE
    offline_dir: str | None = None
    repo_url: str = MICROSOFT
    key_file: str | None = None
    lock_timeout_s: float = 600.0
    service: Literal["no", "yes", "start"] = "no"
    program: str = paths.PROGRAM
    completions: Mapping[str, str] = field(default_factory=dict)
    needs: Needs = field(default_factory=Needs)

    @property
    def is_microsofts(self) -> bool:
        """Say whether packages come from Microsoft's own host, whose key is known."""
        return self.repo_url.rstrip("/") == MICROSOFT
