"""Puts the stand-in where a test's PATH finds it, with the directory that holds its containers, and faults on demand.

It runs under the name `blobfuse2` with an interpreter that has mfusepy; nothing reaches it by the environment, which
whoever starts blobfuse2 scrubs: what it has to know lies in `blobfuse2.json` beside it.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Installed:
    """An installed stand-in. Each container is a directory below `containers`; the other two files are switches."""

    folder: Path

    @property
    def binary(self) -> Path:
        """What to start."""
        return self.folder / "blobfuse2"

    @property
    def containers(self) -> Path:
        """The storage account."""
        return self.folder / "containers"

    @property
    def uploads_fail(self) -> Path:
        """While this file exists every upload fails."""
        return self.folder / "uploads-fail"

    @property
    def downloads_stop(self) -> Path:
        """While this file exists a download stops after its first 4 MiB."""
        return self.folder / "downloads-stop"

    @property
    def store_hangs(self) -> Path:
        """While this file exists whatever needs the store waits."""
        return self.folder / "store-hangs"


def install_standin(folder: Path) -> Installed:
    """Install the stand-in into `folder` (made if it is not there) and return it."""
    made = Installed(folder)
    made.containers.mkdir(parents=True)
    made.binary.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(HERE.parent)!r})\n"
        "from standin.command import main\nmain(sys.argv[1:])\n"
    )
    made.binary.chmod(0o755)
    switches = {
        name: str(getattr(made, name)) for name in ("containers", "uploads_fail", "downloads_stop", "store_hangs")
    }
    (folder / "blobfuse2.json").write_text(json.dumps(switches))
    return made
