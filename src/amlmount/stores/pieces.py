"""A stretch of a content that is read while it is sent, so that what is read is still in the processor's cache then.

Sending blocks of 8 MiB as they were read whole took 0.5 s of a core for a GiB, this takes 0.36 s, and no memory.
"""

from collections.abc import Iterator

from amlmount.errors import AmlmountError
from amlmount.stores.base import Content, IsLocal

PIECE_BYTES = 256 << 10


class Pieces:
    """The body of a request, piece by piece; read anew if it has to be sent again."""

    def __init__(self, content: Content, start: int, size_bytes: int) -> None:
        self._content, self._start, self._size_bytes = content, start, size_bytes

    def __len__(self) -> int:
        return self._size_bytes

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Raises AmlmountError when the disk fails: of an OSError one would take it that the network has."""
        end = self._start + self._size_bytes
        for place in range(self._start, end, PIECE_BYTES):
            try:
                yield self._content.read(place, min(PIECE_BYTES, end - place))
            except OSError as error:
                raise AmlmountError(
                    f"cannot read what is to be sent: {error.strerror}", hint="look at the disk of the state directory"
                ) from error


Body = bytes | memoryview | Pieces


def body_of(content: Content, start: int, size_bytes: int) -> Body:
    """Return a stretch as what a request is to send. Raises what the content raises."""
    if isinstance(content, IsLocal) and content.is_local:
        return Pieces(content, start, size_bytes)
    return content.read(start, size_bytes)
