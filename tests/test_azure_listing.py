"""The text search that reads listings, held against a real XML parser on whatever names there may be."""

import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amlmount.stores.azure.listing import ListingParser, container_names, date_ns, decode_md5

# What XML 1.0 can hold at all, less \r, which a parser turns into \n.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\ufffe\uffff\r").filter(
    lambda character: character >= " " or character in "\t\n"
)
NAMES = st.text(CHARACTERS, min_size=1, max_size=30)
METADATA = st.dictionaries(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), st.text(CHARACTERS), max_size=3
)
BLOBS = st.lists(st.tuples(NAMES, st.integers(0, 2**45), METADATA), max_size=6)
MODIFIED = "Thu, 20 Nov 2025 10:00:00 GMT"
HEAD = '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="x"><Prefix>a</Prefix>'


def document(blobs: list[tuple[str, int, dict[str, str]]], prefixes: list[str], marker: str) -> bytes:
    text = "".join(f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in prefixes)
    for name, size, metadata in blobs:
        pairs = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in metadata.items())
        text += (
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{MODIFIED}</Last-Modified><Etag>0x{size:X}"
            f"</Etag><Content-Length>{size}</Content-Length><Content-MD5>1B2M2Y8AsgTpgAmY7PhCfg==</Content-MD5>"
            f"<BlobType>BlockBlob</BlobType></Properties><Metadata>{pairs}</Metadata></Blob>"
        )
    return f"{HEAD}<Blobs>{text}</Blobs><NextMarker>{escape(marker)}</NextMarker></EnumerationResults>".encode()


def parse(data: bytes, chunk_bytes: int) -> ListingParser:
    parser = ListingParser()
    for at in range(0, len(data), chunk_bytes):
        parser.feed(data[at : at + chunk_bytes])
    parser.finish()
    return parser


@settings(max_examples=150, deadline=None)
@given(BLOBS, st.lists(NAMES, max_size=4), st.text(CHARACTERS, max_size=10), st.integers(1, 400))
def test_it_reads_what_an_xml_parser_reads(
    blobs: list[tuple[str, int, dict[str, str]]], prefixes: list[str], marker: str, chunk_bytes: int
) -> None:
    data = document(blobs, prefixes, marker)
    found, root = parse(data, chunk_bytes), ET.fromstring(data)
    assert [info.name for info in found.page.objects] == [node.text for node in root.iterfind("Blobs/Blob/Name")]
    assert found.page.prefixes == [node.text for node in root.iterfind("Blobs/BlobPrefix/Name")]
    assert found.next_marker == (root.findtext("NextMarker") or "")
    for info, node in zip(found.page.objects, root.iterfind("Blobs/Blob"), strict=True):
        metadata = node.find("Metadata")
        assert metadata is not None
        assert dict(info.metadata) == {pair.tag.lower(): pair.text or "" for pair in metadata}
        assert str(info.size_bytes) == node.findtext("Properties/Content-Length")
        assert info.etag == node.findtext("Properties/Etag")


def test_names_that_xml_cannot_hold_come_encoded() -> None:
    data = document([("x", 1, {})], ["y/"], "").replace(b"<Name>x", b'<Name Encoded="true">a%01b%EF%BF%BE')
    found = parse(data.replace(b"<Name>y/", b'<Name Encoded="true">%02/'), 50)
    assert found.page.objects[0].name == "a\x01b\ufffe" and found.page.prefixes == ["\x02/"]


def test_directories_of_hierarchical_accounts_have_properties() -> None:
    data = document([], ["d/"], "").replace(
        b"</Name></BlobPrefix>", b"</Name><Properties><Etag>0x1</Etag></Properties></BlobPrefix>"
    )
    assert parse(data, 1000).page.prefixes == ["d/"]


@pytest.mark.parametrize("cut", [1, 100, 300, -1, -30])
def test_half_a_listing_is_no_listing(cut: int) -> None:
    with pytest.raises(ValueError):
        parse(document([("x", 1, {})], [], "")[:cut], 64)


def test_dates_and_digests() -> None:
    assert date_ns(MODIFIED) == 1763632800 * 10**9
    with pytest.raises(ValueError):
        date_ns("yesterday")
    assert decode_md5("1B2M2Y8AsgTpgAmY7PhCfg==") == bytes.fromhex("d41d8cd98f00b204e9800998ecf8427e")
    assert [decode_md5(text) for text in (None, "", "!", "AAAA")] == [None] * 4


def test_containers() -> None:
    text = "<E><Containers><Container><Name>a</Name></Container></Containers><NextMarker>b</NextMarker></E>"
    assert container_names(text) == (["a"], "b")
