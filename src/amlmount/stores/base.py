"""The written contract of an object store: what every store does, and what `tests/contract` holds it to.

A store never decides policy: it does not cache, prefetch or hide a name. It retries what its
protocol says may be retried, and otherwise raises an error of `amlmount.errors`.
All methods may be called from several threads at once.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, cast, runtime_checkable

NO_METADATA: Mapping[str, str] = MappingProxyType({})


class ObjectInfo(NamedTuple):
    """What a store knows of a blob without reading it (a tuple because listings make millions of them).

    `etag` is opaque, unquoted, and changes whenever the content does. `mtime_ns` is nanoseconds since
    the epoch (stores with a coarser clock round down). `metadata` keys are lower case.
    """

    name: str
    size_bytes: int
    etag: str
    mtime_ns: int
    metadata: Mapping[str, str] = NO_METADATA


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing: blobs, and with a delimiter the common prefixes (each ends in `/`)."""

    objects: list[ObjectInfo]
    prefixes: list[str]


class ObjectStore(Protocol):
    """A flat namespace of blobs. Names are `/`-separated by convention only; any string may come out of `list`.

    A name that a store cannot hold (`a//b` or `../x` on a local disk) is refused before anything is touched:
    BlobNotFoundError from `head`, `get` and `delete`, UsageError from `put`, nothing from `list`.
    """

    @property
    def is_local(self) -> bool:
        """True when every call answers at local-disk speed (the engine then need not hand it to a thread)."""
        ...

    def list(self, prefix: str = "", *, delimiter: bool = False, page_size: int = 5000) -> Iterator[Page]:
        """Yield pages of what starts with `prefix`, in no promised order across stores, as they arrive.

        With `delimiter`, names are cut at the next `/` after the prefix and reported once as a prefix.
        An empty result is one or zero empty pages, never an error.
        Raises ContainerNotFoundError, AccessDeniedError, NetworkError.
        """
        ...

    def head(self, name: str) -> ObjectInfo:
        """Return what is known of a blob, metadata included. Raises BlobNotFoundError."""
        ...

    def get(self, name: str, start: int = 0, length: int | None = None, *, if_match: str | None = None) -> bytes:
        """Return bytes `[start, start + length)`, cut at the end of the blob; empty at or beyond the end.

        With `if_match`, raises PreconditionFailedError if the blob has another etag: never a mix of two versions.
        Raises BlobNotFoundError when it is gone.
        """
        ...

    def put(
        self,
        name: str,
        data: bytes,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Replace or create a blob as one atomic step and return what is now there.

        `if_match`: only if the present etag is this one. `if_none_match`: only if nothing is there.
        Raises PreconditionFailedError otherwise, and leaves what was there as it was.
        """
        ...

    def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Remove a blob. Raises BlobNotFoundError, and PreconditionFailedError for another etag."""
        ...

    def close(self) -> None:
        """Give back connections and threads; calling it twice is harmless."""
        ...


class Content(Protocol):
    """What a blob shall hold, read in pieces, from several threads at once; it stays the same while it is read."""

    @property
    def size_bytes(self) -> int:
        """Its length."""
        ...

    def read(self, start: int, length: int) -> bytes | memoryview:
        """Return exactly these bytes, all of them below `size_bytes`. Raises OSError, AmlmountError."""
        ...


@runtime_checkable
class IsLocal(Protocol):
    """A content that says whether it is quick to read in small pieces."""

    @property
    def is_local(self) -> bool:
        """True when every `read` is answered at local-disk speed."""
        ...


Ranges = Sequence[tuple[int, int]]  # sorted, disjoint, each from start to end (exclusive), in bytes


@runtime_checkable
class WritableStore(ObjectStore, Protocol):
    """A store that a writable mount can stand on: blobs of any size, changed in part, copied, described."""

    @property
    def keeps_metadata(self) -> bool:
        """True if all metadata comes back; else only `mtime` (RFC 3339) is taken, as the time of the blob."""
        ...

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
        """Do what `put` does, reading `content` in pieces: nobody ever sees a part of it.

        `unchanged`: ranges that are the same, at the same place, in the version `if_match`; a store that can
        takes them from there and does not read them. Raises what `put` and `content` raise.
        """
        ...

    def copy(self, source: ObjectInfo, name: str, *, if_none_match: bool = False) -> ObjectInfo:
        """Make `name` what `source` is, metadata included, without its bytes coming here if the store can do that.

        Raises PreconditionFailedError if `source` is another version by now, or if `name` is there and
        `if_none_match`; BlobNotFoundError if `source` is gone.
        """
        ...

    def set_metadata(self, info: ObjectInfo, metadata: Mapping[str, str]) -> ObjectInfo:
        """Replace the metadata of exactly this version, and return the version that it is now."""
        ...

    def check_writable(self) -> None:
        """Find out, without leaving a trace, if anything may be written. Raises AccessDeniedError, NetworkError."""
        ...


def writable(store: ObjectStore) -> WritableStore:
    """Return a store of a mount that can be written: whoever opened it has looked (isinstance takes 20 us here)."""
    return cast(WritableStore, store)


class BegunUpload(Protocol):
    """A blob of which parts are sent before the rest of it is there; nobody sees any of it before `commit`."""

    @property
    def part_bytes(self) -> int:
        """The length of every part; part n begins at n times that."""
        ...

    def send(self, number: int, data: bytes | memoryview) -> None:
        """Send a part, or send it anew; from several threads at once, one of them for a part. Raises AmlmountError."""
        ...

    def send_from(self, number: int, content: Content) -> None:
        """Send a part, or send it anew, as `content` has it. Raises what `send` and `content` raise."""
        ...

    def commit(
        self,
        content: Content,
        sent: Collection[int],
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Do what `upload` does, without reading the parts that were `sent`, which must be as they are in `content`.

        Raises what `upload` raises, and AmlmountError when parts have got lost.
        """
        ...


@runtime_checkable
class TakesParts(Protocol):
    """A store that takes parts of a blob ahead of the rest."""

    def begin(self, name: str) -> BegunUpload:
        """Begin a blob; asks the store nothing. Raises UsageError for a name it cannot hold."""
        ...


@runtime_checkable
class HasDirectories(Protocol):
    """A store in which a directory is more than a name that others begin with."""

    def make_directory(self, path: str) -> None:
        """Make an empty directory; one that is there is fine. Raises UsageError where there is a blob."""
        ...

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory; one that is not there is fine. Raises BusyError if it is not empty."""
        ...

    def rename_directory(self, path: str, new_path: str) -> None:
        """Give a directory, with all that is in it, another path in one step; what is there must be empty.

        Etags stay as they are. Raises BlobNotFoundError, BusyError.
        """
        ...


@runtime_checkable
class HasDiskSpace(Protocol):
    """A store that lies on a disk of limited size, for `statfs`."""

    def disk_space(self) -> tuple[int, int]:
        """Return total and free bytes of the disk. Raises ContainerNotFoundError, NetworkError."""
        ...


@runtime_checkable
class HasContentMd5(Protocol):
    """A store that keeps the MD5 of what was written in one request."""

    def content_md5(self, name: str, *, if_match: str) -> bytes | None:
        """Return the 16 bytes that the store keeps for this version of a blob, None if it keeps none for it.

        Raises BlobNotFoundError, PreconditionFailedError for another version.
        """
        ...
