"""Bytes of the kernel become a typed request or a ProtocolError, whatever they are."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlmount.fuse import protocol
from amlmount.fuse.protocol import (
    IN_HEADER,
    Body,
    ForgetIn,
    GetattrIn,
    InitIn,
    InterruptIn,
    NameIn,
    OpaqueIn,
    Opcode,
    OpenIn,
    ProtocolError,
    ReadIn,
    ReleaseIn,
    Request,
    parse_request,
)


def request(opcode: int, body: bytes = b"", *, node_id: int = 7, extensions: bytes = b"", length: int = -1) -> bytes:
    total = IN_HEADER.size + len(body) + len(extensions) if length < 0 else length
    return IN_HEADER.pack(total, opcode, 99, node_id, 1000, 1001, 4242, len(extensions) // 8, 0) + body + extensions


WELL_FORMED: dict[Opcode, tuple[bytes, Body]] = {
    Opcode.LOOKUP: (b"a name\0", NameIn(b"a name")),
    Opcode.FORGET: (struct.pack("<Q", 3), ForgetIn(((7, 3),))),
    Opcode.BATCH_FORGET: (struct.pack("<II4Q", 2, 0, 8, 1, 9, 2), ForgetIn(((8, 1), (9, 2)))),
    Opcode.GETATTR: (struct.pack("<IIQ", 1, 0, 55), GetattrIn(1, 55)),
    Opcode.OPEN: (struct.pack("<II", 0o100000, 0), OpenIn(0o100000, 0)),
    Opcode.OPENDIR: (struct.pack("<II", 0o200000, 0), OpenIn(0o200000, 0)),
    Opcode.READ: (struct.pack("<QQIIQII", 1, 4096, 131072, 0, 5, 0, 0), ReadIn(1, 4096, 131072, 0, 5, 0)),
    Opcode.READDIRPLUS: (struct.pack("<QQIIQII", 1, 12, 4096, 0, 0, 0, 0), ReadIn(1, 12, 4096, 0, 0, 0)),
    Opcode.RELEASE: (struct.pack("<QIIQ", 1, 0, 0, 0), ReleaseIn(1, 0, 0, 0)),
    Opcode.INTERRUPT: (struct.pack("<Q", 98), InterruptIn(98)),
    Opcode.INIT: (struct.pack("<4I", 7, 31, 131072, 0x3FFFFFB), InitIn(7, 31, 131072, 0x3FFFFFB)),
    Opcode.STATFS: (b"", OpaqueIn(b"")),
}


@pytest.mark.parametrize("opcode", WELL_FORMED, ids=lambda opcode: opcode.name)
def test_requests_are_read(opcode: Opcode) -> None:
    body, expected = WELL_FORMED[opcode]
    assert parse_request(memoryview(request(opcode, body))) == Request(opcode, 99, 7, 1000, 1001, 4242, expected)


@pytest.mark.parametrize("opcode", WELL_FORMED, ids=lambda opcode: opcode.name)
def test_a_request_cut_short_is_refused(opcode: Opcode) -> None:
    whole = request(opcode, WELL_FORMED[opcode][0])
    for end in range(len(whole)):
        with pytest.raises(ProtocolError):
            parse_request(memoryview(whole[:end]))
    for end in range(IN_HEADER.size, len(whole)):  # the same with a header that agrees
        with pytest.raises(ProtocolError):
            parse_request(memoryview(request(opcode, whole[IN_HEADER.size : end])))


def test_flags2_counts_only_with_init_ext() -> None:
    body = struct.pack("<5I44x", 7, 45, 0, 1 << 30, 1 << 7)
    assert parse_request(memoryview(request(Opcode.INIT, body))).body == InitIn(7, 45, 0, 1 << 30 | 1 << 39)
    body = struct.pack("<5I44x", 7, 45, 0, 1, 1 << 7)
    assert parse_request(memoryview(request(Opcode.INIT, body))).body == InitIn(7, 45, 0, 1)


@pytest.mark.parametrize("name", [b"", b"\0", b"no end", b"two\0names\0", b"\0behind"])
def test_names_that_are_none_are_refused(name: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request(memoryview(request(Opcode.LOOKUP, name)))


def test_extensions_are_no_part_of_the_body() -> None:
    data = request(Opcode.LOOKUP, b"name\0", extensions=bytes(16))
    assert parse_request(memoryview(data)).body == NameIn(b"name")
    with pytest.raises(ProtocolError):
        parse_request(memoryview(IN_HEADER.pack(40, 1, 0, 0, 0, 0, 0, 1, 0)))


@pytest.mark.parametrize("count", [0, 1, 3, 0xFFFFFFFF])
def test_a_batch_that_lies_about_its_count_is_refused(count: int) -> None:
    with pytest.raises(ProtocolError):
        parse_request(memoryview(request(Opcode.BATCH_FORGET, struct.pack("<II4Q", count, 0, 8, 1, 9, 2))))


def only_typed(data: bytes) -> None:
    try:
        parsed = parse_request(memoryview(data))
    except ProtocolError:
        return
    assert isinstance(parsed, Request)
    assert isinstance(parsed.body, tuple) and type(parsed.body).__name__.endswith("In")


@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    only_typed(data)


opcodes = st.one_of(st.sampled_from(list(Opcode)), st.integers(0, 2**32 - 1))


@given(opcodes, st.binary(max_size=120), st.integers(0, 20), st.one_of(st.just(-1), st.integers(0, 2**32 - 1)))
def test_garbage_behind_a_header(opcode: int, body: bytes, extensions: int, length: int) -> None:
    only_typed(request(opcode, body, extensions=bytes(8 * extensions), length=length))


@given(st.sampled_from(list(WELL_FORMED)), st.data())
def test_a_byte_changed(opcode: Opcode, data: st.DataObject) -> None:
    whole = bytearray(request(opcode, WELL_FORMED[opcode][0]))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    only_typed(bytes(whole))


def test_sizes_are_those_of_the_header_file() -> None:
    sizes = {
        "IN_HEADER": 40,
        "OUT_HEADER": 16,
        "INIT_OUT": 64,
        "ENTRY_OUT": 128,
        "ATTR_OUT": 104,
        "OPEN_OUT": 16,
        "STATFS_OUT": 80,
        "DIRENT_HEADER": 24,
    }
    assert {name: getattr(protocol, name).size for name in sizes} == sizes
