"""Writing a blob as one atomic, conditional step: one Put Blob, or parallel Put Block and one Put Block List.

A conditional write that had to be repeated may meet its own first attempt; then the MD5 of what is there decides.
"""

import hashlib
import os
from base64 import b64encode
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from amlmount.errors import PreconditionFailedError, UsageError
from amlmount.stores.azure.failures import Attempted
from amlmount.stores.azure.listing import etag_and_mtime
from amlmount.stores.azure.rest import RestClient
from amlmount.stores.azure.timing import Deadline
from amlmount.stores.azure.transport import Request, Response
from amlmount.stores.base import NO_METADATA, ObjectInfo

BLOCK_BYTES = 8 * 1024 * 1024
MAX_SINGLE_BYTES = BLOCK_BYTES
PARALLEL_BLOCKS = 8
# What a whole upload may take beyond the deadline of one call: slow links still finish.
_MIN_BYTES_PER_S = 256 * 1024


def conditions(if_match: str | None, if_none_match: bool = False) -> dict[str, str]:
    """Return the headers that make a write conditional."""
    headers = {"If-Match": f'"{if_match}"'} if if_match is not None else {}
    return headers | ({"If-None-Match": "*"} if if_none_match else {})


def metadata_headers(name: str, metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return metadata as headers. Raises UsageError for what a header cannot hold."""
    headers = {f"x-ms-meta-{key.lower()}": value for key, value in (metadata or {}).items()}
    for key, value in headers.items():
        if not (key.isascii() and value.isascii() and (key + value).isprintable()):
            raise UsageError(
                f"cannot write blob {name!r}: metadata {key.removeprefix('x-ms-meta-')!r} is not printable ASCII",
                hint="encode it, as base64 for example",
            )
    return headers


def put_blob(
    client: RestClient, name: str, data: bytes, headers: Mapping[str, str], metadata: Mapping[str, str] | None
) -> tuple[ObjectInfo, bytes]:
    """Write a blob and return what is there now, and its MD5. Raises PreconditionFailedError and what `call` raises."""
    attempted = client.attempted("write", name)
    deadline = Deadline(client.timing.call_s + len(data) / _MIN_BYTES_PER_S)
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    digest = b64encode(md5).decode()
    headers = {**headers, **metadata_headers(name, metadata), "x-ms-blob-content-md5": digest}
    request = _single(client, name, data, headers) if len(data) <= MAX_SINGLE_BYTES else None
    kept = {key.lower(): value for key, value in metadata.items()} if metadata else NO_METADATA

    def read(response: Response) -> ObjectInfo:
        return ObjectInfo(name, len(data), *etag_and_mtime(response.headers), kept)

    try:
        request = request or _staged(client, name, data, headers, attempted, deadline)
        return client.call(request, attempted, read, deadline=deadline), md5
    except PreconditionFailedError as error:
        if error.details.get("repeated") and (found := _own_earlier_write(client, name, len(data), digest, kept)):
            return found, md5
        raise


def _single(client: RestClient, name: str, data: bytes, headers: Mapping[str, str]) -> Request:
    own = {"x-ms-blob-type": "BlockBlob", "Content-MD5": headers["x-ms-blob-content-md5"]}
    return Request("PUT", client.location.blob_path(name), headers={**headers, **own}, body=data)


def _staged(
    client: RestClient,
    name: str,
    data: bytes,
    headers: Mapping[str, str],
    attempted: Attempted,
    deadline: Deadline,
) -> Request:
    path, view, tag = client.location.blob_path(name), memoryview(data), os.urandom(8).hex()
    parts = [view[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
    ids = [b64encode(f"{tag}{number:08d}".encode()).decode() for number in range(len(parts))]

    def put_block(numbered: tuple[str, memoryview]) -> None:
        query = {"comp": "block", "blockid": numbered[0]}
        client.call(Request("PUT", path, query, body=numbered[1]), attempted, _drain, deadline=deadline)

    with ThreadPoolExecutor(PARALLEL_BLOCKS, "amlmount-put") as pool:
        for _ in pool.map(put_block, zip(ids, parts, strict=True)):
            pass
    body = "".join(f"<Uncommitted>{block}</Uncommitted>" for block in ids)
    xml = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{body}</BlockList>'.encode()
    return Request("PUT", path, {"comp": "blocklist"}, {**headers, "Content-Type": "application/xml"}, xml)


def _drain(response: Response) -> None:
    response.read()


def _own_earlier_write(client: RestClient, name: str, size_bytes: int, digest: str, kept: Any) -> ObjectInfo | None:
    def read(response: Response) -> ObjectInfo | None:
        if response.headers.get("Content-MD5") != digest:
            return None
        return ObjectInfo(name, size_bytes, *etag_and_mtime(response.headers), kept)

    return client.call(Request("HEAD", client.location.blob_path(name)), client.attempted("look at", name), read)
