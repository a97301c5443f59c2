"""The XML of a listing, taken apart while it downloads.

The service writes it without white space and with every `<` of a name escaped, so plain text search is enough:
2 us an entry where expat takes 16 (tests hold it against an XML parser and Azure's SDK as oracles).
"""

import re
from base64 import b64decode
from binascii import Error as Base64Error
from calendar import timegm
from collections.abc import Mapping
from email.message import Message
from email.utils import parsedate
from functools import lru_cache
from html import unescape
from urllib.parse import unquote

from amlmount.stores.azure.failures import DamagedBodyError
from amlmount.stores.base import NO_METADATA, ObjectInfo, Page

_BLOB_END, _PREFIX_END = b"</Blob>", b"</BlobPrefix>"
_PREFIX = re.compile(r"<BlobPrefix>(?:(?!</BlobPrefix>).)*?<Name( Encoded=\"true\")?>([^<]*)<", re.DOTALL)
_METADATA = re.compile(r"<([^/<>\s]+)>([^<]*)</")
_MARKER = re.compile(r"<NextMarker>([^<]*)</NextMarker>")
_CONTAINER = re.compile(r"<Container><Name>([^<]*)<")


class ListingParser:
    """Takes one answer of `comp=list` chunk by chunk; `page` fills up as they come.

    `checksums` holds the MD5 of each blob that the service knows one of, by name. ValueError means that the text
    is not a listing, or broke off.
    """

    def __init__(self) -> None:
        self.page = Page([], [])
        self.checksums: dict[str, bytes] = {}
        self.next_marker = ""
        self._pending = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next piece of the body."""
        data = self._pending + chunk
        end = max(_end_of_last(data, _BLOB_END), _end_of_last(data, _PREFIX_END))
        self._pending = data[end:]
        if end:
            self._take(data[:end].decode())

    def finish(self) -> None:
        """The body has ended: read the marker of the next page."""
        rest = self._pending.decode()
        if "</EnumerationResults>" not in rest:
            raise ValueError("the listing has no end")
        marker = _MARKER.search(rest)
        self.next_marker = unescape(marker[1]) if marker else ""

    def _take(self, text: str) -> None:
        parts = text.split("<Blob>")
        self._take_prefixes(parts[0])
        for part in parts[1:]:
            end = part.index("</Blob>")
            self._take_blob(part)
            if len(part) > end + len("</Blob>"):
                self._take_prefixes(part[end:])

    def _take_prefixes(self, text: str) -> None:
        for encoded, name in _PREFIX.findall(text):
            self.page.prefixes.append(_name(name, bool(encoded)))

    def _take_blob(self, part: str) -> None:
        name = _blob_name(part)
        at = part.index("<Content-Length>") + 16
        size_bytes = int(part[at : part.index("<", at)])
        at = part.index("<Etag>") + 6
        etag = part[at : part.index("<", at)].strip('"')
        at = part.index("<Last-Modified>") + 15
        mtime_ns = date_ns(part[at : part.index("<", at)])
        at = part.find("<Content-MD5>") + 13
        if at > 12 and (digest := decode_md5(part[at : part.index("<", at)])):
            self.checksums[name] = digest
        self.page.objects.append(ObjectInfo(name, size_bytes, etag, mtime_ns, _metadata(part)))


def _end_of_last(data: bytes, tag: bytes) -> int:
    at = data.rfind(tag)
    return at + len(tag) if at >= 0 else 0


def _blob_name(part: str) -> str:
    if part.startswith("<Name>"):
        return _name(part[6 : part.index("<", 6)], False)
    at = part.index('<Name Encoded="true">') + 21
    return _name(part[at : part.index("<", at)], True)


def _name(text: str, is_encoded: bool) -> str:
    name = unescape(text) if "&" in text else text
    return unquote(name) if is_encoded else name


def _metadata(part: str) -> Mapping[str, str]:
    start = part.find("<Metadata>")
    if start < 0:
        return NO_METADATA
    pairs = _METADATA.findall(part, start + len("<Metadata>"), part.index("</Metadata>", start))
    return {key.lower(): unescape(value) for key, value in pairs}


@lru_cache(maxsize=8192)
def date_ns(text: str) -> int:
    """Return an HTTP date (RFC 9110, one second coarse) as nanoseconds since the epoch. Raises ValueError."""
    fields = parsedate(text)
    if fields is None:
        raise ValueError(f"not a date: {text!r}")
    return timegm(fields) * 1_000_000_000


def decode_md5(text: str | None) -> bytes | None:
    """Return the 16 bytes of a base64 MD5, None when there is none."""
    if not text:
        return None
    try:
        digest = b64decode(text, validate=True)
    except Base64Error:
        return None
    return digest if len(digest) == 16 else None


def etag_and_mtime(headers: Message) -> tuple[str, int]:
    """Return what the headers of an answer say of a blob's version. Raises DamagedBodyError when they do not."""
    try:
        return headers["ETag"].strip('"'), date_ns(headers["Last-Modified"])
    except (AttributeError, TypeError, ValueError):
        raise DamagedBodyError("the answer names no version of the blob") from None


def container_names(text: str) -> tuple[list[str], str]:
    """Return the names in one page of an account's containers, and the marker of the next page."""
    marker = _MARKER.search(text)
    return [unescape(name) for name in _CONTAINER.findall(text)], unescape(marker[1]) if marker else ""
