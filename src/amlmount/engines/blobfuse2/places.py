"""Where the blobfuse2 engine keeps things: configurations with secrets in memory, caches by what they may hold.

A cache that can hold what is nowhere else lies in the state directory, on a lasting disk: the temporary disk of an
Azure machine is emptied whenever it stops.
"""

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from amlmount.config.locations import Locations
from amlmount.config.spec import MountSpec
from amlmount.recovery import Folder, file_name_of, read_folder

NAME = "blobfuse2"
MARKER = "cache"  # holds the path of the instance's directory


@dataclass(frozen=True, slots=True)
class Places:
    """Directories of one daemon; all are made when needed, mode 0700."""

    runtime_dir: str
    state_dir: str
    cache_root: str
    log_dir: str

    @classmethod
    def of(cls, locations: Locations, log_dir: str) -> "Places":
        """Return the places of a daemon."""
        return cls(str(locations.runtime_dir), str(locations.state_dir), str(locations.cache_root), log_dir)

    def lasting_base(self, mount: str) -> str:
        """Return where caches of a writable mount are."""
        return os.path.join(self.state_dir, NAME, file_name_of(mount))

    def passing_base(self, mount: str) -> str:
        """Return where caches of a mount are that nobody would miss, and of a writable one if there is no room else."""
        return os.path.join(self.cache_root, NAME, file_name_of(mount))

    def cache_bases(self, spec: MountSpec) -> list[str]:
        """Return where the cache of `spec` may go, the best place first."""
        if not spec.read_only:
            return [self.lasting_base(spec.name), self.passing_base(spec.name)]
        return [os.path.join(spec.cache_dir, NAME) if spec.cache_dir else self.passing_base(spec.name)]

    def all_bases(self, spec: MountSpec) -> list[str]:
        """Return where this and earlier runs of a mount may have their caches."""
        bases = [self.lasting_base(spec.name), self.passing_base(spec.name), *self.cache_bases(spec)]
        return list(dict.fromkeys(bases))

    def running(self) -> Iterator[Folder]:
        """Yield the instances that this daemon or one before it has started and not put away."""
        for marker in glob.iglob(os.path.join(glob.escape(self.runtime_dir), NAME, "*", "*", MARKER)):
            with contextlib.suppress(OSError), open(marker) as file:
                if (found := read_folder(file.read())) is not None:
                    yield found

    def tidy(self, mount: str) -> None:
        """Remove configurations of runs of a mount that are dead: there are secrets in them."""
        base = self.runtime_base(mount)
        for marker in glob.glob(os.path.join(glob.escape(base), "*", MARKER)):
            with open(marker) as file:
                found = read_folder(file.read())
            if found is None or not found.instance.alive:
                shutil.rmtree(os.path.dirname(marker), ignore_errors=True)

    def runtime_base(self, mount: str) -> str:
        """Return where configurations and working directories of a mount are."""
        return os.path.join(self.runtime_dir, NAME, file_name_of(mount))

    def log_path(self, mount: str) -> str:
        """Return blobfuse2's own log; it rotates it."""
        return os.path.join(self.log_dir, f"{file_name_of(mount)}.log")

    def output_path(self, mount: str) -> str:
        """Return what blobfuse2 writes to its standard output and error: errors of a start, the stack of a crash."""
        return os.path.join(self.log_dir, f"{file_name_of(mount)}.out")

    def afterlife_log_path(self, mount: str) -> str:
        """Return what processes write that serve what a dead blobfuse2 left open."""
        return os.path.join(self.log_dir, f"{file_name_of(mount)}.afterlife.log")
