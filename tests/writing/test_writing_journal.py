"""The journal's bytes: what is torn, damaged, foreign or of another version; and the ranges that files are made of."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amlmount.errors import AmlmountError
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.writing.disk import Disk, open_disk
from amlmount.vfs.writing.extents import Extents
from amlmount.vfs.writing.journal import SLACK_BYTES, Journal
from amlmount.vfs.writing.ledger import Ledger, replay
from amlmount.vfs.writing.livefile import LiveFile
from amlmount.vfs.writing.records import Found, Record, decode, encode, encode_header
from writing.ground import opened

RECORDS = [Record("one", {"id": 1}), Record("two", {"id": 2, "name": "ü"}, b"\xa5REC data"), Record("three", {})]


def content(salt: int = 7) -> tuple[bytes, list[int]]:
    """Return a journal of RECORDS and where each of them ends."""
    data, ends = encode_header(salt), []
    for number, record in enumerate(RECORDS, 1):
        data += encode(record, number, salt)
        ends.append(len(data))
    return data, ends


def test_records_come_back() -> None:
    data, ends = content()
    assert decode(data) == Found(RECORDS, ends[-1], 4, 0, 0, 7)


def test_a_torn_end_is_cut_off_at_every_length() -> None:
    data, ends = content()
    for length in range(len(data)):
        found = decode(data[:length])
        whole = sum(end <= length for end in ends)
        assert found.records == RECORDS[:whole] and found.damaged_bytes == 0
        assert found.torn_bytes == length - (ends[whole - 1] if whole else min(length, 16) if length >= 16 else 0)


@pytest.mark.parametrize("position", range(16, 60))
def test_damage_costs_one_record_and_is_counted(position: int) -> None:
    data, ends = content()
    spoiled = bytearray(data)
    spoiled[position] ^= 0x40
    found = decode(bytes(spoiled))
    lost = sum(end <= position for end in ends)
    assert found.records == RECORDS[:lost] + RECORDS[lost + 1 :]
    assert found.damaged_bytes == ends[lost] - (ends[lost - 1] if lost else 16)


def test_records_of_another_journal_do_not_count() -> None:
    ours, _ = content(1)
    theirs, _ = content(2)
    found = decode(ours + theirs[16:])
    assert found.records == RECORDS and found.torn_bytes == len(theirs) - 16


@given(st.binary(max_size=300), st.integers(0, 200), st.integers(0, 200))
def test_garbage_is_never_a_record(garbage: bytes, start: int, length: int) -> None:
    data, _ = content()
    found = decode(data[: 16 + start] + garbage + data[16 + start + length :])
    assert all(record in RECORDS for record in found.records)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return open_disk(str(tmp_path / "state"))


def test_a_journal_goes_on_where_it_ended(disk: Disk) -> None:
    for number in range(3):
        journal = Journal(disk)
        assert [record.fields["n"] for record in journal.found.records] == list(range(number))
        journal.sync(journal.append("x", n=number))
        journal.close()
        with open(disk.path("journal"), "ab") as file:
            file.write(b"\xa5REC torn")


def test_a_journal_of_another_version_is_left_alone(disk: Disk) -> None:
    content = b"amljrnl\0\x02\0\0\0\0\0\0\0future"
    Path(disk.path("journal")).write_bytes(content)
    with pytest.raises(AmlmountError, match="cannot read the journal"):
        Journal(disk)
    assert Path(disk.path("journal")).read_bytes() == content


def test_a_failed_write_promises_nothing(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(disk)
    journal.append("x", n=0)
    real = os.pwrite

    def half(fd: int, data: bytes, offset: int) -> int:
        real(fd, bytes(data)[:10], offset)
        raise OSError(28, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(OSError):
            journal.append("x", n=1)
    journal.append("x", n=2)
    journal.close()
    again = Journal(disk)
    assert [record.fields["n"] for record in again.found.records] == [0, 2]
    again.close()


def test_what_is_outdated_is_written_no_more(disk: Disk) -> None:
    journal = Journal(disk)
    while not journal.wants_rewrite:
        journal.append("x", bytes(64 << 10))
    assert os.stat(disk.path("journal")).st_size > SLACK_BYTES
    journal.rewrite(lambda: iter(RECORDS))
    journal.append("last")
    journal.close()
    again = Journal(disk)
    assert [record.kind for record in again.found.records] == ["one", "two", "three", "last"]
    assert os.stat(disk.path("journal")).st_size < 1000
    again.close()


def test_a_ledger_has_one_identity(disk: Disk) -> None:
    one = Ledger(disk)
    one.journal.close()
    other = Ledger(disk)
    other.journal.close()
    assert one.state_id == other.state_id and len(one.state_id) == 16


ranges = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda pair: (min(pair), max(pair)))


@settings(max_examples=300)
@given(st.lists(st.one_of(ranges, st.integers(0, 40))), ranges)
def test_extents_are_sets_of_bytes(steps: list[tuple[int, int] | int], probe: tuple[int, int]) -> None:
    extents, model = Extents(), set[int]()
    for step in steps:
        if isinstance(step, int):
            extents.cut(step)
            model = {byte for byte in model if byte < step}
        else:
            new = set(range(*step)) - model
            assert extents.add(*step) == bool(new)
            model |= new
    assert {byte for start, end in extents for byte in range(start, end)} == model
    assert extents.size_bytes == len(model)
    pairs = list(extents)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(pairs))
    assert set(_bytes(extents.gaps(*probe))) == set(range(*probe)) - model
    assert extents.covers(*probe) == (not set(range(*probe)) - model)
    assert extents.copy() == extents


def _bytes(found: Iterator[tuple[int, int]]) -> Iterator[int]:
    for start, end in found:
        yield from range(start, end)


def test_a_journal_written_anew_still_says_that_the_store_may_have_a_file(tmp_path: Path) -> None:
    """Else a successor would rename or unlink it here alone, and the blob of an upload unheard of would come back."""
    with opened(MemoryStore(), tmp_path) as tree, tree.create("a") as handle:
        file = handle.node
        assert isinstance(file, LiveFile)
        handle.write(0, b"data")
        file.was_sent = True
        tree.files.ledger.begun(file, file.state.change)
        tree.files.ledger.start_over()
        past = replay(decode((tmp_path / "journal").read_bytes()).records)
        assert past.entries[file.state.id].begun == file.state.change > file.state.stored
