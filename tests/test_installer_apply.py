"""A plan is carried out, taken back where it fails, and by an uninstall: on a tree of files of the test's own."""

import os
import signal
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlmount.errors import AmlmountError
from amlmount.installer import Plan, Record
from amlmount.installer.apply import Ground, apply, apply_undo
from amlmount.installer.record import PackageChanges, load_record, read_state, save_record
from amlmount.installer.steps import Command, Link, MakeDir, Step, WriteFile
from amlmount.installer.uninstall_plan import plan_uninstall
from amlmount.run import Completed

STEPS: tuple[Step, ...] = (
    MakeDir("/a/b", "w", 0o700),
    WriteFile("/a/b/new", "1\n", "w", 0o640),
    WriteFile("/there", "changed\n", "w"),
    Link("/link", "/elsewhere", "w"),
    WriteFile("/there", "changed again\n", "w"),
    Command(("true",), "w", undo=("echo", "undone")),
)


def no_command(argv: Sequence[str], timeout_s: float) -> Completed:
    return Completed(tuple(argv), 1 if argv[0] == "false" else 0, b"", b"it broke\n")


def ground(tmp_path: Path) -> Ground:
    return Ground(str(tmp_path / "root"), no_command, lock_timeout_s=0, record_path=str(tmp_path / "state/record.json"))


def undo_in(root: Path) -> "object":
    return lambda record: plan_uninstall(record, lambda path: read_state(f"{root}{path}"))


def tree(root: Path) -> dict[str, tuple[int, bytes | str | None]]:
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (mode, content)
    return found


def do(tmp_path: Path, *steps: Step) -> None:
    root = tmp_path / "root"
    apply(Plan("install", steps=steps), undo_in(root), ground(tmp_path))  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    (made / "there").write_text("before\n")
    (made / "there").chmod(0o600)
    (made / "link").symlink_to("/before")
    return made


@pytest.mark.root
def test_a_run_that_fails_takes_back_what_it_changed(tmp_path: Path, root: Path) -> None:
    before = tree(root)
    with pytest.raises(AmlmountError) as caught:
        do(tmp_path, *STEPS, Command(("false",), "w"), WriteFile("/never", "", "w"))
    assert tree(root) == before and not (tmp_path / "state").exists()
    assert "it broke" in (caught.value.hint or "")
    assert "echo undone" in caught.value.details["rolled_back"] and caught.value.details["not_rolled_back"] == []


@pytest.mark.root
def test_an_interruption_takes_back_too(tmp_path: Path, root: Path) -> None:
    before = tree(root)

    def interrupted(argv: Sequence[str], timeout_s: float) -> Completed:
        if argv[0] == "stop":
            raise KeyboardInterrupt
        return no_command(argv, timeout_s)

    where = ground(tmp_path)
    where.execute = interrupted
    with pytest.raises(KeyboardInterrupt):
        apply(Plan("install", steps=(*STEPS, Command(("stop",), "w"))), undo_in(root), where)  # type: ignore[arg-type]
    assert tree(root) == before


@pytest.mark.root
def test_a_run_that_is_killed_is_taken_back_by_an_uninstall(tmp_path: Path, root: Path) -> None:
    before = tree(root)

    def killed(argv: Sequence[str], timeout_s: float) -> Completed:
        if argv[0] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return no_command(argv, timeout_s)

    child = os.fork()
    if child == 0:
        where = ground(tmp_path)
        where.execute = killed
        apply(Plan("install", steps=(*STEPS, Command(("die",), "w"))), undo_in(root), where)  # type: ignore[arg-type]
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert tree(root) != before
    record = load_record(str(tmp_path / "state/record.json"))
    apply_undo(plan_uninstall(record, lambda path: read_state(f"{root}{path}")), ground(tmp_path))
    assert tree(root) == before


@pytest.mark.root
def test_several_runs_are_taken_back_to_before_the_first(tmp_path: Path, root: Path) -> None:
    before = tree(root)
    do(tmp_path, *STEPS)
    do(tmp_path, WriteFile("/there", "third\n", "w"), WriteFile("/a/b/c/more", "", "w"))
    assert (root / "there").read_text() == "third\n" and (root / "there").stat().st_mode & 0o777 == 0o600
    record = load_record(str(tmp_path / "state/record.json"))
    undo = plan_uninstall(record, lambda path: read_state(f"{root}{path}"))
    apply_undo(undo, ground(tmp_path))
    assert tree(root) == before and not (tmp_path / "state").exists()


@pytest.mark.root
def test_what_others_have_changed_since_is_left(tmp_path: Path, root: Path) -> None:
    do(tmp_path, *STEPS)
    (root / "there").write_text("mine\n")
    (root / "a/b/more").write_text("mine too\n")
    record = load_record(str(tmp_path / "state/record.json"))
    undo = plan_uninstall(record, lambda path: read_state(f"{root}{path}"))
    report = apply_undo(undo, ground(tmp_path))
    assert undo.notes == ("/there was changed after we wrote it: it is left as it is",)
    assert (root / "there").read_text() == "mine\n" and (root / "a/b/more").exists() and not (root / "a/b/new").exists()
    assert report.warnings == ()


def test_a_step_that_may_fail_is_told_and_the_plan_goes_on(tmp_path: Path, root: Path) -> None:
    steps = (Command(("false",), "w", may_fail=True), WriteFile("/after", "", "w"))
    report = apply(Plan("install", steps=steps), undo_in(root), ground(tmp_path))  # type: ignore[arg-type]
    assert (root / "after").exists() and len(report.warnings) == 1 and report.done == ("write /after",)


def test_a_record_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for text in ("{", '{"version": 99}', '{"version": 1}'):
        path.write_text(text)
        with pytest.raises(AmlmountError, match="cannot read the record"):
            load_record(str(path))


def test_a_record_survives_being_written(tmp_path: Path, root: Path) -> None:
    packages = PackageChanges({"a": "1"}, {"b": "2"}, {"c": ("1", "2")})
    record = Record({}, ("/d",), (("x", "y"),), packages)
    path = str(tmp_path / "s/r.json")
    save_record(record, path)
    assert load_record(path) == record and os.stat(path).st_mode & 0o777 == 0o600
    save_record(Record(), path)
    assert not os.path.exists(tmp_path / "s")


NAMES = st.sampled_from("abc")


SYSTEMS = st.dictionaries(NAMES, st.sampled_from(["1", "2", "3"]))


def change(old: dict[str, str], new: dict[str, str]) -> Record:
    return Record(
        packages=PackageChanges(
            {name: new[name] for name in new.keys() - old.keys()},
            {name: old[name] for name in old.keys() - new.keys()},
            {name: (old[name], new[name]) for name in old.keys() & new.keys() if old[name] != new[name]},
        )
    )


@given(st.lists(SYSTEMS, min_size=2, max_size=5))
def test_changes_of_several_runs_are_the_change_from_the_first_to_the_last(systems: list[dict[str, str]]) -> None:
    together = Record()
    for old, new in pairwise(systems):
        together = together.then(change(old, new))
    assert together == change(systems[0], systems[-1])
