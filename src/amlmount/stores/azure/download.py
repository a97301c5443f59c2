"""The careful way to read: one GET through our own client, with everything the answer says of itself checked.

Range, length, etag, and the MD5 where there is one; what does not fit is asked for again.
"""

import hashlib
import re
from email.message import Message

from amlmount.errors import AmlmountError, PreconditionFailedError
from amlmount.stores.azure.checksums import Checksums
from amlmount.stores.azure.failures import DamagedBodyError
from amlmount.stores.azure.listing import decode_md5
from amlmount.stores.azure.rest import RestClient
from amlmount.stores.azure.timing import Deadline
from amlmount.stores.azure.transport import Request, Response

# Get Blob computes the MD5 of a range of 4 MiB at most.
_MAX_RANGE_MD5_BYTES = 4 * 1024 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Download:
    """One read of one blob: bytes `[start, start + length)`, up to its end when `length` is None."""

    def __init__(
        self, client: RestClient, name: str, start: int, length: int | None, if_match: str | None, checksums: Checksums
    ) -> None:
        self._client, self._name, self._if_match, self._checksums = client, name, if_match, checksums
        self._start, self._length = start, length
        self._is_range = bool(start) or length is not None

    def run(self, deadline: Deadline) -> bytes:
        """Return the bytes, none when the blob ends before `start`.

        Raises BlobNotFoundError, PreconditionFailedError, AccessDeniedError, NetworkError.
        """
        request = Request("GET", self._client.location.blob_path(self._name), headers=self._headers())
        attempted = self._client.attempted("read", self._name)
        try:
            return self._client.call(request, attempted, self._read, deadline=deadline)
        except AmlmountError as error:
            if error.details.get("code") != "InvalidRange":
                raise
        head = Request("HEAD", request.path)
        self._client.call(head, attempted, lambda reply: self._check_etag(reply.headers), deadline=deadline)
        return b""

    def _headers(self) -> dict[str, str]:
        headers = {"If-Match": f'"{self._if_match}"'} if self._if_match is not None else {}
        if not self._is_range:
            return headers
        end = "" if self._length is None else str(self._start + self._length - 1)
        headers["x-ms-range"] = f"bytes={self._start}-{end}"
        if self._length is not None and self._length <= _MAX_RANGE_MD5_BYTES:
            headers["x-ms-range-get-content-md5"] = "true"
        return headers

    def _read(self, reply: Response) -> bytes:
        etag = self._check_etag(reply.headers)
        body = reply.read()
        is_whole = self._check_range(reply, len(body))
        digest = decode_md5(reply.headers.get("Content-MD5"))
        if digest is not None and digest != hashlib.md5(body, usedforsecurity=False).digest():
            raise DamagedBodyError("what arrived does not match its MD5")
        if is_whole and self._checksums.contradicts(self._name, etag, body):
            raise DamagedBodyError("what arrived does not match the MD5 in the listing")
        return body

    def _check_etag(self, headers: Message) -> str:
        etag = headers.get("ETag", "").strip('"')
        if not etag:
            raise DamagedBodyError("the answer does not say which version it is of")
        if self._if_match not in (None, etag):
            raise PreconditionFailedError(
                f"cannot read blob {self._name!r}: it has changed since it was opened", hint="open it again"
            )
        return etag

    def _check_range(self, reply: Response, got_bytes: int) -> bool:
        """Say whether the body is the whole blob. Raises DamagedBodyError when it is not what was asked for."""
        if reply.status == 200:
            if self._start or (self._length is not None and got_bytes > self._length):
                raise DamagedBodyError("the whole blob arrived, and only a part was asked for")
            return True
        found = _CONTENT_RANGE.fullmatch(reply.headers.get("Content-Range", ""))
        first, last, size_bytes = (int(number) for number in found.groups()) if found else (-1, -1, -1)
        wanted = size_bytes if self._length is None else min(self._start + self._length, size_bytes)
        # Azurite answers a range that begins at the very end with "bytes N-(N-1)/N" and nothing.
        if first != self._start or last + 1 != wanted or got_bytes != last + 1 - first:
            raise DamagedBodyError("another part arrived than was asked for")
        return first == 0 and last + 1 == size_bytes
