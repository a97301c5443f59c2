"""What the configurations of this machine need of it beyond packages: limits, shared mounts, indexers kept out."""

import contextlib
import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from amlmount.config.load import config_files, load_config
from amlmount.config.locations import config_home
from amlmount.config.models import Config
from amlmount.config.resolve import effective_options, target_path
from amlmount.errors import AmlmountError

# Every process that watches files takes one: desktop, editors, systemd. blobfuse2 takes one a mount.
INOTIFY_RESERVE = 64


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be true. `targets`: where mounts are; `inotify_instances`: 0 when the usual number does."""

    user_allow_other: bool = False
    targets: tuple[str, ...] = ()
    inotify_instances: int = 0
    login_users: tuple[str, ...] = ()


def find_needs(explicit: Path | None, *, login_user: str | None) -> Needs:
    """Read the system's configuration (or `explicit`) and that of the user who ran sudo. Raises ConfigError.

    A user's configuration that cannot be read is that user's affair: it needs nothing.
    """
    system = load_config(config_files(explicit, system=True))
    home = _home_of(login_user)
    theirs: Config | None = None
    if login_user and home and home != "/root":
        env = {"HOME": home}
        with contextlib.suppress(AmlmountError, OSError):
            files = config_files(None, env, system=False)
            theirs = load_config(files) if files and config_home(env).is_dir() else None
    return needs_of(system, theirs, login_user)


def needs_of(system: Config, theirs: Config | None, login_user: str | None) -> Needs:
    """Say what a system's and a user's configuration need."""
    configs = [config for config in (system, theirs) if config]
    shared = theirs is not None and any(effective_options(theirs, name).allow_other for name in theirs.mounts)
    watched = sum(_may_be_blobfuse2(config, name) for config in configs for name in config.mounts)
    return Needs(
        user_allow_other=shared,
        targets=tuple(dict.fromkeys(_targets(configs))),
        inotify_instances=watched + INOTIFY_RESERVE if watched else 0,
        login_users=(login_user,) if login_user and theirs is not None and theirs.mounts else (),
    )


def _targets(configs: Iterable[Config]) -> Iterable[str]:
    for config in configs:
        for mount in config.mounts.values():
            if os.path.isabs(mount.target):
                yield target_path(mount)


def _may_be_blobfuse2(config: Config, name: str) -> bool:
    return effective_options(config, name).engine in ("auto", "blobfuse2")


def _home_of(user: str | None) -> str | None:
    if user is None:
        return None
    try:
        return pwd.getpwnam(user).pw_dir
    except KeyError:
        return None
