"""What is read, in which order, against which store: a group is one store, and one mount of each peer in each trial."""

from dataclasses import dataclass

from benchmarks.sampling import DISK, OURS, Step

MIB = 1 << 20
SMALL, TABLES, BIG = "MNIST_FLAT", "TABLES", "big/one.bin"
LINK = ("-rate", "400000000")


@dataclass(frozen=True)
class Sizes:
    """How much data there is. `round_trip` is added to every request, as Go writes a duration."""

    classes: int = 10
    per_class: int = 1000
    tables: int = 1000
    big_bytes: int = 1024 * MIB
    many_per_class: int = 10_000
    round_trip: str = "10ms"


TINY = Sizes(classes=2, per_class=50, tables=20, big_bytes=32 * MIB, many_per_class=300)


@dataclass(frozen=True)
class Group:
    """Steps that share a mount. `peers`: None = everybody. `clients`: works that the storage client does alone, and
    what client.py calls them.

    `images`: the store holds the images and tables of the local disk; `many`: it holds ten times as many, made up.
    `overlay`: the cache is on an overlayfs, as in a container. `slow_peers`: one after the other, others take minutes.
    `front`: what stands before our mount, None for what the profile says.
    """

    name: str
    steps: tuple[Step, ...]
    profile: str = "standard"
    stub: tuple[str, ...] = ()
    peers: tuple[str, ...] | None = None
    clients: tuple[tuple[str, str], ...] = ()
    images: bool = False
    many: bool = False
    overlay: bool = False
    slow_peers: bool = False
    front: str | None = None


def epoch(
    work: str, reader: str, *, cold: bool = False, drop: bool = False, ours_only: bool = False, pairs: int = 0
) -> Step:
    """Return a step over the small images."""
    return Step(work, reader, SMALL, cold=cold, drop=drop, ours_only=ours_only, pairs=pairs)


def large(work: str, reader: str, *, cold: bool = False, drop: bool = False, pairs: int = 0) -> Step:
    """Return a step on the large file."""
    return Step(work, reader, BIG, cold=cold, drop=drop, pairs=pairs)


LIST_BIG = Step("list", "names", "big", untimed=True)
EPOCHS = (
    epoch("first epoch", "first-epoch", cold=True),
    epoch("second epoch, open(2)", "open2", pairs=5),
    epoch("second epoch, open()", "open", pairs=5),
    epoch("second epoch, PIL", "pil", ours_only=True, pairs=2),
    epoch("second epoch, numpy.fromfile", "numpy", ours_only=True, pairs=3),
    epoch("third epoch, page cache dropped", "open2", drop=True, pairs=1),
    Step("tables, first", "open2", TABLES, untimed=True, ours_only=True),
    Step("second epoch, pandas.read_csv", "pandas", TABLES, ours_only=True, pairs=3),
)
SEQUENTIAL = (
    LIST_BIG,
    large("1 GiB, first", "sequential", cold=True),
    large("1 GiB, page cache dropped", "sequential", drop=True, pairs=1),
    large("1 GiB, again", "sequential", pairs=3),
    large("2,000 x 4 KiB, in the cache", "random-4k", drop=True, pairs=3),
    large("2,000 x 4 KiB, again", "random-4k", pairs=5),
)
GROUPS = (
    Group("list", (epoch("list and stat of 10,000", "list"),), "epochs", images=True),
    Group(
        "epochs",
        EPOCHS,
        "epochs",
        images=True,
        slow_peers=True,
        clients=(("first epoch", "first-epoch"),),
    ),
    Group(
        "epochs, no front",
        (
            epoch("first epoch, no front", "first-epoch", cold=True),
            epoch("second epoch, open(2), no front", "open2", pairs=5),
            epoch("second epoch, open(), no front", "open", pairs=5),
            epoch("third epoch, page cache dropped, no front", "open2", drop=True, pairs=1),
        ),
        "epochs",
        images=True,
        peers=(OURS, DISK),
        front="none",
    ),
    Group(
        "shuffled",
        (epoch("first epoch, shuffled", "shuffled-epoch", cold=True),),
        "epochs",
        images=True,
        slow_peers=True,
    ),
    Group(
        "loader",
        (epoch("first epoch, 4 processes", "loader-epoch", cold=True),),
        "epochs",
        images=True,
        slow_peers=True,
    ),
    Group(
        "link",
        (LIST_BIG, large("1 GiB, first, 400 MB/s", "sequential", cold=True)),
        stub=LINK,
        clients=(("1 GiB, first, 400 MB/s", "sequential"),),
    ),
    Group("sequential", SEQUENTIAL, clients=(("1 GiB, first", "sequential"),)),
    Group(
        "overlay",
        (
            LIST_BIG,
            large("1 GiB, cache on overlayfs", "sequential", cold=True),
            large("2,000 x 4 KiB, cache on overlayfs", "random-4k", drop=True, pairs=3),
        ),
        peers=(OURS, DISK),
        overlay=True,
    ),
    Group(
        "first byte",
        (LIST_BIG, large("first byte of 1 GiB", "first-bytes")),
        clients=(("first byte of 1 GiB", "first-bytes"),),
    ),
    Group(
        "first byte, unlisted",
        (large("first byte of 1 GiB, nothing listed", "first-bytes"),),
        clients=(("first byte of 1 GiB, nothing listed", "first-bytes"),),
    ),
    Group(
        "random",
        (LIST_BIG, large("200 x 256 KiB", "random-256k", cold=True)),
        "random",
        clients=(("200 x 256 KiB", "random-256k"),),
    ),
    Group(
        "many",
        (epoch("names of 100,000", "names"), epoch("then stat of 100,000", "list")),
        many=True,
        peers=(OURS, "rclone", "blobfuse2 file_cache", "blobfuse2 block_cache"),
        clients=(
            ("names of 100,000", "obstore-names"),
            ("names of 100,000", "own-names"),
        ),
    ),
)
