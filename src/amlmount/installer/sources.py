"""The package sources that apt is told of, in one-line files and in deb822 files: sources.list(5)."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

APT_DIR = "etc/apt"
_ONE_LINE = re.compile(r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?:\s+(?P<rest>.*))?$")


@dataclass(frozen=True, slots=True)
class AptSource:
    """One repository that apt knows: where it is named, its address without a closing slash, its suite, its key."""

    path: str
    uri: str
    suite: str
    signed_by: str = ""

    @property
    def host(self) -> str:
        """The host of the address."""
        return urlsplit(self.uri).netloc


def read_sources(root: str = "/") -> tuple[AptSource, ...]:
    """Read every source that is switched on, in the order apt reads them."""
    folder = os.path.join(root, APT_DIR)
    parts = os.path.join(folder, "sources.list.d")
    names = sorted(os.listdir(parts)) if os.path.isdir(parts) else []
    found: list[AptSource] = []
    for path in [os.path.join(folder, "sources.list"), *(os.path.join(parts, name) for name in names)]:
        if path.endswith((".list", ".sources")) and os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
            shown = "/" + os.path.relpath(path, root)
            found += _deb822(shown, text) if path.endswith(".sources") else _one_line(shown, text)
    return tuple(found)


def _one_line(path: str, text: str) -> Iterator[AptSource]:
    for line in text.splitlines():
        match = _ONE_LINE.match(line.partition("#")[0].strip())
        if match:
            options = dict(word.partition("=")[::2] for word in (match["options"] or "").split())
            yield AptSource(path, match["uri"].rstrip("/"), match["suite"], options.get("signed-by", ""))


def _deb822(path: str, text: str) -> Iterator[AptSource]:
    for stanza in re.split(r"\n\s*\n", text):
        fields = _fields(stanza)
        if fields.get("enabled", "yes").lower() in ("no", "false", "off", "0"):
            continue
        if "deb" in fields.get("types", "").split():
            for uri in fields.get("uris", "").split():
                for suite in fields.get("suites", "").split():
                    yield AptSource(path, uri.rstrip("/"), suite, fields.get("signed-by", ""))


def _fields(stanza: str) -> dict[str, str]:
    found: dict[str, str] = {}
    key = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in " \t" and key:
            found[key] = f"{found[key]} {line.strip()}".strip()
        elif ":" in line:
            key, _, value = line.partition(":")
            key = key.strip().lower()
            found[key] = value.strip()
    return found
