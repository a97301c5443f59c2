"""Lines of fstab(5) that mount by blobfuse2: the configuration file they name is imported, with their target and flags.

The form blobfuse2 documents: `blobfuse2 /mnt/x fuse3 defaults,_netdev,--config-file=/etc/x.yaml,allow_other 0 0`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amlmount.blobfuse2.table import TABLE
from amlmount.config.documents import Document, parse_document
from amlmount.errors import ConfigError
from amlmount.importer.draft import Draft, read_text
from amlmount.importer.finding import Finding
from amlmount.importer.vault import Vault

_LINE = re.compile(r"^\s*[^#\s]\S*\s+/\S*\s+\S+\s+\S+(\s+\d+){0,2}\s*$")
_ESCAPE = re.compile(r"\\([0-7]{3})")
_BY_FLAG = {key.flag.removeprefix("--"): key.path for key in TABLE.values() if key.flag.startswith("--")}
_FUSE_OPTIONS = {
    "ro": "read-only",
    "allow_other": "allow-other",
    "allow_root": "allow-root",
    "direct_io": "libfuse.direct-io",
    "uid": "libfuse.uid",
    "gid": "libfuse.gid",
    "umask": "libfuse.umask",
    "attr_timeout": "libfuse.attribute-expiration-sec",
    "entry_timeout": "libfuse.entry-expiration-sec",
    "negative_timeout": "libfuse.negative-entry-expiration-sec",
}
_WITHOUT_EFFECT = ("disable-version-check", "wait-for-mount", "foreground")


@dataclass(frozen=True, slots=True)
class _Line:
    where: str
    source: str
    target: str
    options: tuple[str, ...]


def looks_like(text: str) -> bool:
    """Tell an fstab: there are lines, and every one is empty, a comment, or has the fields of one."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return bool(lines) and all(_LINE.match(line) for line in lines)


def read(path: Path, text: str, vault: Vault) -> Draft:
    """Return every blobfuse2 mount of an fstab; other lines are none of our business. Raises ConfigError for none."""
    whole = Draft()
    for line in _blobfuse_lines(path, text):
        _add(whole, _read_line(path, line, vault), line)
    if not whole.mounts and not whole.findings:
        raise ConfigError(f"cannot import '{path}': no line of it mounts by blobfuse2", hint="nothing is left to do")
    return whole


def _blobfuse_lines(path: Path, text: str) -> list[_Line]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = [_ESCAPE.sub(lambda match: chr(int(match[1], 8)), field) for field in line.split()]
        if _LINE.match(line) and "blobfuse" in f"{fields[0]} {fields[2]}":
            found.append(_Line(f"{path}:{number}", fields[0], fields[1], tuple(fields[3].split(","))))
    return found


def _read_line(path: Path, line: _Line, vault: Vault) -> Draft:
    from amlmount.importer import blobfuse2_file

    if "blobfuse2" not in line.source:
        what = f"{line.source} is a script or blobfuse v1"
        return Draft(findings=[Finding(line.where, what, "not imported; import the file it names")])
    draft = Draft()
    config, settings = _options(line, draft)
    if config is None:
        what = "no --config-file: what blobfuse2 mounts comes from its environment"
        return Draft(findings=[Finding(line.where, what, "not imported")])
    config = config if config.is_absolute() else path.parent / config
    document = _with_settings(parse_document(read_text(config), str(config)), settings)
    found = blobfuse2_file.read(config, document, vault, line.target)
    found.findings[:0] = draft.findings
    found.findings.append(Finding(line.where, "fstab would mount this too", "remove the line before `amlmount up`"))
    return found


def _options(line: _Line, draft: Draft) -> tuple[Path | None, dict[str, str]]:
    config: Path | None = None
    settings: dict[str, str] = {}
    for option in line.options:
        name, _, value = option.partition("=")
        flag = name.removeprefix("--")
        known = _BY_FLAG.get(flag) if name.startswith("--") else _FUSE_OPTIONS.get(name)
        if flag == "config-file":
            config = Path(value)
        elif known:
            settings[known] = value or "true"
        elif name.startswith("--") and flag not in _WITHOUT_EFFECT:
            draft.findings.append(Finding(line.where, f"{name} is not known", "left out"))
    return config, settings


def _with_settings(document: Document, settings: dict[str, str]) -> Document:
    """The command line beats the file. A umask there is octal digits already."""
    data: dict[str, Any] = dict(document.data)
    for path, value in settings.items():
        section, _, name = path.rpartition(".")
        written = value.lstrip("0") or "0" if name == "umask" else value
        data = data | ({section: {**(data.get(section) or {}), name: written}} if section else {name: written})
    return Document(data, document.places)


def _add(whole: Draft, part: Draft, line: _Line) -> None:
    for name, store in part.stores.items():
        if whole.stores.get(name, store) != store:
            raise ConfigError(
                f"cannot import {line.where}: an earlier line has another store called '{name}'",
                hint="import the two configuration files by themselves",
            )
        whole.stores[name] = store
    for name, mount in part.mounts.items():
        free = name if name not in whole.mounts else f"{name}-{len(whole.mounts) + 1}"
        whole.mounts[free] = mount
    whole.cache = part.cache | whole.cache
    whole.findings += part.findings
