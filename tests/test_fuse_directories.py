"""Directory records: what is packed is what was listed, wherever reading starts and however small the buffer."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlmount.fuse.adapter import ReadOnlyAdapter
from amlmount.fuse.attributes import InodePacker
from amlmount.fuse.directories import Directories
from amlmount.fuse.protocol import DIRENT_HEADER, ENTRY_OUT, NAME_MAX_BYTES, ForgetIn, NameIn, Opcode, Request
from fuse.dict_fs import DictFileSystem
from fuse.served import OWNERSHIP, policy

Record = tuple[bytes, int, int]  # name, ino, offset behind it
ROOT = 1


def records(data: bytes | memoryview, *, plus: bool) -> list[Record]:
    """Read records back, independently of how they were packed."""
    found, position = [], 0
    while position < len(data):
        start = position
        if plus:
            entry = ENTRY_OUT.unpack_from(data, position)
            position += ENTRY_OUT.size
        ino, offset, length, kind = DIRENT_HEADER.unpack_from(data, position)
        name = bytes(data[position + 24 : position + 24 + length])
        if plus and name not in (b".", b".."):
            assert (entry[0], entry[6], entry[15] >> 12) == (ino, ino, kind)
        position += 24 + length + -length % 8
        assert (position - start) % 8 == 0
        found.append((name, ino, offset))
    assert position == len(data)
    return found


def make(tree: dict[str, bytes]) -> tuple[DictFileSystem, Directories]:
    fs, rules = DictFileSystem(tree), policy()
    return fs, Directories(fs, rules, InodePacker(rules, OWNERSHIP))


def read_on(directories: Directories, handle: int, offset: int, size_bytes: int, *, plus: bool) -> list[Record]:
    """Read from `offset` to the end as the kernel would."""
    found: list[Record] = []
    while True:
        if plus:
            data = directories.read_plus(ROOT, handle, offset, size_bytes, may_wait=True)
            directories.pack_ahead(handle, size_bytes)
        else:
            data = directories.read(ROOT, handle, offset, size_bytes, may_wait=True)
        assert len(data) <= size_bytes
        if not data:
            return found
        found += records(data, plus=plus)
        offset = found[-1][2]


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=90)
trees = st.dictionaries(names.filter(lambda name: name not in (".", "..")), st.just(b"x"), max_size=40)


@given(trees, st.integers(600, 4096), st.booleans(), st.data())
def test_every_offset_leads_to_the_same_rest(
    tree: dict[str, bytes], size: int, plus: bool, data: st.DataObject
) -> None:
    _, directories = make(tree)
    handle, _ = directories.open(ROOT)
    whole = read_on(directories, handle, 0, size, plus=plus)
    assert [name for name, _, _ in whole] == [b".", b"..", *sorted(name.encode() for name in tree)]
    assert len({offset for _, _, offset in whole}) == len(whole)
    position = data.draw(st.integers(0, len(whole) - 1))
    other_size = data.draw(st.integers(600, 4096))
    assert read_on(directories, handle, whole[position][2], other_size, plus=plus) == whole[position + 1 :]


def test_references_are_what_the_kernel_got() -> None:
    tree = {f"{index:03d}": b"" for index in range(100)}
    fs, directories = make(tree)
    handle, _ = directories.open(ROOT)
    directories.read_plus(ROOT, handle, 0, 4096, may_wait=True)
    sent = fs.references
    directories.pack_ahead(handle, 4096)
    assert fs.references > sent
    directories.release(handle)
    assert fs.references == sent


def test_a_snapshot_stays_and_a_rewind_is_fresh() -> None:
    fs, directories = make({f"{index:03d}": b"" for index in range(100)})
    handle, _ = directories.open(ROOT)
    first = records(directories.read_plus(ROOT, handle, 0, 4096, may_wait=True), plus=True)
    fs.add(ROOT, b"000a", b"")
    rest = read_on(directories, handle, first[-1][2], 4096, plus=True)
    assert len(first + rest) == 102 and b"000a" not in [name for name, _, _ in first + rest]
    assert b"000a" in [name for name, _, _ in read_on(directories, handle, 0, 4096, plus=True)]


def test_a_predecessors_handle_goes_on() -> None:
    tree = {f"{index:03d}": b"" for index in range(100)}
    _, before = make(tree)
    handle, _ = before.open(ROOT)
    first = records(before.read_plus(ROOT, handle, 0, 4096, may_wait=True), plus=True)
    _, after = make(tree)
    rest = read_on(after, handle, first[-1][2], 4096, plus=True)
    assert [name for name, _, _ in first + rest] == [b".", b"..", *(name.encode() for name in tree)]
    assert after.open(ROOT)[0] != handle


def test_a_name_the_kernel_would_choke_on_is_left_out() -> None:
    _, directories = make({"a": b"", "n" * (NAME_MAX_BYTES + 1): b"", "z": b""})
    for plus in (True, False):
        found = read_on(directories, 1, 0, 4096, plus=plus)
        assert [name for name, _, _ in found] == [b".", b"..", b"a", b"z"]


@pytest.mark.parametrize("size_bytes", [0, 100, 303])
def test_a_buffer_too_small_for_anything_is_an_empty_reply(size_bytes: int) -> None:
    _, directories = make({"a": b""})
    assert len(directories.read_plus(ROOT, 1, 0, size_bytes, may_wait=True)) == 0


def test_what_the_kernel_did_not_take_is_taken_back() -> None:
    fs = DictFileSystem({"a": b"", "b": b""})
    adapter = ReadOnlyAdapter(fs, policy(), OWNERSHIP)
    lookup = Request(Opcode.LOOKUP, 2, ROOT, 0, 0, 0, NameIn(b"a"))
    adapter.undelivered(lookup, adapter.handle(lookup, may_wait=False))
    assert fs.references == 0
    adapter.undelivered(lookup, bytes(ENTRY_OUT.size))  # a negative entry refers to nothing
    assert fs.references == 0


def test_forget_has_no_reply_and_unknown_opcodes_no_meaning() -> None:
    fs = DictFileSystem({"a": b""})
    adapter = ReadOnlyAdapter(fs, policy(), OWNERSHIP)
    node = fs.lookup(ROOT, b"a")
    fs.remember(node)
    assert adapter.handle(Request(Opcode.FORGET, 2, 2, 0, 0, 0, ForgetIn(((2, 1),))), may_wait=False) is None
    assert fs.references == 0
    with pytest.raises(OSError) as caught:
        adapter.handle(Request(4000, 2, 2, 0, 0, 0, ForgetIn(())), may_wait=False)
    assert caught.value.errno == errno.ENOSYS


@pytest.mark.parametrize(
    ("timeout_s", "expected"), [(0.0, (0, 0)), (1.5, (1, 500_000_000)), (float("inf"), (10**9, 0))]
)
def test_timeouts(timeout_s: float, expected: tuple[int, int]) -> None:
    fs = DictFileSystem({"a": b""})
    packer = InodePacker(policy(entry_timeout_s=timeout_s, attr_timeout_s=7), OWNERSHIP)
    entry = ENTRY_OUT.unpack(packer.entry(fs.lookup(ROOT, b"a")))
    assert (entry[2], entry[4]) == expected and (entry[3], entry[5]) == (7, 0)
