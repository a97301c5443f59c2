"""Writing a blob as one atomic, conditional step: one Put Blob, or parallel Put Block and one Put Block List.

A conditional write that had to be repeated may meet its own first attempt; then the MD5 of what is there decides.
"""

import hashlib
import os
from base64 import b64encode
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

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
) -> tuple[ObjectInfo, bytes | None]:
    """Write a blob; return what is there now, and its MD5 if that was worth computing.

    Raises PreconditionFailedError and what `RestClient.call` raises.
    """
    attempted = client.attempted("write", name)
    deadline = Deadline(client.timing.call_s + len(data) / _MIN_BYTES_PER_S)
    headers = {**headers, **metadata_headers(name, metadata)}
    kept = {key.lower(): value for key, value in metadata.items()} if metadata else NO_METADATA
    upload: _Single | _Staged
    if len(data) <= MAX_SINGLE_BYTES:
        upload = _Single(client, name, data, attempted, metadata_headers(name, metadata))
    else:
        upload = _Staged(client, name, data, attempted)

    def read(response: Response) -> ObjectInfo:
        return ObjectInfo(name, len(data), *etag_and_mtime(response.headers), kept)

    try:
        return client.call(upload.prepare(headers, deadline), attempted, read, deadline=deadline), upload.md5
    except PreconditionFailedError as error:
        if not (error.details.get("repeated") and upload.is_done()):
            raise
    return client.call(Request("HEAD", upload.path), attempted, read), upload.md5


class _Single:
    """One Put Blob. The service checks the MD5 on arrival and keeps it."""

    def __init__(
        self, client: RestClient, name: str, data: bytes, attempted: Attempted, described: Mapping[str, str]
    ) -> None:
        self._client, self._data, self._attempted, self._described = client, data, attempted, described
        self.path = client.location.blob_path(name)
        self.md5 = hashlib.md5(data, usedforsecurity=False).digest()

    def prepare(self, headers: Mapping[str, str], _: Deadline) -> Request:
        """Return the request that makes the blob."""
        own = {"x-ms-blob-type": "BlockBlob", "Content-MD5": b64encode(self.md5).decode()}
        return Request("PUT", self.path, headers={**headers, **own}, body=self._data)

    def is_done(self) -> bool:
        """Say whether this content is there, described as ours. (Without metadata, anybody may have written it.)"""

        def read(response: Response) -> bool:
            headers = {key.lower(): value for key, value in response.headers.items()}
            is_ours = all(headers.get(key) == value for key, value in self._described.items())
            return is_ours and headers.get("content-md5") == b64encode(self.md5).decode()

        return self._client.call(Request("HEAD", self.path), self._attempted, read)


class _Staged:
    """Put Block, eight at a time, and one Put Block List. No MD5: it would cost 1.7 s of a core for each GiB."""

    md5 = None

    def __init__(self, client: RestClient, name: str, data: bytes, attempted: Attempted) -> None:
        self._client, self._attempted, view = client, attempted, memoryview(data)
        self.path, self._tag = client.location.blob_path(name), os.urandom(8).hex()
        self._parts = [view[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]

    def prepare(self, headers: Mapping[str, str], deadline: Deadline) -> Request:
        """Send the blocks and return the request that makes them a blob."""

        def put_block(number: int) -> None:
            query = {"comp": "block", "blockid": self._id(number)}
            block = Request("PUT", self.path, query, body=self._parts[number])
            self._client.call(block, self._attempted, lambda reply: reply.read(), deadline=deadline)

        numbers = range(len(self._parts))
        with ThreadPoolExecutor(PARALLEL_BLOCKS, "amlmount-put") as pool:
            for _ in pool.map(put_block, numbers):
                pass
        ids = "".join(f"<Uncommitted>{self._id(number)}</Uncommitted>" for number in numbers)
        xml = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{ids}</BlockList>'.encode()
        return Request("PUT", self.path, {"comp": "blocklist"}, {**headers, "Content-Type": "application/xml"}, xml)

    def is_done(self) -> bool:
        """Say whether the blob is made of these very blocks."""
        query = {"comp": "blocklist", "blocklisttype": "committed"}
        text = self._client.call(Request("GET", self.path, query), self._attempted, lambda reply: reply.read())
        return self._id(0).encode() in text

    def _id(self, number: int) -> str:
        return b64encode(f"{self._tag}{number:08d}".encode()).decode()
