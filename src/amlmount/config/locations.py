"""Where a daemon keeps its socket, its state and its cache: the system's under /run and /var, a user's under XDG.

Only finds and checks the places; whoever uses one makes it (`make_private_dir`).
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from amlmount.errors import ConfigError

# sockaddr_un.sun_path holds 108 bytes with the closing NUL: unix(7).
SOCKET_PATH_MAX_BYTES = 107
GROUP = "amlmount"


@dataclass(frozen=True)
class Locations:
    """The places of one daemon. `cache_root` is where caches go when neither configuration nor disks say otherwise."""

    runtime_dir: Path
    state_dir: Path
    cache_root: Path
    socket: Path
    is_system: bool


def find_locations(*, system: bool | None = None, env: Mapping[str, str] = os.environ) -> Locations:
    """Return the places of the system's daemon (`system`, default: whether we are root) or of this user's.

    AMLMOUNT_RUNTIME_DIR, AMLMOUNT_STATE_DIR, AMLMOUNT_CACHE_ROOT and AMLMOUNT_SOCKET win over everything.
    Raises ConfigError if the socket's path is too long or the runtime directory belongs to somebody else.
    """
    is_system = os.geteuid() == 0 if system is None else system
    runtime_dir = _named(env, "AMLMOUNT_RUNTIME_DIR") or (Path("/run/amlmount") if is_system else _user_runtime(env))
    socket = _named(env, "AMLMOUNT_SOCKET") or runtime_dir / "amlmount.sock"
    _check_socket_length(socket)
    return Locations(
        runtime_dir=runtime_dir,
        state_dir=_named(env, "AMLMOUNT_STATE_DIR") or _default_state(is_system, env),
        cache_root=_named(env, "AMLMOUNT_CACHE_ROOT") or _default_cache(is_system, env),
        socket=socket,
        is_system=is_system,
    )


def make_private_dir(path: Path) -> None:
    """Make a directory (and its parents) that only we can enter; raises ConfigError if it is somebody else's."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private_dir(path)


def check_private_dir(path: Path) -> None:
    """Raise ConfigError unless `path` is a real directory, ours, with mode 0700, or not there at all.

    Root's may be passed through (0710) by the group that shares its socket, see `share_with_group`.

    In a folder like /tmp anybody could have made it first, and would then read what goes through our socket.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise _refuse(path, "it is not a directory")
    if found.st_uid != os.geteuid():
        raise _refuse(path, f"it belongs to user {found.st_uid}")
    others = stat.S_IMODE(found.st_mode) & 0o077
    if others and not (others == stat.S_IXGRP and found.st_gid == shared_group()):
        raise _refuse(path, f"others can enter it (mode {stat.S_IMODE(found.st_mode):04o})")


def shared_group() -> int | None:
    """Return the id of the group whose members may use the system's daemon, None if there is no such group."""
    import grp

    try:
        return grp.getgrnam(GROUP).gr_gid if os.geteuid() == 0 else None
    except KeyError:
        return None


def share_with_group(path: Path, group: int) -> None:
    """Let a group through to what is in our directory (the socket), without letting it see what there is."""
    os.chown(path, -1, group)
    os.chmod(path, 0o710)


def config_home(env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of a user's configuration, `$XDG_CONFIG_HOME/amlmount`."""
    return _xdg(env, "XDG_CONFIG_HOME", ".config") / "amlmount"


def _user_runtime(env: Mapping[str, str]) -> Path:
    base = env.get("XDG_RUNTIME_DIR", "")
    # After su or sudo -E the variable still names the other user's directory.
    if os.path.isabs(base) and _is_ours(base):
        return Path(base) / "amlmount"
    private = Path("/tmp") / f"amlmount-{os.geteuid()}"
    check_private_dir(private)
    return private


def _default_state(is_system: bool, env: Mapping[str, str]) -> Path:
    return Path("/var/lib/amlmount") if is_system else _xdg(env, "XDG_STATE_HOME", ".local/state") / "amlmount"


def _default_cache(is_system: bool, env: Mapping[str, str]) -> Path:
    return Path("/var/cache/amlmount") if is_system else _xdg(env, "XDG_CACHE_HOME", ".cache") / "amlmount"


def _xdg(env: Mapping[str, str], name: str, below_home: str) -> Path:
    base = env.get(name, "")
    return Path(base) if os.path.isabs(base) else _home(env) / below_home


def _home(env: Mapping[str, str]) -> Path:
    import pwd

    home = env.get("HOME", "")
    return Path(home) if os.path.isabs(home) else Path(pwd.getpwuid(os.geteuid()).pw_dir)


def _named(env: Mapping[str, str], name: str) -> Path | None:
    value = env.get(name)
    return Path(os.path.abspath(value)) if value else None


def _is_ours(path: str) -> bool:
    try:
        return os.stat(path).st_uid == os.geteuid()
    except OSError:
        return False


def _check_socket_length(socket: Path) -> None:
    length = len(os.fsencode(socket))
    if length > SOCKET_PATH_MAX_BYTES:
        raise ConfigError(
            f"cannot use the socket '{socket}': its path has {length} bytes, the limit is {SOCKET_PATH_MAX_BYTES}",
            hint="set AMLMOUNT_RUNTIME_DIR (or AMLMOUNT_SOCKET) to a shorter path",
        )


def _refuse(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"cannot use the directory '{path}': {why}",
        hint=f"remove it, or make it yours alone (chmod 0700 {path}), or set AMLMOUNT_RUNTIME_DIR to another one",
    )
