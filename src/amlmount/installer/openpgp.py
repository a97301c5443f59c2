"""The fingerprints in an OpenPGP public key file, without gpg (a small machine has none): RFC 4880, 4.2, 6.2, 12.2."""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator

PUBLIC_KEY_TAG = 6
_ARMOUR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(?:[!-~]+:.*\r?\n)*\r?\n(?P<body>[A-Za-z0-9+/=\s]+?)"
    rb"(?:\r?\n=[A-Za-z0-9+/]{4})?\s*-----END PGP PUBLIC KEY BLOCK-----"
)


def fingerprints(data: bytes) -> list[str]:
    """Return the fingerprints of the primary keys (version 4) in a key file, armoured or not; none if it is no key."""
    matches = [match["body"] for match in _ARMOUR.finditer(data)]
    try:
        blocks = [base64.b64decode(body) for body in matches] or [data]
        return [_fingerprint(body) for block in blocks for tag, body in _packets(block) if tag == PUBLIC_KEY_TAG]
    except (binascii.Error, IndexError, ValueError):
        return []


def _fingerprint(body: bytes) -> str:
    if not body or body[0] != 4:
        raise ValueError("not a version 4 key")
    framed = b"\x99" + len(body).to_bytes(2, "big") + body
    return hashlib.sha1(framed, usedforsecurity=False).hexdigest().upper()


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        head = data[at]
        if not head & 0x80:
            raise ValueError("not an OpenPGP packet")
        if head & 0x40:
            tag, length, start = head & 0x3F, *_new_length(data, at + 1)
        else:
            octets = 1 << (head & 3)
            tag, length, start = head >> 2 & 0xF, int.from_bytes(data[at + 1 : at + 1 + octets], "big"), at + 1 + octets
        if start + length > len(data):
            raise ValueError("cut off")
        yield tag, data[start : start + length]
        at = start + length


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    first = data[at]
    if first < 192:
        return first, at + 1
    if first < 224:
        return ((first - 192) << 8) + data[at + 1] + 192, at + 2
    return int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
