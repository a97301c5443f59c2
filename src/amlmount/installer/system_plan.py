"""The part of a plan that is about the system's settings, each only if a configuration needs it. Pure."""

import re

from amlmount.installer import paths
from amlmount.installer.machine import Machine
from amlmount.installer.needs import Needs
from amlmount.installer.plan import Plan
from amlmount.installer.steps import Command, Step, WriteFile

# blobfuse2 mounts as plain `fuse`, our engine as fuse.amlmount.
PRUNED_FILE_SYSTEMS = ("fuse", "fuse.amlmount", "fuse.blobfuse2")
OPEN_FILES_A_USER_NEEDS = 4096
INOTIFY_KEY = "fs.inotify.max_user_instances"


def plan_system(machine: Machine, needs: Needs) -> Plan:
    """Plan fuse.conf, updatedb.conf, inotify and file limits."""
    parts = (
        _fuse_conf(machine, needs),
        _updatedb(machine, needs),
        _inotify(machine, needs),
        _open_files(machine, needs),
    )
    return Plan("", tuple(t for p in parts for t in p.present), tuple(s for p in parts for s in p.steps))


def _fuse_conf(machine: Machine, needs: Needs) -> Plan:
    if not needs.user_allow_other:
        return Plan("")
    text = machine.files.get(paths.FUSE_CONF, "")
    if any(line.strip() == "user_allow_other" for line in text.splitlines()):
        return Plan("", (f"user_allow_other is set in {paths.FUSE_CONF}",))
    commented = re.compile(r"^[ \t]*#[ \t]*user_allow_other[ \t]*$", re.MULTILINE)
    changed = commented.sub("user_allow_other", text, count=1)
    if changed == text:
        changed = _with_newline(text) + "user_allow_other\n"
    return Plan("", steps=(WriteFile(paths.FUSE_CONF, changed, "a user's mount is shared (allow_other)"),))


def _updatedb(machine: Machine, needs: Needs) -> Plan:
    text = machine.files.get(paths.UPDATEDB_CONF)
    if text is None:
        return Plan("")
    changed = _with_words(text, "PRUNEFS", PRUNED_FILE_SYSTEMS)
    targets = [path for path in needs.targets if '"' not in path and " " not in path]
    if targets:
        changed = _with_words(changed, "PRUNEPATHS", targets)
    if changed == text:
        return Plan("", ("updatedb leaves our mounts alone",))
    return Plan("", steps=(WriteFile(paths.UPDATEDB_CONF, changed, "locate's indexer stays out of our mounts"),))


def _with_words(text: str, name: str, words: "list[str] | tuple[str, ...]") -> str:
    """Add words to a variable of updatedb.conf (updatedb.conf(5): NAME = "word word")."""
    pattern = re.compile(rf'^(?P<head>\s*{name}\s*=\s*")(?P<words>[^"]*)(?P<tail>".*)$', re.MULTILINE)
    match = pattern.search(text)
    if match is None:
        return _with_newline(text) + f'{name}="{" ".join(words)}"\n'
    new = [word for word in words if word not in match["words"].split()]
    if not new:
        return text
    joined = " ".join([match["words"].rstrip(), *new]).strip()
    return text[: match.start()] + match["head"] + joined + match["tail"] + text[match.end() :]


def _inotify(machine: Machine, needs: Needs) -> Plan:
    if needs.inotify_instances <= machine.inotify_instances:
        return Plan("")
    # In steps of 128, so that one mount more does not change the file again.
    count = -(-needs.inotify_instances // 128) * 128
    text = f"# amlmount: blobfuse2 watches its configuration, one instance a mount.\n{INOTIFY_KEY} = {count}\n"
    steps: tuple[Step, ...] = (
        WriteFile(paths.SYSCTL, text, f"{needs.inotify_instances} watches are needed"),
        Command(
            ("sysctl", "-q", "-w", f"{INOTIFY_KEY}={count}"),
            "from now on, not only after the next start",
            undo=("sysctl", "-q", "-w", f"{INOTIFY_KEY}={machine.inotify_instances}"),
            may_fail=True,
        ),
    )
    return Plan("", steps=steps)


def _open_files(machine: Machine, needs: Needs) -> Plan:
    if not needs.login_users or machine.open_files >= OPEN_FILES_A_USER_NEEDS:
        return Plan("")
    lines = [f"{user} - nofile 65536" for user in needs.login_users]
    text = "# amlmount: mounts of these users hold many files open.\n" + "".join(f"{line}\n" for line in lines)
    if machine.files.get(paths.LIMITS) == text:
        return Plan("", ("the limit of open files is raised",))
    return Plan("", steps=(WriteFile(paths.LIMITS, text, "a mount under load needs more open files"),))


def _with_newline(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"
