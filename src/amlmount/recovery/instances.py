"""Where an instance of blobfuse2 keeps its cache, and what is written down beside it for whoever comes after a crash.

`BASE/run-ID/{instance.json,data/}` while it serves, `BASE/aside-TIME-ID/` once it is dead: a name is never used twice,
so no late or new blobfuse2 can wipe what another one left.
"""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from amlmount.mounts import read_mounts
from amlmount.run import is_same_process, start_time_ticks

log = logging.getLogger(__name__)

RUNNING, ASIDE = "run-", "aside-"
RECORD, DATA, TRASH, REPORT, LOCK = "instance.json", "data", "trash", "report.json", "lock"
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class Instance:
    """One run of blobfuse2. `store` is the store's definition (secrets as references), `path` the prefix mounted.

    `cache` is the component that keeps data (`file_cache`, `block_cache`, `xload`). `cache_bytes` and `memory_bytes`
    are what it may take. `crashed`: it ended before it could empty its cache. `owner_*` is who made this record, `pid`
    the blobfuse2 itself once it runs. `covers`: ids of silent mounts of dead ones that lie below its own.
    """

    mount: str
    target: str
    store: dict[str, Any]
    path: str
    read_only: bool
    allow_other: bool
    cache: str
    cache_bytes: int
    memory_bytes: int
    boot_id: str = ""
    owner_pid: int = 0
    owner_start_time: int = 0
    pid: int = 0
    pid_start_time: int = 0
    ended_at_s: float = 0.0
    crashed: bool = False
    trash_after_s: float = 7 * 86400.0
    covers: tuple[int, ...] = ()

    @property
    def may_be_dirty(self) -> bool:
        """Say whether its directory can hold what is nowhere else: block_cache and read-only mounts hold copies."""
        return not self.read_only and self.cache == "file_cache"

    @property
    def alive(self) -> bool:
        """Say whether it runs, or is just being started."""
        if self.boot_id != current_boot_id():
            return False
        if self.pid:
            return is_same_process(self.pid, self.pid_start_time)
        return is_same_process(self.owner_pid, self.owner_start_time)


@dataclass(frozen=True, slots=True)
class Folder:
    """A directory of one instance, with the record in it."""

    path: str
    instance: Instance

    @property
    def data(self) -> str:
        """The cache that blobfuse2 was given."""
        return os.path.join(self.path, DATA)

    @property
    def trash(self) -> str:
        """What is kept for some days although nobody should miss it."""
        return os.path.join(self.path, TRASH)

    def note(self, **changes: Any) -> "Folder":
        """Write down changed facts (atomically) and return the folder with them."""
        changed = replace(self, instance=replace(self.instance, **changes))
        draft = os.path.join(self.path, f"{RECORD}.new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w") as file:
            json.dump(asdict(changed.instance), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, os.path.join(self.path, RECORD))
        return changed

    def has_files(self) -> bool:
        """Say whether anything but directories lies in the cache."""
        return any(names for _, _, names in os.walk(self.data))

    def set_aside(self) -> "Folder":
        """Rename it, so that everybody sees it is dead; on the same file system, so nothing is copied."""
        base, name = os.path.split(self.path)
        if not name.startswith(RUNNING):
            return self
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = os.path.join(base, f"{ASIDE}{stamp}-{name.removeprefix(RUNNING)}")
        os.rename(self.path, aside)
        return Folder(aside, self.instance).note(ended_at_s=time.time(), crashed=True)

    def remove(self) -> None:
        """Remove it with all that is in it: for what is known to hold nothing of value."""
        remove_tree(self.path)


def current_boot_id() -> str:
    """Return the id of this boot of the kernel (random(4)): after the next, pids mean nothing."""
    with open(BOOT_ID) as file:
        return file.read().strip()


def file_name_of(mount: str) -> str:
    """Return a mount's name as the name of a file; `everything/logs` is one of a group."""
    return mount.replace("/", ":")


def make_running(base: str, instance: Instance) -> Folder:
    """Make the directory of a new instance below `base` (0700 all the way) and write its record."""
    os.makedirs(base, mode=0o700, exist_ok=True)
    os.chmod(base, 0o700)
    path = os.path.join(base, f"{RUNNING}{time.time_ns():x}")
    os.mkdir(path, 0o700)
    os.mkdir(os.path.join(path, DATA), 0o700)
    me = os.getpid()
    owner = {"owner_pid": me, "owner_start_time": start_time_ticks(me) or 0, "boot_id": current_boot_id()}
    return Folder(path, instance).note(**owner)


def make_aside(running: Folder) -> Folder:
    """Make a second, empty directory for what of `running` must survive its clean end."""
    base, name = os.path.split(running.path)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = os.path.join(base, f"{ASIDE}{stamp}-{name.removeprefix(RUNNING)}-kept")
    os.makedirs(os.path.join(path, DATA), mode=0o700, exist_ok=True)
    return Folder(path, running.instance).note(ended_at_s=time.time())


def find_folders(base: str, prefix: str) -> Iterator[Folder]:
    """Yield the instances below `base` whose name begins so, oldest first; what has no record is passed over."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(base)):
            path = os.path.join(base, name)
            if name.startswith(prefix) and (found := read_folder(path)) is not None:
                yield found


def read_folder(path: str) -> Folder | None:
    """Return the instance in a directory, None if there is no record in it that can be read."""
    try:
        with open(os.path.join(path, RECORD)) as file:
            data = json.load(file)
        known = {item.name for item in fields(Instance)}
        return Folder(path, Instance(**{key: value for key, value in data.items() if key in known}))
    except (OSError, ValueError, TypeError) as error:
        log.debug("%s holds no instance: %s", path, error)
        return None


def remove_tree(path: str) -> None:
    """Remove a directory, unless a mount lies in it or anything below it is on another device.

    Deleting through a live mount would delete blobs.
    """
    below = [entry.mount_point for entry in read_mounts() if f"{entry.mount_point}/".startswith(f"{path}/")]
    if below:
        log.error("not removing %s: %s is mounted in it", path, below[0])
        return
    with contextlib.suppress(FileNotFoundError):
        device = os.lstat(path).st_dev
        for top, names, _ in os.walk(path):
            names[:] = [name for name in names if os.lstat(os.path.join(top, name)).st_dev == device]
            if os.lstat(top).st_dev != device:
                log.error("not removing %s: %s is on another device", path, top)
                return
        shutil.rmtree(path, ignore_errors=True)
