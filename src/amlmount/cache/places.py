"""One directory for the cache of each mount: what it is called, how it is made, how it is known again.

`<root>/<daemon>/<mount>-<hash of what it shows>`, mode 0700, with a file `about.json` that proves that it is ours.
What else is in it, `docs/cache.md` says.
"""

import fcntl
import json
import os
import secrets
import stat
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from amlmount.config.locations import Locations
from amlmount.config.spec import MountSpec
from amlmount.errors import ConfigError

ABOUT = "about.json"
LOCK = "lock"
FORMAT = "amlmount cache"
SESSION = "session-"


@dataclass(frozen=True, slots=True)
class About:
    """What a cache directory says of itself. `session`: of a mount that belongs to one process."""

    mount: str
    source: str
    session: bool = False
    format: str = FORMAT


def daemon_id(places: Locations) -> str:
    """Name a daemon for the disk: `system` or `user-UID`, with a hash if it has a runtime directory of its own."""
    uid = os.geteuid()
    base = "system" if places.is_system else f"user-{uid}"
    usual = {"/run/amlmount"} if places.is_system else {f"/run/user/{uid}/amlmount", f"/tmp/amlmount-{uid}"}
    if str(places.runtime_dir) in usual | {os.path.join(os.environ.get("XDG_RUNTIME_DIR", "/"), "amlmount")}:
        return base
    return f"{base}-{blake2b(os.fsencode(places.runtime_dir), digest_size=4).hexdigest()}"


def daemon_directory(root: str, places: Locations) -> str:
    """Return where the caches of a daemon's mounts are below `root`."""
    return os.path.join(root, daemon_id(places))


def make_daemon_directory(path: str) -> None:
    """Make a directory that only we can enter and write in. Raises OSError, ConfigError if it is somebody else's."""
    root = os.path.dirname(path)
    os.makedirs(root, mode=0o755, exist_ok=True)
    _check_owner(root)
    make_own_directory(path)
    probe = os.path.join(path, f".writable-{secrets.token_hex(4)}")
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    os.unlink(probe)


def _check_owner(root: str) -> None:
    """Whoever owns the directory above ours, or may rename in it, could put another one in the place of ours."""
    found = os.stat(root)
    who_else = stat.S_IMODE(found.st_mode) & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH
    if found.st_uid not in (0, os.geteuid()) or who_else:
        what = "everybody can write in it" if who_else else f"it belongs to user {found.st_uid}"
        hint = "choose a directory that is yours or root's, or set its sticky bit (chmod +t)"
        raise ConfigError(f"cannot use '{root}' for caches: {what}", hint=hint)


def make_own_directory(path: str) -> None:
    """Make one directory with mode 0700, or see that it is that. Raises OSError, ConfigError if it is not ours."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            what = f"it belongs to user {found.st_uid}" if stat.S_ISDIR(found.st_mode) else "it is no directory"
            raise ConfigError(
                f"cannot use the cache '{path}': {what}", hint="remove it, or set cache.root to another place"
            ) from None
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.chmod(path, 0o700)


def source_identity(spec: MountSpec) -> str:
    """Name what a mount shows: its sources, less how one logs in. Another source is another text."""
    sources = [source.model_dump(mode="json", exclude={"store_name"}) for source in spec.sources]
    for source in sources:
        source["store"] = {key: value for key, value in source["store"].items() if key != "credentials"}
    return blake2b(json.dumps(sources, sort_keys=True).encode(), digest_size=6).hexdigest()


def directory_name(spec: MountSpec) -> str:
    """Return the name of the cache directory of a daemon's mount: the same as long as it shows the same."""
    return f"{spec.name.replace('/', ':')}-{source_identity(spec)}"


def mount_directory(root: str, places: Locations, spec: MountSpec) -> str:
    """Return where the cache of a daemon's mount is below `root`."""
    return os.path.join(daemon_directory(root, places), directory_name(spec))


def session_directory(root: str, places: Locations) -> str:
    """Return a new place below `root` for the cache of a mount that belongs to this process."""
    return os.path.join(daemon_directory(root, places), f"{SESSION}{os.getpid()}-{secrets.token_hex(6)}")


def is_session(path: str) -> bool:
    """Say whether a cache directory is one that `session_directory` named."""
    return os.path.basename(path).startswith(SESSION)


def make_cache_directory(path: str, spec: MountSpec) -> None:
    """Make the cache directory of `spec` and mark it as ours. Raises OSError, ConfigError if it is somebody else's."""
    make_daemon_directory(os.path.dirname(path))  # somebody may have removed all of it since the root was chosen
    make_own_directory(path)
    about = About(spec.name, spec.description, is_session(path))
    if read_about(path) != about:
        _write_private(os.path.join(path, ABOUT), json.dumps(asdict(about)).encode())


def read_about(path: str) -> About | None:
    """Return what a directory says of itself; None if it is no cache directory of this user's."""
    try:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return None
        with open(_open_plain(os.path.join(path, ABOUT))) as file:
            data = json.loads(file.read(65536))
        about = About(**data)
    except (OSError, ValueError, TypeError):
        return None
    return about if about.format == FORMAT else None


def claim(path: str) -> int | None:
    """Take the lock of a cache directory: a descriptor to be closed, None if another process uses the directory.

    The lock is the one that the worker holds while it serves. Raises OSError.
    """
    lock = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def is_used(path: str) -> bool:
    """Say whether a process holds the lock of a cache directory, from the kernel's list: it is not touched.

    Where /proc/locks does not show it (another pid namespace), only `claim` can tell.
    """
    try:
        inode = os.lstat(os.path.join(path, LOCK)).st_ino
        text = Path("/proc/locks").read_text()
    except OSError:
        return False
    fields = (line.split() for line in text.splitlines() if " FLOCK " in line and "->" not in line)
    return any(field[5].rpartition(":")[2] == str(inode) for field in fields if len(field) > 5)


def _open_plain(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def _write_private(path: str, data: bytes) -> None:
    draft = f"{path}.new"
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(file, data)
    finally:
        os.close(file)
    os.replace(draft, path)
