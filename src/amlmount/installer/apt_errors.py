"""What apt and dpkg say when they fail, turned into errors that say what to do."""

import re

from amlmount.errors import AmlmountError, BusyError, NetworkError
from amlmount.run import Completed, how_it_ended

_LOCKED = re.compile(
    r"(?i)could not (?:get lock|open lock file)|(?:is|was) locked by another process|unable to (?:lock|acquire)"
)
_HOLDER = re.compile(r"(?:held by process|process with pid) (\d+)(?: \(([^)]+)\))?")

# What is searched for, the kind of error, what it means, what to do.
_ROWS: tuple[tuple[str, type[AmlmountError], str, str], ...] = (
    (
        r"No space left on device|You don't have enough free space",
        AmlmountError,
        "the disk is full",
        "free some space (`df -h / /var`, `apt-get clean`) and run this again",
    ),
    (
        r"NO_PUBKEY|couldn't be verified|is not signed|EXPKEYSIG|BADSIG|REVKEYSIG",
        AmlmountError,
        "the packages are not signed with the key we have",
        "if --repo-url is a mirror with a key of its own, name it with --key FILE; else someone may be in between",
    ),
    (
        r"does not have a Release file|404 +Not Found",
        AmlmountError,
        "the host has no packages for this release at that address",
        "does --repo-url name the top of the mirror (the folder that holds ubuntu/ and debian/)?",
    ),
    (
        r"(?i)temporary failure resolving|could not resolve|could not connect|connection (?:timed out|failed|refused)"
        r"|network is unreachable|unable to connect|failed to fetch|some index files failed to download",
        NetworkError,
        "the package host cannot be reached",
        "see whether a proxy or a firewall is in the way (http_proxy, https_proxy); "
        "--repo-url names a mirror, --offline DIR a folder with the packages",
    ),
    (
        r"(?i)unable to locate package|has no installation candidate|version '[^']*' for '[^']*' was not found",
        AmlmountError,
        "the source does not have this package or version",
        "`apt-cache madison blobfuse2` lists the versions; --repo-url names another source",
    ),
    (
        r"dpkg was interrupted|unmet dependencies|dpkg returned an error code|parsing file '/var/lib/dpkg",
        AmlmountError,
        "the packages of this machine are in disorder",
        "`sudo dpkg --audit` and `sudo apt-get --fix-broken install` say more and mend it",
    ),
)


def is_locked(done: Completed) -> bool:
    """Say whether it failed because another program is working on packages."""
    return done.returncode != 0 and bool(_LOCKED.search(_said(done)))


def misses_indexes(done: Completed) -> bool:
    """Say whether an update that exited 0 has not got everything (apt calls that a warning)."""
    return "Some index files failed to download" in _said(done)


def explain(done: Completed, waited_s: float) -> AmlmountError:
    """Return the error for a command about packages that failed."""
    said = _said(done)
    details = {"argv": list(done.argv), "returncode": done.returncode, "last_words": _errors_of(said)}
    what = f"cannot {_task(done.argv)}"
    if is_locked(done):
        holder = _HOLDER.search(said)
        who = f" (process {holder[1]}{f', {holder[2]}' if holder[2] else ''})" if holder else ""
        return BusyError(
            f"{what}: another program is working on packages{who}, for {waited_s:.0f} s now",
            hint="wait for it, or give --lock-timeout more",
            details=details,
        )
    for pattern, kind, meaning, hint in _ROWS:
        if re.search(pattern, said):
            return kind(f"{what}: {meaning}", hint=f"{hint}. It said: {_errors_of(said)}", details=details)
    message = f"{what}: {done.argv[0]} {how_it_ended(done.returncode)}"
    return AmlmountError(message, hint=f"it said: {_errors_of(said)}", details=details)


def _said(done: Completed) -> str:
    return f"{done.stderr.decode(errors='replace')}\n{done.text}"


def _errors_of(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(("E:", "W:", "dpkg: error"))]
    return " | ".join((marked or lines)[-3:])[:600]


def _task(argv: tuple[str, ...]) -> str:
    for word, task in (("update", "read what packages there are"), ("install", "install packages")):
        if word in argv:
            return task
    return f"run {argv[0]}"
