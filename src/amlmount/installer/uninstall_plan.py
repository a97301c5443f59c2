"""Plans that take back what a record lists: commands, packages, files, directories, in this order."""

from collections.abc import Callable, Iterator

from amlmount.installer import paths
from amlmount.installer.package_plan import APT_TIMEOUT_S, apt_get
from amlmount.installer.plan import Plan
from amlmount.installer.record import FileChange, FileState, PackageChanges, Record
from amlmount.installer.steps import Command, Remove, Restore, Step

Look = Callable[[str], FileState | None]
RELOAD = ("systemctl", "daemon-reload")


def plan_uninstall(record: Record, look: Look, *, lock_timeout_s: float = 600.0, runs_systemd: bool = False) -> Plan:
    """Plan to take back `record`. `look` says what is at a path now: what others have changed since is left alone."""
    steps: list[Step] = [
        Command(argv, "take back", timeout_s=APT_TIMEOUT_S, may_fail=True) for argv in reversed(record.undo)
    ]
    steps += _packages(record.packages, lock_timeout_s)
    notes: list[str] = []
    for path, change in reversed(list(record.files.items())):
        now = look(path)
        if now == change.after:
            steps += _file(path, change, now)
        elif now != change.before:
            notes.append(f"{path} was changed after we wrote it: it is left as it is")
    steps += [Remove(path, "if it is empty", is_directory=True) for path in reversed(record.directories)]
    if paths.UNIT in record.files and runs_systemd:
        steps.append(Command(RELOAD, "the unit has gone", may_fail=True))
    return Plan("uninstall", (), tuple(steps), tuple(notes))


def _file(path: str, change: FileChange, now: FileState | None) -> Iterator[Step]:
    if change.before != now:
        yield Restore(path, change.before, "as it was")


def _packages(changes: PackageChanges, wait_s: float) -> Iterator[Step]:
    if changes.installed:
        # dpkg, not apt: it works on a broken state too, and refuses what others depend on.
        argv = ("dpkg", "--purge", "--force-remove-reinstreq", *sorted(changes.installed))
        yield Command(argv, "we installed it", timeout_s=APT_TIMEOUT_S, may_fail=True)
    back = [f"{name}={version}" for name, version in changes.removed.items()]
    back += [f"{name}={old}" for name, (old, _) in changes.changed.items()]
    if back:
        words = ("install", "--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages", *back)
        yield Command(apt_get(*words, lock_timeout_s=wait_s), "as it was", timeout_s=APT_TIMEOUT_S, may_fail=True)
