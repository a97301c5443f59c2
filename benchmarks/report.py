"""From samples to Markdown: what holds, how many seconds everybody took, what it costs.

Pure; nothing is measured here.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.criteria import CRITERIA, lines
from benchmarks.sampling import CLIENT_NAME, DISK, OURS, OWN_CLIENT_NAME, Sample

PEERS = (OURS, "rclone", "blobfuse2 file_cache", "blobfuse2 block_cache", CLIENT_NAME, OWN_CLIENT_NAME, DISK)
COST_WORKS = ("first epoch", "1 GiB, first")
MIB, GIB = 1 << 20, 1 << 30


def markdown(where: str, samples: Sequence[Sample], missing: Sequence[str] = ()) -> str:
    """Return the whole report."""
    parts = [where, *(f"Not measured: {reason}." for reason in missing)]
    parts += ["\n".join(verdicts(samples)), "\n".join(seconds_table(samples)), "\n".join(cost_table(samples))]
    return "\n\n".join([*parts, *failures(samples)])


def verdicts(samples: Sequence[Sample]) -> Iterator[str]:
    """Return the table of promises."""
    yield "| work | target | median | spread | holds |"
    yield "|---|---|---|---|---|"
    for line in lines(samples):
        yield line.row()
    measured = {sample.work for sample in samples}
    absent = sorted({criterion.work for criterion in CRITERIA} - measured)
    if absent:
        yield f"\nNot in this run: {'; '.join(absent)}."


def seconds_table(samples: Sequence[Sample], peers: Sequence[str] = PEERS) -> Iterator[str]:
    """Return medians of seconds, with requests to the store in brackets (the client's are of all its tries, so not).

    A star marks fewer trials than ours had.
    """
    yield f"| seconds (requests) | {' | '.join(peers)} |"
    yield "|---" * (len(peers) + 1) + "|"
    for work in dict.fromkeys(sample.work for sample in samples):
        yield f"| {work} | {' | '.join(_cell(samples, work, peer) for peer in peers)} |"


def _cell(samples: Sequence[Sample], work: str, peer: str) -> str:
    found = of(samples, work, peer)
    if not found:
        return "failed" if any(s.error for s in samples if (s.work, s.peer) == (work, peer)) else "-"
    star = "*" if trials_of(found) < trials_of(of(samples, work, OURS)) else ""
    shown = f"{_rounded(median(found, lambda sample: sample.seconds))}{star}"
    requests = median(found, lambda sample: sample.requests)
    return shown if peer in (DISK, CLIENT_NAME) else f"{shown} ({requests:.0f})"


def _rounded(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.4f}"


def cost_table(
    samples: Sequence[Sample], works: Sequence[str] = COST_WORKS, peers: Sequence[str] = PEERS
) -> Iterator[str]:
    """Return CPU time and memory of those who read everything: of the file system, and of reader and kernel."""
    yield "| work | peer | CPU s (file system) | CPU s (reader, in the kernel too) | CPU s per GiB | peak memory MiB |"
    yield "|---|---|---|---|---|---|"
    for work in works:
        for peer in peers:
            if found := of(samples, work, peer):
                yield _cost_row(work, peer, found)


def _cost_row(work: str, peer: str, found: Sequence[Sample]) -> str:
    own = median(found, lambda sample: sample.cpu_s)
    reader = median(found, lambda sample: sample.reader_cpu_s)
    per_gib = (own + reader) * GIB / max(found[0].read_bytes, 1)
    memory = median(found, lambda sample: sample.peak_bytes) / MIB
    return f"| {work} | {peer} | {own:.2f} | {reader:.2f} | {per_gib:.2f} | {f'{memory:.0f}' if memory else '-'} |"


def failures(samples: Sequence[Sample]) -> Iterator[str]:
    """Return a sentence for everything that went wrong."""
    for sample in samples:
        if sample.error:
            yield f"{sample.peer}, {sample.work}, trial {sample.trial}: {sample.error}."


def of(samples: Sequence[Sample], work: str, peer: str) -> list[Sample]:
    """Return the good samples of a peer at a work."""
    return [sample for sample in samples if (sample.work, sample.peer) == (work, peer) and not sample.error]


def trials_of(samples: Sequence[Sample]) -> int:
    """Return in how many trials they were taken."""
    return len({sample.trial for sample in samples})


def median(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """Return the middle value."""
    return statistics.median(value(sample) for sample in samples)


def put_between_marks(document: Path, text: str, name: str = "reading") -> None:
    """Replace what stands between the marks of a document. Raises ValueError if they are not there."""
    opening, closing = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, begin, rest = document.read_text().partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end:
        raise ValueError(f"cannot find {opening} and {closing} in {document}")
    document.write_text(f"{before}{opening}\n{text}\n{closing}{after}")
