"""Writing a large blob from content read in pieces, sending only the blocks that changed; copying; describing.

Put Block in parallel and one conditional Put Block List: nobody sees anything before that, and all of it after.
"""

import os
import re
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from html import unescape
from types import MappingProxyType
from urllib.parse import urlencode

from amlmount.errors import AmlmountError, NetworkError, PreconditionFailedError
from amlmount.stores.azure.blocks import BLOCK_BYTES, MAX_BLOCKS, Committed, Part, plan_blocks
from amlmount.stores.azure.failures import Attempted
from amlmount.stores.azure.listing import etag_and_mtime
from amlmount.stores.azure.rest import Reader, RestClient
from amlmount.stores.azure.timing import Deadline
from amlmount.stores.azure.transport import Request, Response
from amlmount.stores.azure.upload import PARALLEL_BLOCKS, conditions, metadata_headers
from amlmount.stores.base import NO_METADATA, Content, ObjectInfo, Ranges
from amlmount.stores.pieces import Body, body_of

_MIN_ID_BYTES = 16  # shorter ids leave no room for ours to be ours alone
_OWN_ID_BYTES = 24
_BLOCK = re.compile(r"<Block><Name>([^<]+)</Name><Size>(\d+)</Size></Block>")
_COPY_POLL_S = 0.5
PROBE_NAME = ".amlmount-may-write"  # an uncommitted block shows nowhere, and the service drops it after a week


class StagedUpload:
    """One blob being written from `content`; used once. `sent`: blocks of a plan without kept ones that are there."""

    def __init__(
        self, client: RestClient, name: str, content: Content, sent: Mapping[int, str] = MappingProxyType({})
    ) -> None:
        self._sent = sent
        self._client, self._name, self._content = client, name, content
        self._attempted: Attempted = client.attempted("write", name)
        self._path = client.location.blob_path(name)

    def run(
        self,
        unchanged: Ranges,
        if_match: str | None,
        if_none_match: bool,
        metadata: Mapping[str, str] | None,
    ) -> ObjectInfo:
        """Send what has to be sent and commit it. Raises what `RestClient.call` and the content raise."""
        headers = conditions(if_match, if_none_match) | metadata_headers(self._name, metadata)
        present = self._present_blocks(if_match) if unchanged and if_match else []
        plan = plan_blocks(self._content.size_bytes, present, unchanged)
        ids = self._send(plan, len(b64decode(present[0].id)) if present else _OWN_ID_BYTES)
        return self._commit(plan, ids, headers, metadata)

    def _present_blocks(self, if_match: str) -> list[Committed]:
        """Return the blocks of the version `if_match`, none if their ids leave no room for ours."""

        def read(response: Response) -> tuple[str, str]:
            return (response.headers.get("ETag") or "").strip('"'), response.read().decode()

        query = {"comp": "blocklist", "blocklisttype": "committed"}
        etag, text = self._client.call(Request("GET", self._path, query), self._attempted, read)
        if etag != if_match:
            raise PreconditionFailedError(
                f"cannot write blob {self._name!r}: it has changed since it was opened", hint="open it again"
            )
        blocks = [Committed(unescape(name), int(size)) for name, size in _BLOCK.findall(text)]
        lengths = {len(block.id) for block in blocks}
        fits = len(lengths) == 1 and len(b64decode(blocks[0].id)) >= _MIN_ID_BYTES
        return blocks if fits else []

    def _send(self, plan: Sequence[Part], id_bytes: int) -> list[str]:
        """Put the blocks that are not there and return the ids of all."""
        tag = os.urandom(32).hex()[: id_bytes - 8]
        ids = [part.id or self._sent.get(number) or block_id(tag, number) for number, part in enumerate(plan)]
        failed = threading.Event()

        def put(number: int) -> None:
            if not failed.is_set():
                body = body_of(self._content, plan[number].start, plan[number].size_bytes)
                put_block(self._client, self._name, ids[number], body)

        with ThreadPoolExecutor(PARALLEL_BLOCKS, "amlmount-stage") as pool:
            jobs = [
                pool.submit(put, number) for number, part in enumerate(plan) if not part.id and number not in self._sent
            ]
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            if any(job.exception() for job in done):
                failed.set()
        for job in jobs:
            job.result()
        return ids

    def _commit(
        self, plan: Sequence[Part], ids: Sequence[str], headers: Mapping[str, str], metadata: Mapping[str, str] | None
    ) -> ObjectInfo:
        kinds = ["Committed" if part.id else "Uncommitted" for part in plan]
        entries = "".join(f"<{kind}>{name}</{kind}>" for kind, name in zip(kinds, ids, strict=True))
        xml = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{entries}</BlockList>'.encode()
        own = {"Content-Type": "application/xml"}
        request = Request("PUT", self._path, {"comp": "blocklist"}, {**headers, **own}, xml)
        read = _info_reader(self._name, self._content.size_bytes, metadata)
        try:
            return self._client.call(request, self._attempted, read)
        except PreconditionFailedError as error:
            if not (error.details.get("repeated") and self._is_made_of(ids)):
                raise
        return self._client.call(Request("HEAD", self._path), self._attempted, read)

    def _is_made_of(self, ids: Sequence[str]) -> bool:
        query = {"comp": "blocklist", "blocklisttype": "committed"}
        text = self._client.call(Request("GET", self._path, query), self._attempted, lambda reply: reply.read())
        return [unescape(name) for name, _ in _BLOCK.findall(text.decode())] == list(ids)


def put_block(client: RestClient, name: str, own_id: str, body: Body) -> None:
    """Send one block ("Put Block"), which shows nowhere before it is committed."""
    request = Request("PUT", client.location.blob_path(name), {"comp": "block", "blockid": own_id}, body=body)
    client.call(request, client.attempted("write", name), lambda reply: reply.read())


class PartsFirst:
    """One blob whose blocks are sent as they come into being; see stores.base.BegunUpload."""

    def __init__(self, client: RestClient, name: str) -> None:
        self._client, self._name = client, name
        self._ids: dict[int, str] = {}  # each is new: one that was given up may land after the one in its place

    @property
    def part_bytes(self) -> int:
        """What `plan_blocks` cuts a blob into."""
        return BLOCK_BYTES

    def send(self, number: int, data: bytes | memoryview) -> None:
        """Put one block."""
        self._put(number, data)

    def send_from(self, number: int, content: Content) -> None:
        """Put one block, read as it is sent if that can be."""
        self._put(number, body_of(content, number * BLOCK_BYTES, BLOCK_BYTES))

    def _put(self, number: int, body: Body) -> None:
        own = block_id(os.urandom(8).hex(), number)
        put_block(self._client, self._name, own, body)
        self._ids[number] = own

    def commit(
        self,
        content: Content,
        sent: Collection[int],
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Put the blocks that are missing, and the block list."""
        whole = content.size_bytes // BLOCK_BYTES if content.size_bytes <= BLOCK_BYTES * MAX_BLOCKS else 0
        there = {number: self._ids[number] for number in sent if number < whole}
        return StagedUpload(self._client, self._name, content, there).run((), if_match, if_none_match, metadata)


def block_id(tag: str, number: int) -> str:
    """Return the id of a block; those of one blob are of one length."""
    return b64encode(f"{tag}{number:08}".encode()).decode()


def copy_blob(
    client: RestClient, source: ObjectInfo, name: str, *, if_none_match: bool, timeout_s: float
) -> ObjectInfo:
    """Have the service copy a blob within the account ("Copy Blob"), metadata included."""
    attempted, path, where = client.attempted("copy", source.name), client.location.blob_path(name), client.location
    source_path = where.blob_path(source.name)
    login = client.authorizer.dress(Request("GET", source_path)).query
    url = where.url.removesuffix(where.base_path) + source_path + (f"?{urlencode(login)}" if login else "")
    headers = {"x-ms-copy-source": url, "x-ms-source-if-match": f'"{source.etag}"', **conditions(None, if_none_match)}

    def read(response: Response) -> tuple[str, ObjectInfo]:
        status = response.headers.get("x-ms-copy-status") or "success"
        return status, ObjectInfo(name, source.size_bytes, *etag_and_mtime(response.headers), source.metadata)

    try:
        status, info = client.call(Request("PUT", path, headers=headers), attempted, read)
    except PreconditionFailedError as error:
        if not (error.details.get("repeated") and _is_same(client, source_path, path, attempted)):
            raise
        status, info = client.call(Request("HEAD", path), attempted, read)
    deadline = Deadline(timeout_s)
    while status == "pending":
        time.sleep(deadline.bound(_COPY_POLL_S))
        status, info = client.call(Request("HEAD", path), attempted, read)
    if status != "success":
        raise NetworkError(f"cannot copy blob {source.name!r}: the service gave up ({status})", hint="try again")
    return info


def set_metadata(client: RestClient, info: ObjectInfo, metadata: Mapping[str, str]) -> ObjectInfo:
    """Replace the metadata of one version ("Set Blob Metadata")."""
    headers = conditions(info.etag) | metadata_headers(info.name, metadata)
    request = Request("PUT", client.location.blob_path(info.name), {"comp": "metadata"}, headers)
    read, attempted = _info_reader(info.name, info.size_bytes, metadata), client.attempted("write", info.name)
    try:
        return client.call(request, attempted, read)
    except PreconditionFailedError as error:
        head = Request("HEAD", client.location.blob_path(info.name))
        if not error.details.get("repeated") or client.call(head, attempted, _described) != dict(
            _described_by(metadata_headers(info.name, metadata))
        ):
            raise
        return client.call(head, attempted, read)


def _is_same(client: RestClient, source_path: str, path: str, attempted: Attempted) -> bool:
    """Say whether a copy whose answer was lost has been made: content and metadata are those of the source."""

    def read(response: Response) -> tuple[object, ...]:
        kept = ("Content-Length", "Content-MD5")
        return (*(response.headers.get(name) for name in kept), _described(response))

    return client.call(Request("HEAD", source_path), attempted, read) == client.call(
        Request("HEAD", path), attempted, read
    )


def _described(response: Response) -> dict[str, str]:
    return dict(_described_by(dict(response.headers.items())))


def _described_by(headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in headers.items():
        if name.lower().startswith("x-ms-meta-"):
            yield name.lower(), value


def check_writable(client: RestClient) -> None:
    """Send a block that nobody ever makes part of a blob. Raises AccessDeniedError."""
    query = {"comp": "block", "blockid": b64encode(bytes(_OWN_ID_BYTES)).decode()}
    request = Request("PUT", client.location.blob_path(PROBE_NAME), query, body=b"x")
    try:
        client.call(request, client.attempted("write"), lambda reply: reply.read())
    except AmlmountError as error:
        error.message = error.message.replace("cannot write", "cannot write to", 1)
        raise


def _info_reader(name: str, size_bytes: int, metadata: Mapping[str, str] | None) -> Reader[ObjectInfo]:
    kept = {key.lower(): value for key, value in metadata.items()} if metadata else NO_METADATA
    return lambda response: ObjectInfo(name, size_bytes, *etag_and_mtime(response.headers), kept)
