"""The benchmark harness: ratios, verdicts, tables, the raw numbers on disk, and what the readers claim to have read."""

import json
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import criteria, plan, reading, record, report, writing
from benchmarks.criteria import Criterion, judge
from benchmarks.pairs import READER
from benchmarks.peers import PeerFailed, Place, blobfuse2_config
from benchmarks.record import Record
from benchmarks.sampling import Sample, run_report
from benchmarks.stub import Stub
from benchmarks.workload import make_images, make_tables

WORK = "first epoch"


def sample(peer: str, trial: int, seconds: float, **more: object) -> Sample:
    return replace(Sample(WORK, peer, trial, seconds, read_bytes=100, store_bytes=100), **more)  # type: ignore[arg-type]


def test_speed_is_against_the_best_peer_of_the_same_trial() -> None:
    samples = [sample("amlmount", 0, 1), sample("rclone", 0, 30), sample("blobfuse2 file_cache", 0, 20)]
    samples += [sample("amlmount", 1, 2), sample("rclone", 1, 30), sample("blobfuse2 file_cache", 1, 80)]
    line = judge(Criterion("x", WORK, criteria.OTHERS, 17), samples)
    assert line is not None
    assert (line.ratios, line.median, line.holds) == ((20, 15), 17.5, True)


def test_a_peer_with_fewer_trials_counts_with_its_median() -> None:
    samples = [sample("amlmount", trial, 1 + trial) for trial in range(3)] + [sample("rclone", 0, 60)]
    line = judge(Criterion("x", WORK, ("rclone",), 40), samples)
    assert line is not None
    assert (line.ratios, line.holds) == ((60, 30, 20), False)


def test_cost_is_ours_against_theirs_and_may_not_pass_the_ceiling() -> None:
    samples = [sample("amlmount", 0, 1.3), sample("client", 0, 1.0)]
    line = judge(Criterion("x", WORK, ("client",), ceiling=1.2), samples)
    assert line is not None
    assert (line.ratios, line.target, line.holds) == ((1.3,), "<= 1.2 x", False)


def test_an_amount_needs_nobody_to_compare_with() -> None:
    asked = Criterion("x", WORK, ceiling=0, unit="requests", measure=criteria.requests)
    none, some = judge(asked, [sample("amlmount", 0, 1)]), judge(asked, [sample("amlmount", 0, 1, requests=3)])
    assert none is not None and some is not None
    assert (none.holds, some.holds, some.ratios) == (True, False, (3,))


def test_what_was_not_measured_is_no_line_and_not_a_success() -> None:
    asked = Criterion("x", WORK, ("rclone",), 40)
    assert judge(asked, [sample("amlmount", 0, 1)]) is None
    assert judge(asked, [sample("rclone", 0, 1)]) is None
    assert f"Not in this run: {'; '.join(sorted({c.work for c in criteria.CRITERIA}))}." in "\n".join(
        report.verdicts([])
    )


def test_one_failed_trial_of_ours_misses_the_target() -> None:
    samples = [sample("amlmount", 0, 1), sample("amlmount", 1, 0, error="EIO"), sample("rclone", 0, 90)]
    line = judge(Criterion("x", WORK, ("rclone",), 40), samples)
    assert line is not None
    assert (line.ratios, line.holds) == ((90,), False)


def test_a_failed_peer_is_no_yardstick() -> None:
    samples = [sample("amlmount", 0, 1), sample("rclone", 0, 0.1, error="EIO"), sample("blobfuse2 file_cache", 0, 50)]
    line = judge(Criterion("x", WORK, criteria.OTHERS, 40), samples)
    assert line is not None and line.holds


def test_a_cache_that_cheats_is_seen_whoever_cheats() -> None:
    honest = [sample("amlmount", 0, 1, cold=True), sample("disk", 0, 1, cold=True, store_bytes=0)]
    line = criteria.no_cheating([*honest, sample("rclone", 0, 1, cold=True, store_bytes=74)])
    assert line is not None and (line.median, line.holds) == (0.74, False)
    line = criteria.no_cheating(honest)
    assert line is not None and line.holds


def test_other_bytes_than_the_disk_has_are_an_error() -> None:
    samples = [sample("amlmount", 0, 1, digest=5), sample("rclone", 0, 1, digest=6), sample("disk", 0, 1, digest=5)]
    assert [one.error for one in reading.checked(samples)] == ["", "it read other bytes than the others", ""]
    samples = [replace(one, digest=7) if one.peer == "disk" else one for one in samples]
    assert [bool(one.error) for one in reading.checked(samples)] == [True, True, False]


def test_tables() -> None:
    samples = [sample("amlmount", t, 1.0, requests=7, cpu_s=0.5, peak_bytes=64 << 20) for t in range(3)]
    samples += [sample("rclone", 0, 123.4, requests=100), sample("blobfuse2 file_cache", 0, 0, error="no mount")]
    text = report.markdown("here, today", samples, ["no pandas"])
    assert text.startswith("here, today\n\nNot measured: no pandas.\n\n| work | target |")
    assert "| first epoch, directory order, against rclone | >= 40x | 123.40 x | 123.40-123.40 | yes |" in text
    assert "| first epoch | 1.00 (7) | 123.4* (100) | failed | - | - | - | - |" in text
    assert "| first epoch | amlmount | 0.50 | 0.00 | 5368709.12 | 64 |" in text
    assert text.endswith("blobfuse2 file_cache, first epoch, trial 0: no mount.")
    rows = [line for line in text.splitlines() if line.startswith("| first epoch | 1.00")]
    assert rows[0].count("|") == next(line for line in text.splitlines() if "seconds (requests)" in line).count("|")


def test_tables_go_between_the_marks_of_a_document(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- reading: begin -->\nold\n<!-- reading: end -->\nafter\n")
    report.put_between_marks(document, "new")
    assert document.read_text() == "before\n<!-- reading: begin -->\nnew\n<!-- reading: end -->\nafter\n"
    document.write_text("nothing")
    with pytest.raises(ValueError, match="cannot find"):
        report.put_between_marks(document, "new")


def test_the_record_keeps_groups_that_are_not_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "reading.json"
    kept = Record("here", ["no pandas"], [sample("amlmount", 0, 1.5, cold=True, digest=3)])
    kept.save(path)
    assert record.load(path) == kept
    kept.replace([replace(kept.samples[0], work="list")])
    assert [one.work for one in kept.samples] == [WORK, "list"]
    kept.replace([replace(kept.samples[0], seconds=9)])
    assert [(one.work, one.seconds) for one in kept.samples] == [("list", 1.5), (WORK, 9)]
    assert record.load(tmp_path / "none.json").samples == []


def test_every_criterion_is_about_something_that_is_measured() -> None:
    measured = {step.work for group in plan.GROUPS for step in group.steps if not step.untimed}
    assert {one.work for one in criteria.CRITERIA} <= measured
    assert {work for group in plan.GROUPS for work, _ in group.clients} <= measured
    names = [group.name for group in plan.GROUPS]
    assert len(names) == len(set(names))


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tables(make_images(tmp_path_factory.mktemp("data"), 2, 3), 2)
    (folder / "big.bin").write_bytes(bytes(range(256)) * (3 << 12))
    return folder


@pytest.mark.parametrize("work", ["first-epoch", "shuffled-epoch", "loader-epoch"])
def test_epochs_read_the_same_bytes_in_any_order(container: Path, work: str) -> None:
    files = [path.read_bytes() for path in (container / "MNIST_FLAT").rglob("*.jpg")]
    done = run_report([sys.executable, str(READER), work, str(container / "MNIST_FLAT")])
    assert (done["bytes"], done["digest"]) == (sum(map(len, files)), sum(map(zlib.crc32, files)))
    assert len(files) == 6 and done["seconds"] > 0


@pytest.mark.parametrize(
    ("work", "count", "size"), [("sequential", 3, 1 << 20), ("random-256k", 12, 1 << 18), ("first-bytes", 1, 4096)]
)
def test_large_reads_are_what_they_say(container: Path, work: str, count: int, size: int) -> None:
    done = run_report([sys.executable, str(READER), work, str(container / "big.bin")])
    assert (done["bytes"], done["digest"]) == (count * size, count * zlib.crc32(bytes(range(64))))


def test_pil_decodes_what_is_read(container: Path) -> None:
    assert run_report([sys.executable, str(READER), "pil", str(container / "MNIST_FLAT")])["bytes"] == 6 * 28 * 28


def test_a_reader_that_fails_says_why(container: Path) -> None:
    with pytest.raises(PeerFailed, match="FileNotFoundError"):
        run_report([sys.executable, str(READER), "sequential", str(container / "absent")])


def test_images_are_about_as_large_as_the_seeds(container: Path) -> None:
    sizes = [path.stat().st_size for path in (container / "MNIST_FLAT").rglob("*.jpg")]
    assert all(600 < size < 800 for size in sizes)


@pytest.mark.parametrize(("cache", "other"), [("file_cache", "block_cache"), ("block_cache", "file_cache")])
def test_blobfuse2_gets_one_cache_and_our_store(tmp_path: Path, cache: str, other: str) -> None:
    made = blobfuse2_config(cache, Place(Stub(4711, 0), tmp_path, tmp_path, "standard"))
    assert cache in made and other not in made and f"{made['components']}".count("cache") == 2
    assert "127.0.0.1:4711" in json.dumps(made)


def test_help_of_the_command() -> None:
    argv = [sys.executable, "-m", "benchmarks", "reading", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True, timeout=60)
    assert "--peer-trials" in done.stdout


@pytest.mark.parametrize(("work", "amount", "written"), [("large", 3 << 20, 3 << 20), ("small", 4, 4 * (10 << 10))])
def test_writers_write_what_they_say(tmp_path: Path, work: str, amount: int, written: int) -> None:
    done = run_report([sys.executable, str(writing.WRITER), work, str(tmp_path / "x"), str(amount), "--sync"])
    top = tmp_path / "x"
    files = list(top.iterdir()) if top.is_dir() else [top]
    assert done["bytes"] == written == sum(len(file.read_bytes()) for file in files)
    if work == "large":
        before = top.read_bytes()
        run_report([sys.executable, str(writing.WRITER), "edit", str(top), str(amount)])
        changed = [at for at, (a, b) in enumerate(zip(before, top.read_bytes(), strict=True)) if a != b]
        assert 0 < changed[-1] - changed[0] < 1 << 20


def test_the_table_of_writing_judges_both_durabilities() -> None:
    ours = Sample(writing.SMALL, "amlmount", 0, 4.0, 100 * (10 << 10), requests=110)
    samples = [ours, replace(ours, peer="disk", seconds=1.0), replace(ours, peer=writing.JOURNAL, seconds=1.5)]
    rows = {line.name: line for line in writing.lines(samples)}
    assert rows["1,000 files of 10 KiB, `durability: store`, requests a file"].ratios == (1.1,)
    in_journal = rows[writing.IN_JOURNAL[0].name]
    assert in_journal.holds and in_journal.ratios == (1 / 1.5,)
    assert writing.JOURNAL in writing.markdown(Record("here", (), samples))
