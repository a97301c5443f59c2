"""Which names of a container are shown, and how: docs/semantics.md, names and sources."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlmount.errors import ConfigError, ContainerNotFoundError, NotFoundError
from amlmount.stores.memory import MemoryStore
from amlmount.vfs.globs import Glob
from amlmount.vfs.names import HiddenReason, decode_segment, encode_segment
from flaky_store import FlakyStore
from vfs_trees import make_policy, memory, mount, source, tree

LONG = "n" * 1024


def shown(*names: str) -> dict[bytes, str]:
    return tree(mount(memory(*names)))


def test_names_canonical() -> None:
    good = ["a", "b/c", "0 - zero/0 - zero_1.jpg", "ü/日本語/🙂", " ", "...", "a\nb", "back\\slash", LONG]
    bad = ["/lead", "x//y", "./x", "x/./y", "../x", "x/../y", "nul\0", LONG + "n", "é" * 513, "\ud800"]
    files = {path: blob for path, blob in shown(*good, *bad).items() if blob != "/"}
    assert files == {name.encode(): name for name in good}


def test_names_directory_wins() -> None:
    fs = mount(memory("a", "a/b", "c"))
    assert tree(fs) == {b"a": "/", b"a/b": "a/b", b"c": "c"}
    assert fs.hidden_counts() == {HiddenReason.SHADOWED: 1}


def test_names_marker_slash() -> None:
    fs = mount(memory(**{"empty/": b"", "full/": b"", "full/x": b"1"}))
    assert tree(fs) == {b"empty": "/", b"full": "/", b"full/x": "full/x"}
    assert fs.hidden_counts() == {}
    fs = mount(memory(**{"data/": b"lost"}))
    assert tree(fs) == {b"data": "/"}
    assert fs.hidden_counts() == {HiddenReason.MARKER_WITH_DATA: 1}


def test_names_marker_metadata() -> None:
    store = memory("beside/x")
    for name in ("alone", "beside", "nested/deep"):
        store.put(name, b"", metadata={"hdi_isfolder": "True"})
    store.put("file", b"content", metadata={"hdi_isfolder": "true"})
    store.put("zero", b"")
    fs = mount(store)
    assert tree(fs) == {
        b"alone": "/",
        b"beside": "/",
        b"beside/x": "beside/x",
        b"file": "file",
        b"nested": "/",
        b"nested/deep": "/",
        b"zero": "zero",
    }
    assert fs.hidden_counts() == {}


def test_names_no_empty_entry() -> None:
    fs = mount(memory("a//", "a//b", "//", "", "b/"))
    assert set(tree(fs)) == {b"a", b"b"}
    assert fs.hidden_counts()[HiddenReason.EMPTY_SEGMENT] == 3  # prefix "a//", prefix "/", blob ""


def test_names_hidden_counted() -> None:
    store = memory("x/..", "x/.", "nul\0", LONG + "n", "\ud800", "/a", "ok")
    fs = mount(store, policy=make_policy(list_ttl_s=0))
    for _ in range(2):  # listing again counts anew, not on top
        tree(fs)
        assert fs.hidden_counts() == {
            HiddenReason.DOT_SEGMENT: 2,
            HiddenReason.NUL: 1,
            HiddenReason.TOO_LONG: 1,
            HiddenReason.NOT_UTF8: 1,
            HiddenReason.EMPTY_SEGMENT: 1,
        }
    for name in ("x/..", "x/.", "/a"):
        store.delete(name)
    tree(fs)
    assert fs.hidden_counts() == {HiddenReason.NUL: 1, HiddenReason.TOO_LONG: 1, HiddenReason.NOT_UTF8: 1}


def test_names_not_utf8() -> None:
    assert encode_segment("caf\udce9") == b"caf\xe9"
    assert encode_segment("\udcc3\udca9") is HiddenReason.NOT_UTF8  # would be a second name for "é"
    assert shown("\udcc3\udca9", "é") == {"é".encode(): "é"}


def test_names_sorted() -> None:
    names = ["b", "ü", "Z", "a.x", "a/y", "a-", "a0", "\udcff", "🙂"]
    listed = [node.name for node in mount(memory(*names)).list_dir(1)]
    assert listed == [b"Z", b"a-", b"a.x", b"a", b"a0", b"b", "ü".encode(), "🙂".encode(), b"\xff"]


PIECES = [
    "",
    ".",
    "..",
    "a",
    "b",
    "a.b",
    "é",
    "\udcff",
    "\udcc3\udca9",
    "\ud800",
    "n\0",
    " ",
    LONG,
    LONG + "x",
    "é" * 513,
]
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("/".join)


def segment_is_shown(segment: str) -> bool:
    try:
        name = segment.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    round_trips = name.decode("utf-8", "surrogateescape") == segment
    return round_trips and segment not in ("", ".", "..") and b"\0" not in name and len(name) <= 1024


def model(blobs: dict[str, bytes], markers: set[str]) -> dict[bytes, str]:
    """The rule, written a second time over whole names instead of listings."""
    directories, files = set(), {}
    for name, data in blobs.items():
        parts = name.split("/")
        valid = next((at for at, part in enumerate(parts) if not segment_is_shown(part)), len(parts))
        directories |= {"/".join(parts[:depth]) for depth in range(1, min(valid, len(parts) - 1) + 1)}
        if valid == len(parts) and name in markers and not data:
            directories.add(name)
        elif valid == len(parts):
            files[name] = name
    both = dict.fromkeys(directories, "/") | {n: n for n in files if n not in directories}
    return {name.encode("utf-8", "surrogateescape"): kind for name, kind in both.items()}


@given(st.dictionaries(NAMES, st.sampled_from([b"", b"x"]), max_size=8), st.sets(NAMES, max_size=3))
def test_names_model(blobs: dict[str, bytes], markers: set[str]) -> None:
    store = MemoryStore()
    for name, data in blobs.items():
        store.put(name, data, metadata={"hdi_isfolder": "true"} if name in markers else None)
    fs = mount(store)
    expected = model(blobs, markers)
    assert tree(fs) == expected
    hidden = sum(fs.hidden_counts().values())
    assert (hidden > 0) >= any(b and n not in expected.values() for n, b in blobs.items())


@given(st.text(st.characters(exclude_characters="/")))
def test_a_shown_segment_round_trips(segment: str) -> None:
    name = encode_segment(segment)
    assert isinstance(name, bytes) == segment_is_shown(segment)
    if isinstance(name, bytes):
        assert decode_segment(name) == segment


# Sources


def test_source_path() -> None:
    fs = mount(memory("in/a", "in/b/c", "out", "inside"), source(path="/in/"))
    assert tree(fs) == {b"a": "in/a", b"b": "/", b"b/c": "in/b/c"}


@pytest.mark.parametrize("path", ["../x", "a//b", "a/./b", "nul\0"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot use path"):
        mount(memory(), source(path=path))


def test_source_glob() -> None:
    store = memory("a.jpg", "b.txt", "sub/c.jpg", "sub/d.txt", "only-text/e.txt")
    assert tree(mount(store, source(glob="*.jpg"))) == {
        b"a.jpg": "a.jpg",
        b"only-text": "/",
        b"sub": "/",
        b"sub/c.jpg": "sub/c.jpg",
    }
    assert tree(mount(store, source(glob="sub/*"))) == {
        b"sub": "/",
        b"sub/c.jpg": "sub/c.jpg",
        b"sub/d.txt": "sub/d.txt",
    }
    assert tree(mount(memory("p/x/a.jpg", "p/a.txt"), source(path="p", glob="x/*.jpg"))) == {
        b"x": "/",
        b"x/a.jpg": "p/x/a.jpg",
    }


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.jpg", "a.jpg", True),
        ("*.jpg", "x/y/a.jpg", True),
        ("*.jpg", "a.JPG", False),
        ("x/*.jpg", "x/a.jpg", True),
        ("x/*.jpg", "x/y/a.jpg", False),
        ("x/*.jpg", "a.jpg", False),
        ("**/y/*", "y/a", True),
        ("**/y/*", "x/y/a", True),
        ("**/y/*", "x/y/z/a", False),
        ("x/**", "x/a", True),
        ("x/**", "x/y/z/a", True),
        ("x/**", "y/a", False),
        ("x/**/a", "x/a", True),
        ("x/**/**/a", "x/y/z/a", True),
        ("**", "a", True),
        ("[ab]?.txt", "b1.txt", True),
        ("/x/*", "x/a", True),
    ],
)
def test_globs_match_segment_by_segment(pattern: str, path: str, matches: bool) -> None:
    glob = Glob(pattern)
    assert glob.shows_file(path) == matches
    parents = path.split("/")[:-1]
    if matches:
        assert all(glob.shows_directory("/".join(parents[:depth])) for depth in range(1, len(parents) + 1))


@pytest.mark.parametrize(
    ("pattern", "directory", "shows"),
    [
        ("x/*.jpg", "x", True),
        ("x/*.jpg", "y", False),
        ("x/*.jpg", "x/y", False),
        ("**/a", "x/y/z", True),
        ("*", "x", True),
    ],
)
def test_globs_prune_directories(pattern: str, directory: str, shows: bool) -> None:
    assert Glob(pattern).shows_directory(directory) == shows


def test_source_children() -> None:
    stores = {"one": memory("a"), "two": memory("b/c", "d")}
    fs = mount(stores, source("two", child="second", path="b"), source("one", child="first"))
    assert tree(fs) == {b"first": "/", b"first/a": "a", b"second": "/", b"second/c": "b/c"}
    assert [node.name for node in fs.list_dir(1)] == [b"first", b"second"]


def test_source_child_alone_fails() -> None:
    broken = FlakyStore(memory("x"))
    broken.fail("list")
    fs = mount({"one": memory("a"), "two": broken}, source("one", child="first"), source("two", child="second"))
    assert [node.name for node in fs.list_dir(1)] == [b"first", b"second"]
    assert [node.name for node in fs.list_dir(fs.lookup(1, b"first").node_id)] == [b"a"]
    with pytest.raises(OSError, match="cannot reach"):
        fs.list_dir(fs.lookup(1, b"second").node_id)


@pytest.mark.parametrize("children", [(None, "a"), (None, None), ("a", "a"), ()])
def test_sources_need_names_of_their_own(children: tuple[str | None, ...]) -> None:
    from amlmount.vfs import open_filesystem
    from vfs_trees import make_spec

    with pytest.raises(ConfigError, match="cannot mount 'test'"):
        open_filesystem(make_spec([source(child=child) for child in children], make_policy()))


@pytest.mark.parametrize("child", ["a/b", "", "..", "n\0"])
def test_a_child_needs_a_plain_name(child: str) -> None:
    with pytest.raises(ConfigError, match="as a directory name"):
        mount(memory(), source(child=child))


def test_source_probe() -> None:
    mount(memory()).probe()
    mount(memory("p/x"), source(path="p")).probe()
    mount(memory(**{"p/": b""}), source(path="p")).probe()
    marked = memory()
    marked.put("p", b"", metadata={"hdi_isfolder": "true"})
    mount(marked, source(path="p")).probe()
    with pytest.raises(NotFoundError, match="cannot find path 'q' in store 'data'"):
        mount(memory("p/x"), source(path="q")).probe()
    with pytest.raises(NotFoundError, match="it is a single blob"):
        mount(memory("p/x"), source(path="p/x")).probe()
    gone = FlakyStore(memory())
    gone.fail("list", ContainerNotFoundError("cannot find container"))
    with pytest.raises(ContainerNotFoundError):
        mount(gone).probe()
