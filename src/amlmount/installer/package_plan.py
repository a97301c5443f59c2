"""The part of a plan that is about packages: repair, source and key, update, install, pin. Pure."""

from amlmount.errors import AmlmountError, UsageError
from amlmount.installer import paths
from amlmount.installer.machine import Machine
from amlmount.installer.packages import DebFile, Package, is_older
from amlmount.installer.plan import Plan
from amlmount.installer.record import Record
from amlmount.installer.releases import Release, find_release
from amlmount.installer.sources import AptSource
from amlmount.installer.steps import Command, FetchKey, MakeDir, Step, WriteFile
from amlmount.installer.wanted import Wanted, WantedEngine

# Microsoft Learn, known issues: the block cache of 2.2.0 to 2.3.0 loses or mixes data.
OLDEST_GOOD = (2, 3, 1)
APT_TIMEOUT_S = 1800.0


def plan_packages(machine: Machine, wanted: Wanted, record: Record) -> Plan:
    """Plan FUSE's helpers and, for its engine, blobfuse2. Raises AmlmountError for what we must not touch."""
    if wanted.engine is WantedEngine.PYTHON:
        return _plan_without_microsoft(machine, wanted)
    release = find_release(machine.os_release, machine.architecture)
    if not machine.has_apt:
        raise AmlmountError("cannot install packages: apt-get and dpkg are not there")
    names, present = _missing(machine, wanted, record)
    if not names:
        return Plan("", present, _hold_steps(machine, wanted), ())
    return Plan("", present) + _installation(machine, wanted, record, release, names)


def _plan_without_microsoft(machine: Machine, wanted: Wanted) -> Plan:
    if machine.installed("fuse3"):
        return Plan("", (_sentence(machine, "fuse3"),))
    if not machine.has_apt:
        return Plan("", notes=("fuse3 is not installed by apt here: ordinary users need its fusermount3",))
    repairs = _repairs(machine)
    steps = [*repairs, *_getting(machine, wanted, ["fuse3"], None)]
    return Plan("", steps=tuple(steps))


def _missing(machine: Machine, wanted: Wanted, record: Record) -> tuple[list[str], tuple[str, ...]]:
    """Return what apt must be asked for, and sentences about what is there."""
    names, present = [], []
    if machine.installed("fuse3"):
        present.append(_sentence(machine, "fuse3"))
    else:
        names.append("fuse3")
    package = wanted.channel.package
    found = machine.installed(package)
    if found and _is_good(found, wanted):
        present.append(_sentence(machine, package))
        return names, tuple(present)
    if found and found.is_held and package not in record.held:
        raise AmlmountError(
            f"cannot replace {package} {found.version}: someone holds it at that version",
            hint=f"sudo apt-mark unhold {package}, or leave --version out",
        )
    names.append(f"{package}={wanted.version}" if wanted.version else package)
    other = wanted.channel.other.package
    if machine.installed(other):
        names.append(f"{other}-")
    return names, tuple(present)


def _is_good(package: Package, wanted: Wanted) -> bool:
    if wanted.version is not None:
        return package.version == wanted.version
    return package.is_held or not is_older(package.version, OLDEST_GOOD)


def _installation(machine: Machine, wanted: Wanted, record: Record, release: Release, names: list[str]) -> Plan:
    steps: list[Step] = list(_repairs(machine))
    notes: list[str] = []
    source: AptSource | None = None
    if wanted.offline_dir is None:
        source, source_steps, notes = _source(machine, wanted, release)
        steps += source_steps
    steps += _getting(machine, wanted, names, source)
    steps += _hold_steps(machine, wanted, replaced=True)
    if machine.packages.get("fuse", Package("fuse", "", state="not-installed")).is_installed and "fuse3" in names:
        notes.append("fuse3 replaces the package fuse; what needs fuse keeps working with it")
    return Plan("", steps=tuple(steps), notes=tuple(notes))


# --- repair ------------------------------------------------------------------------------------------------------


def _repairs(machine: Machine) -> list[Step]:
    ours = [name for name in paths.OUR_PACKAGES if (p := machine.packages.get(name)) and p.needs_reinstall]
    foreign = [p.name for p in machine.packages.values() if p.needs_reinstall and p.name not in ours]
    if foreign:
        raise AmlmountError(
            f"cannot use apt: {', '.join(sorted(foreign))} is half installed, apt refuses all work until it is whole",
            hint=f"sudo apt-get install --reinstall {' '.join(sorted(foreign))}",
        )
    steps: list[Step] = [
        Command(
            ("dpkg", "--remove", "--force-remove-reinstreq", name), f"{name} is half installed", changes_packages=True
        )
        for name in ours
    ]
    unfinished = [p.name for p in machine.packages.values() if p.state in ("unpacked", "half-configured")]
    if machine.interrupted or any(name not in ours for name in unfinished):
        why = "dpkg was interrupted" + (f" at {', '.join(sorted(unfinished))}" if unfinished else "")
        steps.append(Command(("dpkg", "--configure", "-a"), why, timeout_s=APT_TIMEOUT_S, changes_packages=True))
    return steps


# --- source and key ----------------------------------------------------------------------------------------------


def _source(machine: Machine, wanted: Wanted, release: Release) -> tuple[AptSource, list[Step], list[str]]:
    uri = f"{wanted.repo_url.rstrip('/')}/{release.repository_path}"
    known = [source for source in machine.sources if source.uri == uri and source.suite == release.codename]
    foreign = [source for source in known if source.path != paths.SOURCE]
    notes = _notes_on_sources(machine, wanted, uri)
    if foreign:
        return foreign[0], [], [*notes, f"uses the source in {foreign[0].path}"]
    steps = _key_steps(machine, wanted, release)
    line = f"deb [arch={machine.architecture} signed-by={paths.KEY}] {uri} {release.codename} main\n"
    if machine.files.get(paths.SOURCE) != line:
        steps.append(WriteFile(paths.SOURCE, line, "where blobfuse2 comes from"))
    return AptSource(paths.SOURCE, uri, release.codename, paths.KEY), steps, notes


def _notes_on_sources(machine: Machine, wanted: Wanted, uri: str) -> list[str]:
    host = AptSource("", wanted.repo_url, "").host
    wrong = [
        source for source in machine.sources if source.host == host and source.uri != uri and "/prod" in source.uri
    ]
    return [f"{source.path} names the packages of another release ({source.uri}); it is left alone" for source in wrong]


def _key_steps(machine: Machine, wanted: Wanted, release: Release) -> list[Step]:
    steps: list[Step] = []
    if paths.KEYRINGS not in machine.directories:
        steps.append(MakeDir(paths.KEYRINGS, "for keys of sources"))
    if wanted.key_file is not None:
        text = _read_key(wanted.key_file)
        if machine.files.get(paths.KEY) != text:
            steps.append(WriteFile(paths.KEY, text, "the key the packages are signed with"))
        return steps
    url = f"{wanted.repo_url.rstrip('/')}/keys/{release.key_name}"
    expected = release.key_fingerprint if wanted.is_microsofts else None
    if paths.KEY not in machine.files or machine.files.get(paths.SOURCE, "").find(wanted.repo_url) < 0:
        steps.append(FetchKey(url, paths.KEY, expected, "the key the packages are signed with"))
    return steps


def _read_key(path: str) -> str:
    from amlmount.installer.openpgp import fingerprints

    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UsageError(f"cannot read the key '{path}': {(error.strerror or '').lower()}") from None
    if not data.startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----") or not fingerprints(data):
        raise UsageError(
            f"cannot use the key '{path}': it is no armoured OpenPGP public key", hint="gpg --armor --export KEY-ID"
        )
    return data.decode("ascii", errors="surrogateescape")


# --- update, install, hold ---------------------------------------------------------------------------------------


def apt_get(*words: str, lock_timeout_s: float) -> tuple[str, ...]:
    """Return an apt-get command line that never asks, keeps configuration files, and waits for the lock."""
    options = (
        f"DPkg::Lock::Timeout={lock_timeout_s:.0f}",
        "Acquire::Retries=3",
        "Dpkg::Options::=--force-confdef",
        "Dpkg::Options::=--force-confold",
        "Dpkg::Use-Pty=0",
    )
    return ("apt-get", "-q", "-y", *(word for option in options for word in ("-o", option)), *words)


def _getting(machine: Machine, wanted: Wanted, names: list[str], source: AptSource | None) -> list[Step]:
    wait_s = wanted.lock_timeout_s
    if wanted.offline_dir is not None:
        files = [_pick(machine.deb_files, name, machine.architecture) for name in names if not name.endswith("-")]
        helpers = [deb for deb in machine.deb_files if deb.package.startswith("libfuse3-")]
        files += [deb for deb in helpers if not machine.installed(deb.package)]
        # No sources at all: what the folder lacks must fail, not be brought from somewhere (and --no-download cannot
        # be told absolute paths).
        nowhere = ["-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Dir::Etc::sourceparts=/dev/null"]
        chosen = [*nowhere, *dict.fromkeys(deb.path for deb in files)]
        return [_install(chosen, f"from {wanted.offline_dir}", wait_s)]
    steps: list[Step] = []
    if "fuse3" in names:
        why = "fuse3 comes from the distribution"
        known = bool(machine.available.get("fuse3"))
        argv = apt_get("update", lock_timeout_s=wait_s)
        steps.append(Command(argv, why, timeout_s=APT_TIMEOUT_S, may_fail=known, undo=_forget_lists(source)))
    elif source is not None:
        # Only this source: somebody else's that is broken or slow is not our affair.
        only = ("-o", f"Dir::Etc::sourcelist={source.path}", "-o", "Dir::Etc::sourceparts=-")
        words = (*only, "-o", "APT::Get::List-Cleanup=0", "update")
        argv, undo = apt_get(*words, lock_timeout_s=wait_s), _forget_lists(source)
        steps.append(Command(argv, f"what {source.uri} has", timeout_s=APT_TIMEOUT_S, undo=undo))
    steps.append(_install(names, "the packages that are missing", wait_s))
    return steps


def _forget_lists(source: AptSource | None) -> tuple[str, ...]:
    """Return the command that removes what apt has read from our own source."""
    if source is None or source.path != paths.SOURCE:
        return ()
    # URItoFileName in apt-pkg: the address without its scheme, / as _.
    name = source.uri.partition("://")[2].replace("/", "_")
    lists = ("/var/lib/apt/lists", "/var/lib/apt/lists/partial")
    return ("find", *lists, "-maxdepth", "1", "-type", "f", "-name", f"{name}_*", "-delete")


def _install(names: list[str], why: str, wait_s: float) -> Command:
    words = ("install", "--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages", *names)
    return Command(apt_get(*words, lock_timeout_s=wait_s), why, timeout_s=APT_TIMEOUT_S, changes_packages=True)


def _pick(files: tuple[DebFile, ...], name: str, architecture: str) -> DebFile:
    package, _, version = name.partition("=")
    fitting = [
        deb
        for deb in files
        if deb.package == package
        and deb.architecture in (architecture, "all")
        and (not version or deb.version == version)
    ]
    if len(fitting) == 1:
        return fitting[0]
    have = ", ".join(f"{deb.package} {deb.version} {deb.architecture}" for deb in files) or "no packages"
    count = "no" if not fitting else "more than one"
    raise AmlmountError(
        f"cannot install offline: the folder has {count} {package} for {architecture}", hint=f"it has {have}"
    )


def _hold_steps(machine: Machine, wanted: Wanted, *, replaced: bool = False) -> tuple[Step, ...]:
    """Pin and hold the version that is asked for; a package that is `replaced` has lost its hold to apt."""
    if wanted.version is None:
        return ()
    package = wanted.channel.package
    text = f"Package: {package}\nPin: version {wanted.version}\nPin-Priority: 1001\n"
    steps: list[Step] = []
    if machine.files.get(paths.PIN) != text:
        steps.append(WriteFile(paths.PIN, text, f"keep {package} at {wanted.version}"))
    found = machine.packages.get(package)
    if replaced or found is None or not found.is_held:
        undo = ("apt-mark", "unhold", package)
        steps.append(Command(("apt-mark", "hold", package), f"keep {package} at {wanted.version}", undo=undo))
    return tuple(steps)


def _sentence(machine: Machine, name: str) -> str:
    package = machine.packages[name]
    newest = next(iter(machine.available.get(name, ())), package.version)
    held = ", held" if package.is_held else ""
    more = f"; {newest} is to be had (--version {newest})" if newest != package.version and not held else ""
    return f"{name} {package.version} is installed{held}{more}"
