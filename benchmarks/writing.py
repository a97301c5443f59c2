"""Writing, with peers: `python -m benchmarks writing [--trials 3] [--only GROUP] [--json FILE] [--docs FILE]`.

With --json, groups that are not run now keep what the file has of them, and --report only prints what it has.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import command, report
from benchmarks.criteria import Criterion, judge
from benchmarks.machine import disk_of, drop_caches, heading
from benchmarks.pairs import Line
from benchmarks.peers import Amlmount, Disk, Mounted, Peer, PeerFailed, Place, find_peers, versions
from benchmarks.reading import own_folder, shown
from benchmarks.record import Record
from benchmarks.sampling import (
    CLIENT_NAME,
    DISK,
    OURS,
    Sample,
    client_argv,
    cpu_seconds,
    peak_bytes,
    prepare_place,
    remove_place,
    run_report,
)
from benchmarks.stub import Stub, build_stub, running_stub

MIB = 1 << 20
WRITER = Path(__file__).with_name("writer.py")
JOURNAL = "amlmount, durability: journal"
FILE_CACHE, BLOCK_CACHE = "blobfuse2 file_cache", "blobfuse2 block_cache"  # the first is what it does by default
OTHERS = ("rclone", FILE_CACHE, BLOCK_CACHE)
PEERS = (OURS, JOURNAL, *OTHERS, CLIENT_NAME, DISK)
LINK = ("-rate", "400000000")


@dataclass(frozen=True)
class Sizes:
    """How much is written. `round_trip` is added to every request, as Go writes a duration."""

    large_bytes: int = 1024 * MIB
    small_files: int = 1000
    round_trip: str = "10ms"


TINY = Sizes(large_bytes=32 * MIB, small_files=20)


@dataclass(frozen=True)
class Group:
    """One store, and one mount of each peer in each trial. `works`: what writer.py calls them, and their names.

    `client`: what the storage client does alone, under the name of the first work.
    """

    name: str
    works: tuple[tuple[str, str], ...]
    peers: tuple[str, ...]
    stub: tuple[str, ...] = ()
    client: str = ""


CLOSED, LINKED, WRITTEN = "1 GiB, written and closed", "1 GiB, written and closed, 400 MB/s", "1 GiB, written"
SMALL, EDIT = "1,000 files of 10 KiB", "1 MiB changed in 1 GiB"
GROUPS = (
    Group("large", (("large", CLOSED), ("edit", EDIT)), (OURS, JOURNAL, *OTHERS, DISK), client="upload-large"),
    Group("link", (("large", LINKED),), (OURS, *OTHERS), LINK, "upload-large"),
    Group("small", (("small", SMALL),), (OURS, JOURNAL, *OTHERS, DISK)),
)


def requests_per_file(sample: Sample) -> float:
    """Return requests to the store for each file."""
    return sample.requests / (sample.read_bytes / (10 << 10))


def sent_mib(sample: Sample) -> float:
    """Return MiB sent to the store."""
    return sample.sent_bytes / MIB


CRITERIA = (
    Criterion("1 GiB, written and closed, against the client's own upload", CLOSED, (CLIENT_NAME,), 0.9),
    Criterion("1 GiB, link of 400 MB/s, against the client's own upload", LINKED, (CLIENT_NAME,), 0.9),
    Criterion("1 GiB, written and closed, against blobfuse2", CLOSED, (FILE_CACHE, BLOCK_CACHE), 1),
    Criterion("1 GiB, written, not closed, against the disk", WRITTEN, (DISK,), 0.8),
    Criterion("1,000 files of 10 KiB, `durability: store`, against blobfuse2", SMALL, (FILE_CACHE, BLOCK_CACHE), 1),
    Criterion(
        "1,000 files of 10 KiB, `durability: store`, requests a file",
        SMALL,
        ceiling=1.2,
        unit="",
        measure=requests_per_file,
    ),
    Criterion("1 MiB changed in 1 GiB, MiB sent", EDIT, ceiling=16, unit="MiB", measure=sent_mib),
    Criterion("1 MiB changed in 1 GiB, against blobfuse2 file_cache", EDIT, (FILE_CACHE,), 5),
    Criterion("1 MiB changed in 1 GiB, against blobfuse2 block_cache", EDIT, (BLOCK_CACHE,)),
)
IN_JOURNAL = (
    Criterion("1,000 files of 10 KiB, `durability: journal`, against the disk with fsync", SMALL, (DISK,), 0.5),
    Criterion("1 GiB, `durability: journal`, written and closed, against the disk with fsync", CLOSED, (DISK,)),
    Criterion("1 GiB, `durability: journal`, written, not closed, against the disk", WRITTEN, (DISK,), 0.8),
)


@dataclass(frozen=True)
class Run:
    """Everything one run needs."""

    stub: Path
    peers: Sequence[Peer]
    folder: Path
    sizes: Sizes
    trials: int


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = command.parser_for("writing", __doc__, [group.name for group in GROUPS], trials=3)
    parser.add_argument("--large", type=int, metavar="MIB", help="size of the large file, instead of 1 GiB")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Measure, print, write; 1 if a target is missed or something is not there."""
    return command.run("writing", words, arguments(words), measure, markdown, lambda kept: lines(kept.samples))


def measure(asked: argparse.Namespace, kept: Record) -> None:
    """Run the groups that were asked for and put what they give into the record, group by group."""
    with own_folder(asked.folder) as folder:
        found, missing = find_peers()
        everybody = [*found, Amlmount(JOURNAL, durability="journal")]
        wanted = [peer for peer in everybody if not asked.peer or any(part in peer.name for part in asked.peer)]
        sizes = TINY if asked.tiny else Sizes(large_bytes=asked.large * MIB) if asked.large else Sizes()
        run = Run(build_stub(), wanted, folder, sizes, asked.trials)
        kept.missing, kept.where = missing, describe(run)
        for group in GROUPS:
            if asked.only and group.name not in asked.only:
                continue
            kept.replace(list(run_group(run, group)))
            if asked.json:
                kept.save(asked.json)


def describe(run: Run) -> str:
    """Say under which conditions the numbers hold."""
    sizes, others = run.sizes, versions(run.peers) or "no peers"
    return (
        f"{heading()}; {others}; one file of {sizes.large_bytes >> 20} MiB, {sizes.small_files} files of 10 KiB; "
        f"{sizes.round_trip} added to every request; everything on {disk_of(run.folder)}; medians of {run.trials}; "
        f"load average at the beginning {os.getloadavg()[0]:.0f}."
    )


def run_group(run: Run, group: Group) -> Iterator[Sample]:
    """Do a group with every peer in turn, trial by trial; whoever was first is last in the next trial."""
    peers = [peer for peer in run.peers if peer.name in group.peers]
    if group.client:  # not counted: memory that a virtual machine has not had yet costs whoever is first 2 s a GiB
        with running_stub(run.stub, (), ()) as store:
            sample_client(run, group, store, 0)
    for trial in range(run.trials):
        turn = trial % len(peers)
        for peer in peers[turn:] + peers[:turn]:
            with running_stub(run.stub, ["-delay", run.sizes.round_trip, *group.stub], ()) as store:
                for sample in sample_peer(run, group, peer, store, trial):
                    yield shown(sample)
        if group.client:
            with running_stub(run.stub, ["-delay", run.sizes.round_trip, *group.stub], ()) as store:
                yield shown(sample_client(run, group, store, trial))


def sample_peer(run: Run, group: Group, peer: Peer, store: Stub, trial: int) -> list[Sample]:
    """Mount, do all works in turn, unmount. A work that fails ends it; its sample has the error."""
    place = Place(store, run.folder / "peer", run.folder / "local", "checkpoint", is_writable=True)
    prepare_place(place)
    place.local.mkdir()
    drop_caches()
    found, now = list[Sample](), group.works[0][1]
    try:
        with peer.mounted(place) as mounted:
            for work, now in group.works:
                found += sample_work(run, peer, mounted, place, work, now, trial)
    except PeerFailed as error:
        found.append(Sample(now, peer.name, trial, error=" ".join(str(error).split())[:300]))
    finally:
        remove_place(place)
        remove_tree(place.local)
    return found


def remove_tree(folder: Path) -> None:
    """Remove what was written on the disk, and wait until the disk is at rest."""
    shutil.rmtree(folder)
    os.sync()


def sample_work(
    run: Run, peer: Peer, mounted: Mounted, place: Place, work: str, name: str, trial: int
) -> Iterator[Sample]:
    """Do one work; a large file gives a second sample, of its writes alone."""
    place.store.served()
    before_s = cpu_seconds(mounted.pids)
    amount = run.sizes.small_files if work == "small" else run.sizes.large_bytes
    sync = ["--sync"] if isinstance(peer, Disk) else []
    path = f"{mounted.folder}/{'small' if work == 'small' else 'one.bin'}"
    done = run_report([sys.executable, str(WRITER), work, path, str(amount), *sync])
    served = place.store.served()
    sample = Sample(
        name,
        peer.name,
        trial,
        round(done["seconds"], 6),
        done["bytes"],
        served.read_bytes,
        served.total,
        round(cpu_seconds(mounted.pids) - before_s, 3),
        round(done["cpu_s"], 3),
        peak_bytes(mounted.pids),
        sent_bytes=served.sent_bytes,
    )
    yield sample
    if name == CLOSED:
        yield replace(sample, work=WRITTEN, seconds=round(done["written_s"], 6))


def sample_client(run: Run, group: Group, store: Stub, trial: int) -> Sample:
    """Have the storage client upload a file of the same size, from the disk."""
    source = run.folder / "source.bin"
    run_report([sys.executable, str(WRITER), "large", str(source), str(run.sizes.large_bytes), "--sync"])
    try:
        done = run_report(client_argv(group.client, store, source))
    finally:
        source.unlink()
    tried = ", ".join(f"{name}: {seconds} s" for name, seconds in done.get("tried", {}).items())
    name = group.works[0][1]
    return Sample(name, CLIENT_NAME, trial, round(done["seconds"], 6), done["bytes"], cpu_s=done["cpu_s"], tried=tried)


def lines(samples: Sequence[Sample]) -> Iterator[Line]:
    """Return a line for every criterion that was measured."""
    of_journal = [replace(s, peer=OURS) if s.peer == JOURNAL else s for s in samples if s.peer != OURS]
    found = [judge(criterion, samples) for criterion in CRITERIA]
    for line in [*found, *(judge(criterion, of_journal) for criterion in IN_JOURNAL)]:
        if line is not None:
            yield line


def markdown(kept: Record) -> str:
    """Return the whole report."""
    rows = ["| work | target | median | spread | holds |", "|---|---|---|---|---|"]
    rows += [line.row() for line in lines(kept.samples)]
    parts = [kept.where, *(f"Not measured: {reason}." for reason in kept.missing)]
    parts += ["\n".join(rows), "\n".join(report.seconds_table(kept.samples, PEERS))]
    parts += ["\n".join(report.cost_table(kept.samples, (CLOSED, SMALL), PEERS))]
    return "\n\n".join([*parts, *report.failures(kept.samples)])
