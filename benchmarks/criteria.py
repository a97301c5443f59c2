"""What the samples have to show: each criterion compares ours with somebody, trial by trial, and becomes a line."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.pairs import Line
from benchmarks.sampling import DISK, OURS, Sample

OTHERS = ("rclone", "blobfuse2 file_cache", "blobfuse2 block_cache")
BLOBFUSE2 = OTHERS[1:]
CHEAT_FLOOR = 0.75
Measure = Callable[[Sample], float]


@dataclass(frozen=True)
class Criterion:
    """One promise about one work. `peers`: the best of these in the same trial is the yardstick; none: ours alone.

    With `floor`, the ratio is speed (theirs / ours) and has to reach it; with `ceiling`, it is cost (ours / theirs,
    or ours alone) and must not pass it; with neither it is only shown, as cost if `is_cost`. `measure`: seconds if not
    said.
    """

    name: str
    work: str
    peers: tuple[str, ...] = ()
    floor: float | None = None
    ceiling: float | None = None
    unit: str = "x"
    is_cost: bool = False
    measure: Measure = lambda sample: sample.seconds


def fetched_ratio(sample: Sample) -> float:
    """Return bytes from the store for each byte that was read."""
    return sample.store_bytes / sample.read_bytes if sample.read_bytes else 0.0


def requests(sample: Sample) -> float:
    """Return requests to the store."""
    return float(sample.requests)


def judge(criterion: Criterion, samples: Sequence[Sample]) -> Line | None:
    """Return the line of a criterion, None if there is nothing to compare. A trial in which ours failed, fails it."""
    of_work = [sample for sample in samples if sample.work == criterion.work]
    ours = [sample for sample in of_work if sample.peer == OURS]
    yardstick = Yardstick(criterion, of_work)
    if not ours or not yardstick.exists:
        return None
    failed = [sample for sample in ours if sample.error]
    ratios = tuple(yardstick.ratio(sample) for sample in ours if not sample.error)
    if not ratios:
        return Line(criterion.name, _target(criterion), (0.0,), holds=False, unit=f"{criterion.unit}, failed")
    return Line(
        criterion.name, _target(criterion), ratios, holds=not failed and _holds(criterion, ratios), unit=criterion.unit
    )


class Yardstick:
    """What a criterion holds ours against: the best of its peers, in the same trial or, with fewer trials, in all."""

    def __init__(self, criterion: Criterion, samples: Sequence[Sample]) -> None:
        """`samples` are those of the criterion's work."""
        self._criterion = criterion
        self._values: dict[str, dict[tuple[int, int], float]] = {}
        for sample in samples:
            if sample.peer in criterion.peers and not sample.error:
                self._values.setdefault(sample.peer, {})[sample.trial, sample.repeat] = criterion.measure(sample)

    @property
    def exists(self) -> bool:
        """True if there is one, or none is needed."""
        return bool(self._values) or not self._criterion.peers

    def ratio(self, ours: Sample) -> float:
        """Return the ratio of one of our samples."""
        mine = self._criterion.measure(ours)
        if not self._criterion.peers:
            return mine
        best = min(_nearest(values, ours) for values in self._values.values())
        costs = self._criterion.ceiling is not None or self._criterion.is_cost
        above, below = (mine, best) if costs else (best, mine)
        return above / below if below else float("inf")


def _nearest(values: Mapping[tuple[int, int], float], ours: Sample) -> float:
    for key in ((ours.trial, ours.repeat), (ours.trial, 0)):
        if key in values:
            return values[key]
    return statistics.median(values.values())


def _target(criterion: Criterion) -> str:
    if criterion.floor is not None:
        return f">= {criterion.floor:g}x"
    return "-" if criterion.ceiling is None else f"<= {criterion.ceiling:g} {criterion.unit}"


def _holds(criterion: Criterion, ratios: Sequence[float]) -> bool:
    middle = statistics.median(ratios)
    if criterion.floor is not None:
        return middle >= criterion.floor
    return criterion.ceiling is None or middle <= criterion.ceiling


def no_cheating(samples: Sequence[Sample]) -> Line | None:
    """Return the line that every cold reading really came from the store, for everybody who is compared."""
    cold = [sample for sample in samples if sample.cold and sample.peer != DISK and not sample.error]
    if not cold:
        return None
    lowest = min(fetched_ratio(sample) for sample in cold)
    name = "bytes from the store / bytes read, lowest of all cold readings of all peers"
    return Line(name, f">= {CHEAT_FLOOR:g}x", (lowest,), holds=lowest >= CHEAT_FLOOR)


def lines(samples: Sequence[Sample]) -> Iterator[Line]:
    """Return a line for every criterion that was measured."""
    for line in [judge(criterion, samples) for criterion in CRITERIA] + [no_cheating(samples)]:
        if line is not None:
            yield line


def _both(name: str, work: str, floor: float) -> Iterator[Criterion]:
    yield Criterion(f"{name}, against rclone", work, ("rclone",), floor)
    yield Criterion(f"{name}, against blobfuse2", work, BLOBFUSE2, floor)


def _fronts(work: str, floor: float) -> Iterator[Criterion]:
    """Return the criteria with the overlay in front, which is root's default for `epochs`, and without."""
    yield Criterion(f"{work}, against the disk", work, (DISK,), floor)
    yield Criterion(f"{work}, `front: none`, against the disk", f"{work}, no front", (DISK,), floor)


def _libraries() -> Iterator[Criterion]:
    for library in ("open()", "PIL", "numpy.fromfile", "pandas.read_csv"):
        work = f"second epoch, {library}"
        yield Criterion(f"{work}, against the disk", work, (DISK,))
    yield Criterion("second epoch, open(), `front: none`, against the disk", "second epoch, open(), no front", (DISK,))


THIRD = "third epoch, page cache dropped"
CRITERIA = (
    *_both("first epoch, directory order", "first epoch", 40),
    Criterion("first epoch, against the client's parallel GETs", "first epoch", ("client",), 0.5),
    *_both("first epoch, shuffled", "first epoch, shuffled", 20),
    *_both("first epoch, 4 reader processes, shuffled", "first epoch, 4 processes", 20),
    *_fronts("second epoch, open(2)", 0.8),
    *_libraries(),
    *_fronts(THIRD, 0.7),
    Criterion("third epoch, requests to the store", THIRD, ceiling=0, unit="", measure=requests),
    Criterion("list and stat of 10,000, cold, against blobfuse2", "list and stat of 10,000", BLOBFUSE2, 3),
    Criterion("1 GiB, link of 400 MB/s, against the client's best", "1 GiB, first, 400 MB/s", ("client",), 0.9),
    Criterion("1 GiB, no limit, against block_cache", "1 GiB, first", ("blobfuse2 block_cache",), 1),
    Criterion("1 GiB, no limit, against the client's best", "1 GiB, first", ("client",)),
    Criterion("1 GiB in the cache, page cache dropped, against the disk", "1 GiB, page cache dropped", (DISK,)),
    Criterion("1 GiB in the cache, again, against the disk", "1 GiB, again", (DISK,), 0.9),
    Criterion("first byte of 1 GiB, in round trips", "first byte of 1 GiB", ("client",), ceiling=2),
    Criterion(
        "first byte of 1 GiB, nothing listed, in round trips",
        "first byte of 1 GiB, nothing listed",
        ("client",),
        is_cost=True,
    ),
    Criterion("200 x 256 KiB, against 200 round trips", "200 x 256 KiB", ("client",), ceiling=1.2),
    Criterion("200 x 256 KiB, bytes fetched / bytes read", "200 x 256 KiB", ceiling=4, measure=fetched_ratio),
    Criterion("200 x 256 KiB, against the best of rclone and blobfuse2", "200 x 256 KiB", OTHERS, 1),
    Criterion("2,000 x 4 KiB in the cache, against the disk", "2,000 x 4 KiB, in the cache", (DISK,), 0.8),
    Criterion("2,000 x 4 KiB in the cache, again, against the disk", "2,000 x 4 KiB, again", (DISK,)),
    Criterion("2,000 x 4 KiB, cache on overlayfs, against the disk", "2,000 x 4 KiB, cache on overlayfs", (DISK,)),
    Criterion(
        "2,000 x 4 KiB in the cache, against the best of rclone and blobfuse2",
        "2,000 x 4 KiB, in the cache",
        OTHERS,
        1,
    ),
    Criterion("names of 100,000, against our own client's listing", "names of 100,000", ("own client",), ceiling=1.2),
    Criterion("names of 100,000, against obstore's listing", "names of 100,000", ("client",), is_cost=True),
    Criterion("stat of 100,000 after that, requests", "then stat of 100,000", ceiling=0, unit="", measure=requests),
)
