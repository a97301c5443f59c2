"""Finding blobfuse2 and finding out which one it is.

It must be called `blobfuse2`: it looks for itself by that name (`pidof`) before it takes a mount for a stale one.
"""

import functools
import os
import re
import shutil
from dataclasses import dataclass

from amlmount.errors import AmlmountError, ConfigError
from amlmount.run import base_env, run

VARIABLE = "AMLMOUNT_BLOBFUSE2"
NAME = "blobfuse2"
VERSION_TIMEOUT_S = 10.0
# `mount /dev/fd/N` has been served since libfuse3 is in it; older ones were never tried.
OLDEST = (2, 1, 0)
# Log lines come to standard output where no syslog runs, before and after the answer.
_VERSION = re.compile(r"^blobfuse2 version:? (\d+)\.(\d+)\.(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Binary:
    """A blobfuse2 that runs on this machine."""

    path: str
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        """`2.5.6`."""
        return ".".join(map(str, self.version))


def find_binary() -> Binary | None:
    """Return the blobfuse2 that AMLMOUNT_BLOBFUSE2 names, else the one on PATH; None if there is none.

    Raises ConfigError for one that is named and not there or not called so, AmlmountError for one that does not run.
    """
    named = os.environ.get(VARIABLE)
    path = named or shutil.which(NAME)
    if not path:
        return None
    path = os.path.realpath(path) if os.path.basename(os.path.realpath(path)) == NAME else os.path.abspath(path)
    if os.path.basename(path) != NAME or not os.access(path, os.X_OK):
        raise ConfigError(
            f"cannot use '{path}' as blobfuse2: it is not a program of that name",
            hint=f"{VARIABLE} must name the program itself, and its file must be called blobfuse2",
        )
    return examine(path)


def examine(path: str) -> Binary:
    """Return what the program at `path` is. Raises AmlmountError if it does not run, or is too old."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise AmlmountError(f"cannot examine '{path}': {error.strerror}") from None
    return _examined(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _examined(path: str, mtime_ns: int, size_bytes: int) -> Binary:
    del mtime_ns, size_bytes  # a new file under the old name is asked again
    argv = [path, "--version", "--disable-version-check=true"]
    done = run(argv, timeout_s=VERSION_TIMEOUT_S, env=base_env(), cwd="/")
    found = _VERSION.search(done.text)
    if found is None:
        raise AmlmountError(f"cannot tell the version of '{path}'", hint=f"it says: {done.last_words}")
    version = int(found[1]), int(found[2]), int(found[3])
    if version < OLDEST:
        raise AmlmountError(
            f"cannot use '{path}': it is version {'.'.join(map(str, version))}",
            hint="install a current one: amlmount install",
        )
    return Binary(path, version)
