"""The part of a plan that is about the service: unit, account, directories, the command's name, completion. Pure."""

from importlib.resources import files

from amlmount.installer import paths
from amlmount.installer.machine import Machine
from amlmount.installer.plan import Plan
from amlmount.installer.steps import Command, Link, MakeDir, Step, WriteFile
from amlmount.installer.wanted import Wanted

DIRECTORY_MODES = {paths.CONFIG_DIR: 0o755, paths.STATE_DIR: 0o700, paths.CACHE_DIR: 0o700}
START_TIMEOUT_S = 150.0
UNIT_WHYS = {
    paths.UNIT: "the daemon starts with the system",
    paths.MOUNTED: "units can wait for all mounts",
    paths.MOUNTED_ONE: "units can wait for a mount",
    paths.TARGET: "units can wait for all mounts",
    paths.USER_UNIT: "a user's own daemon",
}


def plan_service(machine: Machine, wanted: Wanted) -> Plan:
    """Plan what the system's daemon needs; without systemd the files are there for the day it is."""
    steps: list[Step] = [
        *(MakeDir(path, "the daemon's", mode) for path, mode in _missing_directories(machine)),
        *_files(machine, wanted),
        *_links(machine, wanted),
    ]
    account = _account(machine)
    changed_unit = any(isinstance(step, WriteFile) and step.path in paths.UNITS for step in steps)
    present = () if steps else ("the service is set up",)
    notes = () if machine.runs_systemd else ("systemd does not run here: the service starts when it does",)
    running = _running(machine, wanted, changed_unit) if machine.runs_systemd else ()
    return Plan("", present, (*steps, *account, *running), notes)


def shipped(name: str) -> str:
    """Return the text of a file that is shipped in systemd/."""
    return (files("amlmount") / "units" / name).read_text(encoding="utf-8")


def _missing_directories(machine: Machine) -> list[tuple[str, int]]:
    return [(path, mode) for path, mode in DIRECTORY_MODES.items() if path not in machine.directories]


def _files(machine: Machine, wanted: Wanted) -> list[Step]:
    wanted_files = {
        **{path: (shipped(name), UNIT_WHYS[path], 0o644) for path, name in paths.UNITS.items()},
        paths.SYSUSERS: (shipped("amlmount.sysusers.conf"), "the daemon's account", 0o644),
        paths.TMPFILES: (shipped("amlmount.tmpfiles.conf"), "the daemon's directories", 0o644),
        paths.MOUNT_HELPER: (shipped("mount.amlmount"), "mount -t amlmount, fstab and mount units", 0o755),
    }
    for shell, text in wanted.completions.items():
        wanted_files[paths.COMPLETIONS[shell]] = (text, f"completion in {shell}", 0o644)
    steps: list[Step] = []
    for path, (text, why, mode) in wanted_files.items():
        text = text.replace(paths.PROGRAM, wanted.program)
        if machine.files.get(path) != text:
            steps.append(WriteFile(path, text, why, mode))
    return steps


def _links(machine: Machine, wanted: Wanted) -> list[Step]:
    steps: list[Step] = []
    if machine.links.get(paths.COMMAND) != wanted.program and wanted.program != paths.COMMAND:
        steps.append(Link(paths.COMMAND, wanted.program, "the command on everybody's PATH"))
    if machine.links.get(paths.WANTED_BY) != paths.UNIT:
        steps.append(Link(paths.WANTED_BY, paths.UNIT, "start with the system"))
    return steps


def _account(machine: Machine) -> tuple[Step, ...]:
    if machine.group_exists or not machine.has_systemd:
        return ()
    return (Command(("systemd-sysusers", paths.SYSUSERS), "the daemon's account", undo=("userdel", paths.GROUP)),)


def _running(machine: Machine, wanted: Wanted, changed_unit: bool) -> tuple[Step, ...]:
    steps: list[Step] = []
    if changed_unit:
        steps.append(Command(("systemctl", "daemon-reload"), "a new unit"))
    if wanted.service == "start" and not machine.service_active:
        argv, undo = ("systemctl", "start", paths.UNIT_NAME), ("systemctl", "stop", paths.UNIT_NAME)
        steps.append(Command(argv, "start the daemon", timeout_s=START_TIMEOUT_S, undo=undo))
    return tuple(steps)
