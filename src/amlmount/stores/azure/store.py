"""A container of Azure Blob Storage as an ObjectStore: obstore for bytes, our own REST client for all the rest.

Nothing is opened, resolved or imported before the first call, and all of it anew in a forked child.
"""

import os
import threading
from collections.abc import Iterator, Mapping

from amlmount.errors import BlobNotFoundError, PreconditionFailedError, UsageError
from amlmount.stores.azure.auth import Authorizer
from amlmount.stores.azure.bulk import BulkReader, Fetched
from amlmount.stores.azure.checksums import Checksums
from amlmount.stores.azure.credentials import AzureDefinition, authorize, locate_store
from amlmount.stores.azure.download import Download
from amlmount.stores.azure.failures import DamagedBodyError
from amlmount.stores.azure.listing import ListingParser, container_names, decode_md5, etag_and_mtime
from amlmount.stores.azure.location import check_name
from amlmount.stores.azure.rest import RestClient
from amlmount.stores.azure.staging import PartsFirst, StagedUpload, check_writable, copy_blob, set_metadata
from amlmount.stores.azure.timing import Deadline, Timing
from amlmount.stores.azure.transport import Pool, Request, Response
from amlmount.stores.azure.upload import MAX_SINGLE_BYTES, conditions, put_blob
from amlmount.stores.base import NO_METADATA, Content, ObjectInfo, Page, Ranges

MAX_PAGE_SIZE = 5000
MAX_COPY_S = 3600.0
Names = list[str]


class AzureStore:
    """ObjectStore over one container; see the contract for what each method does.

    `get_buffer` is `get` without its last copy.
    """

    def __init__(self, definition: AzureDefinition, *, timing: Timing | None = None) -> None:
        self._definition, self._timing = definition, timing or Timing()
        self.location = locate_store(definition)
        self._lock = threading.Lock()
        self._opened: tuple[int, RestClient, BulkReader] | None = None
        self._checksums = Checksums()

    @property
    def is_local(self) -> bool:
        """Always false."""
        return False

    def list(self, prefix: str = "", *, delimiter: bool = False, page_size: int = MAX_PAGE_SIZE) -> Iterator[Page]:
        """Yield a page as soon as it is there; the next one is asked for before the present one is handed out."""
        client = self._client()
        query = {"restype": "container", "comp": "list", "include": "metadata", "prefix": prefix}
        query |= {"maxresults": str(min(page_size, MAX_PAGE_SIZE))} | ({"delimiter": "/"} if delimiter else {})
        marker, ahead = "", None
        try:
            while True:
                parsed = client.call(
                    self._list_request(query, marker), client.attempted("list"), _read_listing, first=ahead
                )
                marker, ahead = parsed.next_marker, None
                self._checksums.remember(parsed.page.objects, parsed.checksums)
                if marker:
                    ahead = client.start(self._list_request(query, marker))
                yield parsed.page
                if not marker:
                    return
        finally:
            if ahead is not None:
                ahead.abandon()

    def head(self, name: str) -> ObjectInfo:
        """Ask for everything about a blob but its content."""
        request = Request("HEAD", self._path_to_read(name))
        client = self._client()
        return client.call(request, client.attempted("look at", name), lambda reply: self._info(name, reply))

    def content_md5(self, name: str, *, if_match: str) -> bytes | None:
        """Ask for the MD5 that the service keeps (Content-MD5 of Get Blob Properties)."""
        request = Request("HEAD", self._path_to_read(name), headers=conditions(if_match))
        client = self._client()
        return client.call(
            request, client.attempted("look at", name), lambda reply: decode_md5(reply.headers.get("Content-MD5"))
        )

    def get(self, name: str, start: int = 0, length: int | None = None, *, if_match: str | None = None) -> bytes:
        """Read through obstore, and if that fails in any way through our own client, which knows why."""
        return bytes(self.get_buffer(name, start, length, if_match=if_match))

    def get_buffer(
        self, name: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> memoryview:
        """Return what `get` does as a view of the client's own memory, which saves 0.1 to 0.8 ms for each MiB."""
        self._refuse_unreachable(name)
        if length == 0:
            return self._nothing(name, if_match)
        client, bulk = self._client(), self._bulk()
        deadline = Deadline(self._timing.call_s)
        client.gate.enter(deadline)
        fetched = bulk.get(name, start, length, if_match)
        if fetched is not None and not (start == 0 and self._is_damaged(name, fetched)):
            client.gate.succeeded()
            return fetched.data
        return memoryview(Download(client, name, start, length, if_match, self._checksums).run(deadline))

    def warm_up(self) -> None:
        """Get ready to read without asking the service anything: the first read then takes 30 to 50 ms less."""
        self._bulk().warm_up()

    def put(
        self,
        name: str,
        data: bytes,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Write in one request up to 8 MiB, beyond that in parallel blocks that one last request makes a blob."""
        check_name(name)
        info, digest = put_blob(self._client(), name, data, conditions(if_match, if_none_match), metadata)
        if digest is not None:
            self._checksums.remember([info], {name: digest})
        return info

    @property
    def keeps_metadata(self) -> bool:
        """Always true."""
        return True

    def upload(
        self,
        name: str,
        content: Content,
        *,
        unchanged: Ranges = (),
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Write in one request up to 8 MiB, else in blocks, of which those that are `unchanged` are not sent again."""
        check_name(name)
        if content.size_bytes <= MAX_SINGLE_BYTES:
            data = bytes(content.read(0, content.size_bytes)) if content.size_bytes else b""
            return self.put(name, data, if_match=if_match, if_none_match=if_none_match, metadata=metadata)
        return StagedUpload(self._client(), name, content).run(unchanged, if_match, if_none_match, metadata)

    def begin(self, name: str) -> PartsFirst:
        """See TakesParts.begin."""
        check_name(name)
        return PartsFirst(self._client(), name)

    def copy(self, source: ObjectInfo, name: str, *, if_none_match: bool = False) -> ObjectInfo:
        """Copy within the container, by the service; waits as long as that takes, an hour at most."""
        check_name(name)
        self._refuse_unreachable(source.name)
        return copy_blob(self._client(), source, name, if_none_match=if_none_match, timeout_s=MAX_COPY_S)

    def set_metadata(self, info: ObjectInfo, metadata: Mapping[str, str]) -> ObjectInfo:
        """See WritableStore.set_metadata."""
        self._refuse_unreachable(info.name)
        return set_metadata(self._client(), info, metadata)

    def check_writable(self) -> None:
        """Send a block that never becomes a blob."""
        check_writable(self._client())

    def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Remove a blob and its snapshots."""
        path, client = self._path_to_read(name), self._client()
        request = Request("DELETE", path, headers={**conditions(if_match), "x-ms-delete-snapshots": "include"})
        try:
            client.call(request, client.attempted("delete", name), lambda reply: reply.read())
        except BlobNotFoundError as error:
            if not error.details.get("repeated"):
                raise

    def list_containers(self) -> Names:
        """Return the names of all containers of the account. Raises AccessDeniedError (a SAS needs srt=s)."""
        client, marker = self._client(), ""
        names: Names = []
        while True:
            query = {"comp": "list"} | ({"marker": marker} if marker else {})
            request = Request("GET", f"{self.location.base_path}/", query)
            text = client.call(request, client.attempted("list the containers of"), lambda reply: reply.read().decode())
            found, marker = container_names(text)
            names += found
            if not marker:
                return names

    def authorizer(self) -> Authorizer:
        """Return the credential in use, resolved now if it was not. Raises ConfigError, AccessDeniedError."""
        return self._client().authorizer

    def close(self) -> None:
        """Close idle connections; a later call opens new ones."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened and opened[0] == os.getpid():
            opened[1].close()

    def _client(self) -> RestClient:
        return self._parts()[1]

    def _bulk(self) -> BulkReader:
        return self._parts()[2]

    def _parts(self) -> tuple[int, RestClient, BulkReader]:
        opened, pid = self._opened, os.getpid()
        if opened is None or opened[0] != pid:
            opened = self._opened = self._open(pid)
        return opened

    def _open(self, pid: int) -> tuple[int, RestClient, BulkReader]:
        where = self.location
        pool = Pool(where.scheme, where.host, where.port, self._timing)
        client = RestClient(where, self._authorize, self._timing, pool)
        bulk = BulkReader(where, lambda: client.authorizer, self._timing)
        return pid, client, bulk

    def _authorize(self) -> Authorizer:
        return authorize(self._definition, self.location)

    def _nothing(self, name: str, if_match: str | None) -> memoryview:
        if if_match not in (None, self.head(name).etag):
            raise PreconditionFailedError(
                f"cannot read blob {name!r}: it has changed since it was opened", hint="open it again"
            )
        return memoryview(b"")

    def _is_damaged(self, name: str, fetched: Fetched) -> bool:
        return self._checksums.knows(name) and self._checksums.contradicts(name, fetched.etag, fetched.data)

    def _refuse_unreachable(self, name: str) -> None:
        try:
            check_name(name)
        except UsageError as error:
            raise BlobNotFoundError(error.message, hint=error.hint) from None

    def _path_to_read(self, name: str) -> str:
        self._refuse_unreachable(name)
        return self.location.blob_path(name)

    def _list_request(self, query: Mapping[str, str], marker: str) -> Request:
        page = {**query, "marker": marker} if marker else query
        return Request("GET", self.location.container_path, page)

    def _info(self, name: str, reply: Response) -> ObjectInfo:
        stamp = reply.headers
        pairs = ((key.lower(), value) for key, value in stamp.items())
        metadata = {key.removeprefix("x-ms-meta-"): value for key, value in pairs if key.startswith("x-ms-meta-")}
        size_bytes = int(stamp.get("Content-Length", "0"))
        info = ObjectInfo(name, size_bytes, *etag_and_mtime(stamp), metadata or NO_METADATA)
        if digest := decode_md5(stamp.get("Content-MD5")):
            self._checksums.remember([info], {name: digest})
        return info


def _read_listing(reply: Response) -> ListingParser:
    parser = ListingParser()
    try:
        for chunk in reply.chunks():
            parser.feed(chunk)
        parser.finish()
    except ValueError as error:
        raise DamagedBodyError(f"what arrived is no listing: {error}") from None
    return parser
