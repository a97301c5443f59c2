"""Hiding what looks like a secret of Azure in a text that leaves us: a log, an error, an event.

It knows shapes, not secrets: whoever has one at hand must not put it into a text in the first place.
"""

import re

HIDDEN = "[hidden]"
_NAMES = r"(?:account|access)_?key|(?:sas|access|refresh)_?token|client_?secret|password|shared_?access_?signature"
# Compiled when first used: a command that prints no error does not pay for them.
_SHAPES = (
    r"(?i)(?<![a-z0-9])(sig=)[^&\s\"';]+",
    r"(?i)(\bbearer\s+)[\w.~+/=-]{16,}",
    r"(?i)(\bshared_?key(?:lite)?\s+[\w-]+:)[\w+/=]+",
    rf"(?i)((?:{_NAMES})=)[^\s\"',;&}}]{{16,}}",
    r"()(?<![\w+/=])[A-Za-z0-9+/]{86}==(?![\w+/=])",  # an account key: 64 bytes of base64
    r"()\beyJ[\w-]{10,}\.[\w-]+\.[\w-]*",  # a token (JWT)
)
_NAMED = (
    r"(?i)(\bbearer\s+)[\w.~+/=-]+",
    rf"(?i)((?:{_NAMES})[\"']?\s*[=:]\s*[\"']?)(?![\[{{])[^\s\"',;&}}]+",
)


def redact(text: str) -> str:
    """Return `text` with everything that looks like a secret, or has the name of one before it, replaced."""
    return _replaced(text, (*_SHAPES, *_NAMED))


def redact_shapes(text: str) -> str:
    """Return `text` with what is a secret beyond doubt replaced: sentences about `account_key: x` stay."""
    return _replaced(text, _SHAPES)


def _replaced(text: str, patterns: tuple[str, ...]) -> str:
    for pattern in patterns:
        text = re.sub(pattern, rf"\g<1>{HIDDEN}", text)
    return text
