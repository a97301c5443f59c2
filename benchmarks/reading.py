"""Reading from the network, with peers: `python -m benchmarks reading [--trials 5] [--only GROUP] [--json FILE]`.

With --json, groups that are not run now keep what the file has of them, and --report only prints what it has.
"""

import argparse
import fcntl
import importlib.util
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import command, criteria, plan, report, workload
from benchmarks.machine import disk_of, heading
from benchmarks.peers import Peer, Place, find_peers, versions
from benchmarks.plan import Group, Sizes
from benchmarks.record import Record
from benchmarks.sampling import DISK, OURS, Sample, client_argv, run_report, sample_client, sample_mount
from benchmarks.stub import CannotMeasure, Stub, build_stub, running_stub

OURS_AND_DISK = (OURS, DISK)


@dataclass(frozen=True)
class Placement:
    """On which CPUs who runs, as command lines that start others: the same for every peer."""

    text: str
    store: tuple[str, ...] = ()
    peer: tuple[str, ...] = ()


PLACEMENTS = {
    "free": Placement("nobody is pinned to a CPU"),
    "split": Placement(
        "the store on CPU 0, file systems, clients and readers on the others",
        ("taskset", "-c", "0"),
        ("taskset", "-c", "1-1023"),
    ),
}


@dataclass(frozen=True)
class Run:
    """Everything one run needs: programs, peers, data on the disk, sizes, number of trials."""

    stub: Path
    peers: Sequence[Peer]
    folder: Path
    sizes: Sizes
    trials: int
    peer_trials: int
    placement: Placement

    @property
    def local(self) -> Path:
        """Return the container's content on the disk."""
        return self.folder / "local"

    def trials_of(self, peer: Peer, group: Group) -> int:
        """Return how often a peer does a group."""
        return self.peer_trials if group.slow_peers and peer.name not in OURS_AND_DISK else self.trials


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = command.parser_for("reading", __doc__, [group.name for group in plan.GROUPS], trials=5)
    parser.add_argument("--peer-trials", type=int, default=1, help="for epochs of others, which take minutes each")
    parser.add_argument("--placement", choices=sorted(PLACEMENTS), default="free")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Measure, print, write; 1 if a target is missed or something is not there."""
    return command.run(
        "reading",
        words,
        arguments(words),
        measure,
        lambda kept: report.markdown(kept.where, kept.samples, kept.missing),
        lambda kept: criteria.lines(kept.samples),
    )


def measure(asked: argparse.Namespace, kept: Record) -> None:
    """Run the groups that were asked for and put what they give into the record, group by group."""
    with own_folder(asked.folder) as folder:
        run, kept.missing = prepare(asked, folder)
        kept.where = describe(run)
        for group in plan.GROUPS:
            if asked.only and group.name not in asked.only:
                continue
            kept.replace(checked(list(run_group(run, group))))
            if asked.json:
                kept.save(asked.json)


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder and remove it at the end. Raises CannotMeasure if another benchmark uses it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotMeasure(f"cannot measure in {folder}: another benchmark is running there") from None
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed: its mounts went with its namespace
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def prepare(asked: argparse.Namespace, folder: Path) -> tuple[Run, list[str]]:
    """Find programs and peers, and make the data on the disk; also return who is not here."""
    peers, missing = find_peers()
    if not has_pandas():
        missing.append("no pandas: install it next to amlmount (dependency group `bench`)")
    wanted = [peer for peer in peers if not asked.peer or any(part in peer.name for part in asked.peer)]
    sizes = plan.TINY if asked.tiny else Sizes()
    placement = PLACEMENTS[asked.placement]
    run = Run(build_stub(), wanted, folder, sizes, asked.trials, asked.peer_trials, placement)
    workload.make_images(run.local, sizes.classes, sizes.per_class)
    workload.make_tables(run.local, sizes.tables)
    with running_stub(run.stub, ["-big", str(sizes.big_bytes)], ()) as store:
        (run.local / "big").mkdir()
        run_report(client_argv("keep", store, run.local / plan.BIG))
    return run, missing


def describe(run: Run) -> str:
    """Say under which conditions the numbers hold."""
    sizes = run.sizes
    data = f"{sizes.classes} x {sizes.per_class} images, one file of {sizes.big_bytes >> 20} MiB"
    others = versions(run.peers) or "no peers"
    trials = f"medians of {run.trials} (a star: {run.peer_trials})"
    return (
        f"{heading()}; {others}; {data}; {sizes.round_trip} added to every request; caches and data on "
        f"{disk_of(run.folder)}; {run.placement.text}; {trials}."
    )


def run_group(run: Run, group: Group) -> Iterator[Sample]:
    """Do a group with every peer in turn, trial by trial; whoever was first is last in the next trial."""
    peers = [peer for peer in run.peers if group.peers is None or peer.name in group.peers]
    with running_stub(run.stub, stub_options(run, group), run.placement.store) as store:
        if group.images:
            for part in (plan.SMALL, plan.TABLES):
                run_report(client_argv("upload", store, run.local / part))
        for trial in range(run.trials):
            turn = trial % len(peers)
            for peer in peers[turn:] + peers[:turn]:
                if trial < run.trials_of(peer, group):
                    yield from mounted_samples(run, group, store, peer, trial)
            for work, program in group.clients:
                yield shown(sample_client(place_of(run, group, store), work, program, trial))


def stub_options(run: Run, group: Group) -> list[str]:
    """Return how the store is to be started."""
    sizes = run.sizes
    many = ["-small", f"{sizes.classes}x{sizes.many_per_class}x700"] if group.many else []
    return ["-delay", sizes.round_trip, "-big", str(sizes.big_bytes), *many, *group.stub]


def mounted_samples(run: Run, group: Group, store: Stub, peer: Peer, trial: int) -> Iterator[Sample]:
    """Do the steps of a group with one peer, once."""
    steps = [step for step in group.steps if step.reader != "pandas" or has_pandas()]
    for sample in sample_mount(peer, place_of(run, group, store), steps, trial):
        yield shown(sample)


def place_of(run: Run, group: Group, store: Stub) -> Place:
    """Return where the next one works."""
    folder, placement = run.folder / "peer", run.placement.peer
    return Place(store, folder, run.local, group.profile, placement, group.overlay, front=group.front)


def has_pandas() -> bool:
    """Tell whether the line about pandas can be measured."""
    return importlib.util.find_spec("pandas") is not None


def shown(sample: Sample) -> Sample:
    """Tell whoever waits how it goes."""
    outcome = sample.error or f"{sample.seconds:9.4f} s, {sample.requests} requests, {sample.store_bytes} bytes"
    print(f"{sample.trial} {sample.peer:22} {sample.work:36} {outcome}", file=sys.stderr, flush=True)
    return sample


def checked(samples: Sequence[Sample]) -> list[Sample]:
    """Mark the samples that read other bytes than the disk has, or than we have if the disk was not asked."""
    right: dict[str, int] = {}
    for name in reversed(OURS_AND_DISK):
        for sample in samples:
            if sample.peer == name and sample.digest is not None:
                right.setdefault(sample.work, sample.digest)
    return [
        replace(sample, error="it read other bytes than the others")
        if sample.digest is not None and sample.digest != right.get(sample.work, sample.digest)
        else sample
        for sample in samples
    ]
