"""What the blob service of `fakeblob` is asked, holds and says: requests, blobs, errors and listings as bytes."""

import base64
import hashlib
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape


@dataclass(frozen=True)
class Blob:
    """What is stored."""

    data: bytes
    etag: str
    modified: str
    metadata: dict[str, str]
    md5: str
    blocks: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Asked:
    """One request that came in."""

    at: float
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def is_list(self) -> bool:
        """True for a listing of blobs."""
        return self.query.get("comp") == "list" and "restype" in self.query


Answer = tuple[int, bytes, dict[str, str]]


def spoiled(
    kind: str, status: int, body: bytes, headers: dict[str, str]
) -> tuple[int, bytes, dict[str, str], int | None]:
    if kind in ("stall", "truncate"):
        return status, body, headers, len(body) // 3
    if kind == "corrupt":
        return status, bytes([body[0] ^ 1]) + body[1:], headers, None
    if kind == "wrong_range":
        return status, body, headers | {"Content-Range": f"bytes 5-{len(body) + 4}/{len(body) + 99}"}, None
    if kind == "no_etag":
        return status, body, {key: value for key, value in headers.items() if key != "ETag"}, None
    return status, body, headers, None


def check_conditions(asked: Asked, present: Blob | None) -> Answer | None:
    wanted = asked.headers.get("if-match")
    if asked.headers.get("if-none-match") == "*" and present:
        return error(409, "BlobAlreadyExists", "The specified blob already exists.")
    if wanted and (present is None or wanted.strip('"') != present.etag):
        return error(412, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met.")
    return None


def error(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> Answer:
    message = f"{detail}\nRequestId:1\nTime:2025-01-01"
    extra = (
        f"<AuthenticationErrorDetail>{escape(detail)}</AuthenticationErrorDetail>" if status == 403 and detail else ""
    )
    xml = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{escape(message)}</Message>{extra}</Error>'
    return status, xml.encode(), {"x-ms-error-code": code, "Content-Type": "application/xml"} | (headers or {})


def metadata(asked: Asked) -> dict[str, str]:
    return {key[10:]: value for key, value in asked.headers.items() if key.startswith("x-ms-meta-")}


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def containers_xml(containers: dict[str, Any]) -> bytes:
    names = "".join(f"<Container><Name>{name}</Name></Container>" for name in sorted(containers))
    text = f"<EnumerationResults><Containers>{names}</Containers><NextMarker /></EnumerationResults>"
    return f'<?xml version="1.0"?>{text}'.encode()


def list_xml(blobs: dict[str, Blob], query: dict[str, str]) -> bytes:
    prefix, marker, limit = query.get("prefix", ""), query.get("marker", ""), int(query.get("maxresults", 5000))
    entries: dict[str, str] = {}
    for name in sorted(name for name in blobs if name.startswith(prefix)):
        end = name.find("/", len(prefix)) if "delimiter" in query else -1
        shown = name[: end + 1] if end >= 0 else name
        entries.setdefault(shown, _prefix_xml(shown) if end >= 0 else _blob_xml(name, blobs[name]))
    rest = [name for name in entries if name >= marker]
    text = "".join(entries[name] for name in rest[:limit])
    following = f"<NextMarker>{escape(rest[limit])}</NextMarker>" if len(rest) > limit else "<NextMarker />"
    head = '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="x" ContainerName="data">'
    return f"{head}<Blobs>{text}</Blobs>{following}</EnumerationResults>".encode()


def _prefix_xml(name: str) -> str:
    return f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>"


def _blob_xml(name: str, blob: Blob) -> str:
    pairs = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in blob.metadata.items())
    return (
        f"<Blob><Name>{escape(name)}</Name><Properties><Creation-Time>{blob.modified}</Creation-Time>"
        f"<Last-Modified>{blob.modified}</Last-Modified><Etag>{blob.etag}</Etag>"
        f"<Content-Length>{len(blob.data)}</Content-Length><Content-Type>application/octet-stream</Content-Type>"
        f"<Content-MD5>{blob.md5}</Content-MD5><BlobType>BlockBlob</BlobType></Properties>"
        + (f"<Metadata>{pairs}</Metadata>" if pairs else "<Metadata />")
        + "<OrMetadata /></Blob>"
    )
