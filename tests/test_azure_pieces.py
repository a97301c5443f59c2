"""A body that is read while it is sent: the same bytes arrive, read anew if it is sent again, and a disk may fail."""

from contextlib import closing

import pytest

from amlmount.errors import AmlmountError, NetworkError
from amlmount.stores.azure import open_azure
from amlmount.stores.pieces import PIECE_BYTES, Pieces, body_of
from fakeblob import Asked, FakeBlobService

SIZE = 9 << 20  # more than one block


class Local:
    """A content on a disk, and what was read of it."""

    is_local = True

    def __init__(self) -> None:
        self.data = bytes(range(251)) * (SIZE // 251 + 1)
        self.size_bytes = SIZE
        self.reads: list[tuple[int, int]] = []
        self.fails = False

    def read(self, start: int, length: int) -> bytes:
        if self.fails:
            raise OSError(5, "Input/output error")
        self.reads.append((start, length))
        return self.data[start : min(start + length, SIZE)]


def is_block(asked: Asked) -> bool:
    return asked.query.get("comp") == "block"


def test_what_is_local_is_read_piece_by_piece_and_anew_for_another_attempt() -> None:
    content = Local()
    with closing(FakeBlobService()) as fake, closing(open_azure(fake.definition())) as store:
        fake.fail("status", 1, when=is_block, status=503)
        store.upload("a", content)
        assert store.get("a") == content.data[:SIZE]
    assert max(length for _, length in content.reads) == PIECE_BYTES
    assert sum(length for _, length in content.reads) > SIZE


def test_a_part_is_sent_under_another_id_each_time() -> None:
    content = Local()
    with closing(FakeBlobService()) as fake, closing(open_azure(fake.definition())) as store:
        begun = store.begin("a")
        begun.send(0, bytes(begun.part_bytes))
        begun.send_from(0, content)
        ids = [asked.query["blockid"] for asked in fake.asked if is_block(asked)]
        begun.commit(content, [0])
        assert len(set(ids)) == 2 and store.get("a") == content.data[:SIZE]


def test_a_disk_that_fails_is_not_taken_for_the_network() -> None:
    content = Local()
    content.fails = True
    with (
        closing(FakeBlobService()) as fake,
        closing(open_azure(fake.definition())) as store,
        pytest.raises(AmlmountError, match="cannot read what is to be sent: Input/output error") as caught,
    ):
        store.upload("a", content)
    assert not isinstance(caught.value, NetworkError)


def test_what_is_far_away_is_read_at_once() -> None:
    content = Local()
    content.is_local = False
    assert body_of(content, 3, SIZE - 3) == content.data[3:SIZE] and len(content.reads) == 1
    assert len(Pieces(content, 0, 7)) == 7
