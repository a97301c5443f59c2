"""Which amlmount a process runs: the version, and a stamp of the code it loaded, which tells one build from another.

An upgrade changes the files under a process that goes on with what it has loaded.
"""

import os
from dataclasses import dataclass
from hashlib import blake2b

import amlmount


@dataclass(frozen=True, slots=True)
class Program:
    """A build of amlmount."""

    version: str
    stamp: str

    @property
    def text(self) -> str:
        """`0.1.0 (3f2a91c4)`."""
        return f"{self.version} ({self.stamp})"


def installed() -> Program:
    """Return the amlmount that a process would load if it began now."""
    folder = os.path.dirname(os.path.abspath(amlmount.__file__))
    return Program(_version_in(folder), _stamp(folder))


def _version_in(folder: str) -> str:
    """Read it from the file: what this process has imported may be older."""
    with open(os.path.join(folder, "__init__.py"), encoding="utf-8") as file:
        lines = [line for line in file if line.startswith("__version__")]
    return lines[0].split('"')[1] if lines else amlmount.__version__


def _stamp(folder: str) -> str:
    digest = blake2b(digest_size=4)
    for top, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(name for name in names if name.endswith(".py")):
            about = os.stat(os.path.join(top, name))
            digest.update(f"{os.path.relpath(top, folder)}/{name} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


LOADED = installed()
