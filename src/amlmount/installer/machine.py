"""Looking at a machine: everything a plan depends on, read once, nothing changed."""

import os
import re
import resource
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amlmount.installer import paths
from amlmount.installer.packages import Ask, DebFile, Package, read_deb_files, read_packages
from amlmount.installer.releases import read_os_release
from amlmount.installer.sources import AptSource, read_sources
from amlmount.run import Completed, run

ASK_TIMEOUT_S = 60.0
INOTIFY_INSTANCES = "proc/sys/fs/inotify/max_user_instances"


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found. `files` maps the paths we care about to their text (a path that is not in it is not there).

    `links` maps symbolic links to their targets; `interrupted`: dpkg was stopped in the middle of something.
    """

    os_release: str
    architecture: str = "amd64"
    packages: Mapping[str, Package] = field(default_factory=dict)
    sources: tuple[AptSource, ...] = ()
    available: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    directories: frozenset[str] = frozenset()
    deb_files: tuple[DebFile, ...] = ()
    interrupted: bool = False
    has_apt: bool = True
    has_systemd: bool = False
    runs_systemd: bool = False
    service_active: bool = False
    group_exists: bool = False
    inotify_instances: int = 128
    open_files: int = 1 << 20

    def installed(self, name: str) -> Package | None:
        """Return a package if it is there, whole."""
        package = self.packages.get(name)
        return package if package and package.is_installed else None


def observe(*, root: str = "/", offline_dir: str | None = None, ask: Ask | None = None) -> Machine:
    """Look at the machine below `root` (another root than / is for tests). Raises AmlmountError."""
    ask = ask or _ask
    has_apt = shutil.which("apt-get") is not None and shutil.which("dpkg-query") is not None
    files, links = _read_files(root), _read_links(root)
    return Machine(
        os_release=read_os_release(root),
        architecture=ask(["dpkg", "--print-architecture"]).text.strip() if has_apt else os.uname().machine,
        packages=read_packages(ask) if has_apt else {},
        sources=read_sources(root),
        available={name: _available(name, ask) for name in paths.OUR_PACKAGES} if has_apt else {},
        files=files,
        links=links,
        directories=frozenset(path for path in paths.DIRECTORIES if os.path.isdir(_below(root, path))),
        deb_files=read_deb_files(offline_dir, ask) if offline_dir else (),
        interrupted=_interrupted(root),
        has_apt=has_apt,
        has_systemd=any(os.path.exists(_below(root, path)) for path in ("/usr/bin/systemctl", "/bin/systemctl")),
        runs_systemd=os.path.isdir(_below(root, "/run/systemd/system")),
        service_active=_service_active(root, ask),
        group_exists=_has_group(root),
        inotify_instances=_number(_below(root, f"/{INOTIFY_INSTANCES}"), 128),
        open_files=_hard_limit(),
    )


def _ask(argv: Sequence[str]) -> Completed:
    return run(argv, timeout_s=ASK_TIMEOUT_S, check=False)


def _below(root: str, path: str) -> str:
    return os.path.join(root, path.lstrip("/"))


def _read_files(root: str) -> dict[str, str]:
    found = {}
    for path in paths.FILES:
        try:
            with open(_below(root, path), encoding="utf-8", errors="surrogateescape") as file:
                found[path] = file.read()
        except OSError:
            continue
    return found


def _read_links(root: str) -> dict[str, str]:
    return {path: os.readlink(_below(root, path)) for path in paths.LINKS if os.path.islink(_below(root, path))}


def _available(name: str, ask: Ask) -> tuple[str, ...]:
    rows = [line.split("|") for line in ask(["apt-cache", "madison", name]).text.splitlines()]
    return tuple(dict.fromkeys(row[1].strip() for row in rows if len(row) == 3 and row[0].strip() == name))


def _interrupted(root: str) -> bool:
    """Say whether dpkg has a journal of its own to finish (/var/lib/dpkg/updates, as apt's debSystem::CheckUpdates)."""
    try:
        return any(re.fullmatch(r"\d+", name) for name in os.listdir(_below(root, "/var/lib/dpkg/updates")))
    except OSError:
        return False


def _service_active(root: str, ask: Ask) -> bool:
    if not os.path.isdir(_below(root, "/run/systemd/system")):
        return False
    return ask(["systemctl", "is-active", paths.UNIT_NAME]).text.strip() in ("active", "activating", "reloading")


def _has_group(root: str) -> bool:
    try:
        with open(_below(root, "/etc/group"), encoding="utf-8") as file:
            return any(line.startswith(f"{paths.GROUP}:") for line in file)
    except OSError:
        return False


def _number(path: str, otherwise: int) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return otherwise


def _hard_limit() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 62 if hard == resource.RLIM_INFINITY else hard
