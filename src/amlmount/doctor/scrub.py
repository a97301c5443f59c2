"""Taking secrets out of text that will leave the machine: by their look, by their names, and by their very values."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from amlmount.redaction import HIDDEN, redact

SHORTEST_SECRET = 4
# A variable, a key of YAML, an option: anything whose name says that its value is nobody's business.
_NAME = r"[\w.-]*(?:key|secret|token|password|passwd|pwd|credential|sas|signature|conn(?:ection)?[_-]?string)[\w.-]*"
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_ASSIGNMENT = re.compile(rf"(?im)(?P<head>[\"']?\b{_NAME}[\"']?[ \t]*[=:][ \t]*)(?P<value>[^\s{{\[|>#][^\n]*)")
_USERINFO = re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]*://)[^\s/@]+@", re.IGNORECASE)
_LINES = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
# What a reference to a secret looks like; it says where the secret is and helps whoever reads.
_REFERENCE = re.compile(r"^(?:null|~|true|false|\{.*\}|\[hidden\].*|\(set\))$", re.IGNORECASE)


class Scrubber:
    """Takes out what looks like a secret and every one of `secrets`, in the spellings it may have."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        spellings = {spelling for secret in secrets for spelling in _spellings(secret)}
        # Longest first: one may be the beginning of another.
        words = sorted(spellings, key=len, reverse=True)
        self._known = re.compile("|".join(re.escape(word) for word in words)) if words else None

    def scrub(self, text: str) -> str:
        """Return `text` without secrets."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        text = _LINES.sub(HIDDEN, text)
        text = _USERINFO.sub(rf"\g<head>{HIDDEN}@", redact(text))
        return _ASSIGNMENT.sub(_hide_value, text)


def secret_values(env: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield the values of variables whose names say that they are secret, and the passwords of proxies."""
    for name, value in env.items():
        if _SECRET_NAME.fullmatch(name):
            yield value
        if match := re.match(r"[a-z]+://([^/@\s]+)@", value):
            yield match[1]
            yield match[1].partition(":")[2]


def is_secret_name(name: str) -> bool:
    """Say whether a variable of that name holds a secret."""
    return bool(_SECRET_NAME.fullmatch(name))


def _spellings(secret: str) -> Iterator[str]:
    for line in (secret.strip(), *secret.split()):
        if len(line) >= SHORTEST_SECRET:
            yield line
            yield quote(line, safe="")
            yield line.replace("%", "%%")


def _hide_value(match: "re.Match[str]") -> str:
    value = match["value"].strip().rstrip(",")
    return match[0] if _REFERENCE.match(value) else f"{match['head']}{HIDDEN}"
