"""Versions: ourselves, the libraries we stand on, blobfuse2."""

import importlib.metadata
import platform
import re
import shutil
import sys

import amlmount
from amlmount.doctor.findings import Finding
from amlmount.run import base_env, run

LIBRARIES = (
    "aiohttp", "azure-identity", "azure-storage-blob", "jinja2", "obstore", "psutil", "pydantic", "pyyaml", "rich",
    "typer",
)  # fmt: skip
# Without a syslog, blobfuse2's own log lines come between on standard output.
_LOG_LINE = re.compile(r" : blobfuse2\[\d+\] : ")
_VERSION = re.compile(r"blobfuse2 version:? (\S+)")


def ourselves() -> list[Finding]:
    """Name amlmount's version and the Python it runs in."""
    text = f"{amlmount.__version__}, Python {platform.python_version()} ({sys.executable})"
    return [Finding("amlmount", "ok", text)]


def libraries(names: tuple[str, ...] = LIBRARIES) -> list[Finding]:
    """Name the versions of the libraries that are used; one that is missing fails."""
    versions = {name: _version(name) for name in names}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        fix = f"{sys.executable} -m pip install {' '.join(missing)}"
        return [Finding("libraries", "fail", f"not installed: {', '.join(missing)}", fix)]
    return [Finding("libraries", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))]


def blobfuse2() -> list[Finding]:
    """Look for Microsoft's driver; without it the Python engine serves every mount."""
    path = shutil.which("blobfuse2")
    if path is None:
        return [Finding("blobfuse2", "info", "not on PATH: engine auto uses the Python engine")]
    done = run([path, "--version"], timeout_s=10, env=base_env(), check=False)
    version = blobfuse2_version(done.text)
    if done.returncode != 0 or version is None:
        return [Finding("blobfuse2", "warn", f"{path} does not say its version: {done.last_words}", "install it anew")]
    return [Finding("blobfuse2", "ok", f"{version} ({path})")]


def blobfuse2_version(said: str) -> str | None:
    """Find the version in what `blobfuse2 --version` printed."""
    lines = [line for line in said.splitlines() if not _LOG_LINE.search(line)]
    match = _VERSION.search("\n".join(lines))
    return match[1] if match else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
