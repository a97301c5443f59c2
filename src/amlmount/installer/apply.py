"""Carries plans out, step by step, remembers what each step changed, and takes all of it back if one fails."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amlmount.errors import AmlmountError
from amlmount.installer import paths
from amlmount.installer.apt_errors import explain, is_locked, misses_indexes
from amlmount.installer.files import FileHands
from amlmount.installer.packages import Package, read_packages
from amlmount.installer.plan import Plan
from amlmount.installer.record import PackageChanges, Record, load_record, save_record
from amlmount.installer.steps import Command, Step
from amlmount.run import SYSTEM_PATH, Completed, base_env, run

LOCK_POLL_S = 2.0
PACKAGE_PROGRAMS = ("apt-get", "dpkg", "apt-mark")
PASSED_ON = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

Tell = Callable[[str], None]
Execute = Callable[[Sequence[str], float], Completed]


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a plan: sentences on what was done, and on what failed and did not matter."""

    done: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {"done": list(self.done), "warnings": list(self.warnings)}


@dataclass(slots=True)
class Ground:
    """Where and how a plan is carried out. Another `root` than / and another `execute` are for tests."""

    root: str = "/"
    execute: Execute = field(default_factory=lambda: _execute)
    tell: Tell = lambda _: None
    lock_timeout_s: float = 600.0
    record_path: str = paths.RECORD


def apply(plan: Plan, undo: Callable[[Record], Plan], ground: Ground | None = None) -> Report:
    """Carry out a plan and record it; if a step fails, carry out `undo` of what was done so far, and raise the error.

    The error's details say what was taken back (`rolled_back`) and what could not be (`not_rolled_back`).
    """
    ground = ground or Ground()
    work = _Work(ground)
    before = load_record(ground.record_path)
    try:
        for step in plan.steps:
            work.do(step)
            # After each: a run that is killed is taken back by the next uninstall.
            save_record(before.then(work.record()), ground.record_path)
    except BaseException as error:
        _take_back(work, undo, ground, error)
        save_record(before, ground.record_path)
        raise
    return Report(tuple(work.done), tuple(work.warnings))


def apply_undo(plan: Plan, ground: Ground | None = None) -> Report:
    """Carry out a plan that takes things back: every step is tried, what fails is a warning; the record is emptied."""
    ground = ground or Ground()
    work = _Work(ground, forgiving=True)
    for step in plan.steps:
        work.do(step)
    save_record(Record(), ground.record_path)
    return Report(tuple(work.done), tuple(work.warnings))


def _take_back(work: "_Work", undo: Callable[[Record], Plan], ground: Ground, error: BaseException) -> None:
    plan = undo(work.record())
    if not plan.steps:
        return
    ground.tell("taking back what was done")
    back = _Work(ground, forgiving=True)
    for step in plan.steps:
        back.do(step)
    if isinstance(error, AmlmountError):
        error.details |= {"rolled_back": back.done, "not_rolled_back": back.warnings}


class _Work:
    def __init__(self, ground: Ground, *, forgiving: bool = False) -> None:
        self._ground = ground
        self._forgiving = forgiving
        self._files = FileHands(ground.root)
        self._undo: list[tuple[str, ...]] = []
        self._packages: Mapping[str, Package] | None = None
        self._changes = PackageChanges()
        self.done: list[str] = []
        self.warnings: list[str] = []

    def do(self, step: Step) -> None:
        self._ground.tell(step.text if not isinstance(step, Command) else f"{step.why}: {_short(step.argv)}")
        try:
            if isinstance(step, Command):
                self._command(step)
            else:
                self._files.do(step)
        except (AmlmountError, OSError) as error:
            failure = error if isinstance(error, AmlmountError) else _disk_error(step, error)
            if not (self._forgiving or (isinstance(step, Command) and step.may_fail)):
                raise failure from None
            self.warnings.append(failure.message + (f" ({failure.hint})" if failure.hint else ""))
            return
        self.done.append(step.text)

    def _command(self, step: Command) -> None:
        if step.changes_packages:
            self._packages = self._packages or read_packages(self._ask)
            try:
                self._run(step)
            finally:
                self._changes = _compare(self._packages, read_packages(self._ask))
        else:
            self._run(step)

    def _run(self, step: Command) -> None:
        # Taken back even if it fails: a program that fails half way has changed things too.
        if step.undo:
            self._undo.append(step.undo)
        started = time.monotonic()
        while True:
            done = self._ground.execute(step.argv, step.timeout_s)
            waited_s = time.monotonic() - started
            if not is_locked(done) or waited_s >= self._ground.lock_timeout_s:
                break
            self._ground.tell("another program is working on packages: waiting for it")
            time.sleep(min(LOCK_POLL_S, self._ground.lock_timeout_s))
        if done.returncode != 0 or misses_indexes(done):
            raise explain(done, waited_s) if step.argv[0] in PACKAGE_PROGRAMS else _failure(done)

    def record(self) -> Record:
        """Return what has been changed so far."""
        return Record(dict(self._files.changes), tuple(self._files.directories), tuple(self._undo), self._changes)

    def _ask(self, argv: Sequence[str]) -> Completed:
        return self._ground.execute(argv, 60.0)


def _compare(before: Mapping[str, Package], after: Mapping[str, Package]) -> PackageChanges:
    def there(packages: Mapping[str, Package]) -> dict[str, str]:
        return {n: p.version for n, p in packages.items() if p.state not in ("not-installed", "config-files")}

    old, new = there(before), there(after)
    broken = {name for name in old if before[name].needs_reinstall}
    return PackageChanges(
        {name: version for name, version in new.items() if name not in old or name in broken},
        {name: version for name, version in old.items() if name not in new and name not in broken},
        {n: (v, new[n]) for n, v in old.items() if n in new and new[n] != v and n not in broken},
    )


def _execute(argv: Sequence[str], timeout_s: float) -> Completed:
    extra = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "APT_LISTCHANGES_FRONTEND": "none", "NEEDRESTART_SUSPEND": "1"}
    return run(argv, timeout_s=timeout_s, env=base_env(PATH=SYSTEM_PATH, **quiet, **extra), check=False)


def _failure(done: Completed) -> AmlmountError:
    from amlmount.run import failure

    return failure(done)


def _disk_error(step: Step, error: OSError) -> AmlmountError:
    reason = (error.strerror or str(error)).lower()
    return AmlmountError(f"cannot {step.text}: {reason}", hint="run it as root, and see `df -h`")


def _short(argv: tuple[str, ...]) -> str:
    """Show a command without its -o options."""
    words, skip = [], False
    for word in argv:
        if not skip and word != "-o":
            words.append(word)
        skip = word == "-o"
    return " ".join(words)
