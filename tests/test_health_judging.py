"""What was found out becomes conditions: every reason there is, when one turns, which mount a path leads to."""

import asyncio
import errno
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from amlmount.config.models import HealthConfig
from amlmount.errors import AccessDeniedError, ConfigError, ContainerNotFoundError, NetworkError
from amlmount.health import (
    Answer,
    EngineTally,
    Prober,
    judge_answer,
    judge_clock,
    judge_credential,
    judge_disks,
    judge_errors,
    judge_place,
    judge_process,
    judge_store,
    judge_uploads,
)
from amlmount.health.prober import SILENCE
from amlmount.health.prober_child import KEPT_THREADS
from amlmount.mounts.hiding import Paths
from amlmount.mounts.mountinfo import MountEntry
from amlmount.states import (
    KINDS,
    Condition,
    Failure,
    MountState,
    MountStatus,
    Now,
    Observed,
    RestartPolicy,
    health_of,
    merge,
    transition,
    turned,
    worst,
)
from amlmount.stores.azure.checkup import Checkup, Examiner
from daemons import poll
from fakeblob import FakeBlobService

CONFIG = HealthConfig()
UP = MountStatus("m", "/m", "s", True, "standard", state=MountState.MOUNTED, pid=7, wanted=True)
GONE = replace(UP, state=MountState.FAILED, pid=None, last_error=Failure("failed", "cannot serve 'm': killed"))
HOUR = 3600.0
DOCUMENT = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()


@pytest.fixture
def fake() -> Iterator[FakeBlobService]:
    made = FakeBlobService()
    yield made
    made.close()


def entry(mount_id: int, parent_id: int, point: str, fstype: str = "fuse.amlmount") -> MountEntry:
    return MountEntry(mount_id, parent_id, 0, mount_id, "/", point, (), (), fstype, "source", ())


def sas(until_s: float, from_s: float | None = None) -> Checkup:
    return Checkup(None, True, 0.0, "SAS", from_s, until_s)


def store(error: Exception | None, reached: bool | None) -> list[Condition]:
    return judge_store(Checkup(error, reached), "data", 10)  # type: ignore[arg-type]


ME = entry(5, 1, "/m")
# Each reason for which a condition is false, and what must have been seen for it.
EVERY: dict[str, list[Condition]] = {
    "ProcessEnded": [judge_process(GONE)],
    "Unmounted": [judge_place(UP, None, None)],
    "Hidden": [judge_place(UP, ME, entry(6, 5, "/m", "tmpfs"))],
    "Silent": [judge_answer(Answer(None), 5, 12)],
    "Dead": [judge_answer(Answer(errno.ENOTCONN), 5, None)],
    "AnswersWithError": [judge_answer(Answer(errno.EIO), 5, None)],
    "StoreSilent": store(NetworkError("cannot list container 'c': no answer in time"), False),
    "StoreTrouble": store(NetworkError("cannot list container 'c': ServerBusy"), True),
    "StoreGone": store(ContainerNotFoundError("cannot list container 'c'"), True),
    "AccessRefused": store(AccessDeniedError("cannot list container 'c': AuthenticationFailed"), True),
    "CredentialUnreadable": store(ConfigError("cannot use secret"), None),
    "CredentialEndsSoon": [judge_credential(sas(23 * HOUR), "data", CONFIG, 0)],
    "CredentialEnded": [judge_credential(sas(HOUR), "data", CONFIG, 2 * HOUR)],
    "DiskFull": [judge_disks({"/cache": Answer(0, 1 << 40), "/state": Answer(0, 1 << 20)}, CONFIG)],
    "UploadsLate": [judge_uploads(EngineTally(dirty_bytes=9, oldest_s=1000, trouble="no answer"), CONFIG)],
    "WritingRefused": [judge_uploads(EngineTally(refused="cannot write"), CONFIG)],
    "ManyErrors": [one for one in [judge_errors(None, EngineTally(100, 50), CONFIG)] if one],
    "ClockOff": [judge_clock(-300, CONFIG)],
}


@pytest.mark.parametrize("reason", EVERY)
def test_every_reason_has_its_cause(reason: str) -> None:
    [bad] = [condition for condition in EVERY[reason] if condition.status == "False"]
    [kind] = [kind for kind in KINDS if kind.type == bad.type]
    assert (bad.reason, bad.degrades) == (reason, kind.degrades) and reason in kind.reasons and bad.message


def test_the_table_the_causes_and_the_document_name_the_same_conditions_and_reasons() -> None:
    reasons = [reason for kind in KINDS for reason in kind.reasons]
    assert sorted(EVERY) == sorted(reasons) == sorted(set(reasons))
    conditions = DOCUMENT.partition("## Conditions")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", conditions, re.MULTILINE) == [kind.type for kind in KINDS]
    for kind in KINDS:
        section = conditions.partition(f"### {kind.type}\n")[2].partition("\n### ")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(kind.reasons)
        assert ("the mount is degraded" in section.lower()) == kind.degrades


@pytest.mark.parametrize(
    "condition",
    [
        judge_process(UP),
        judge_place(UP, ME, None),
        judge_answer(Answer(0), 5, None),
        *store(None, True),
        judge_credential(sas(100 * HOUR), "data", CONFIG, 0),
        judge_credential(sas(8 * HOUR, 0), "data", CONFIG, HOUR),  # of a short life, a quarter is left to warn in
        judge_credential(Checkup(None, True, None, "account key"), "data", CONFIG, 0),
        judge_credential(Checkup(None, True, None, "managed identity", None, HOUR, renews=True), "data", CONFIG, 0),
        judge_disks({"/cache": Answer(0, 1 << 40)}, CONFIG),
        judge_uploads(EngineTally(dirty_bytes=9, oldest_s=10), CONFIG),
        judge_clock(60, CONFIG),
        judge_errors(EngineTally(1000, 10), EngineTally(2000, 12), CONFIG),
    ],
)
def test_all_well(condition: Condition) -> None:
    assert condition.status == "True"


def test_a_few_errors_of_a_few_requests_say_nothing() -> None:
    assert judge_errors(None, EngineTally(4, 3), CONFIG) is None
    before = EngineTally(1000, 100)
    assert judge_errors(before, EngineTally(5, 0), CONFIG) is not None, "another process has begun to count"


def test_what_a_silent_store_says_of_the_login_stays_as_it_was() -> None:
    known = merge((), store(None, True), 1.0)
    after = merge(known, store(NetworkError("cannot reach it"), False), 2.0)
    assert {one.type: (one.status, one.since) for one in after} == {
        "StoreReachable": ("False", 2.0),
        "StoreAuthorized": ("True", 1.0),
    }
    assert [(change.type, change.after.reason) for change in turned(known, after)] == [
        ("StoreReachable", "StoreSilent")
    ]
    assert [change.after.status for change in turned(after, known)] == ["True"]
    assert turned((), known) == [] and len(turned((), after)) == 1


def test_health_in_a_word() -> None:
    bad = merge((), [*EVERY["ClockOff"], *EVERY["StoreSilent"]], 1.0)
    assert health_of(bad) == "StoreSilent+1", "what keeps it from serving comes first"
    first = worst(bad)
    assert first is not None and first.type == "StoreReachable"
    assert health_of(()) == "-" and health_of([judge_process(UP)]) == "ok"


def test_warnings_do_not_degrade_and_what_is_found_goes_with_the_mount() -> None:
    def after(status: MountStatus, *found: Condition) -> MountStatus:
        return transition(status, Observed(found), RestartPolicy(), Now(9.0, 9.0))[0]

    warned = after(UP, *EVERY["DiskFull"])
    assert warned.state is MountState.MOUNTED and health_of(warned.conditions) == "DiskFull"
    degraded = after(UP, *EVERY["AccessRefused"])
    assert degraded.state is MountState.DEGRADED and degraded.last_error is not None
    assert degraded.last_error.code == "access_denied" and "AuthenticationFailed" in degraded.last_error.message
    again = MountStatus.from_json(degraded.to_json())
    assert again.conditions == degraded.conditions
    well = after(degraded, *store(None, True))
    assert (well.state, well.last_error, health_of(well.conditions)) == (MountState.MOUNTED, None, "ok")


def test_which_mount_a_path_leads_to() -> None:
    root, data, mine = entry(1, 0, "/", "ext4"), entry(2, 1, "/data", "ext4"), entry(3, 2, "/data/m")
    assert Paths([root, data, mine]).cover_of(mine) is None
    on_top = entry(4, 3, "/data/m", "tmpfs")
    assert Paths([root, data, mine, on_top]).cover_of(mine) == on_top
    above = entry(5, 2, "/data", "tmpfs")
    assert Paths([root, data, mine, above]).cover_of(mine) == above
    below_cover = entry(6, 5, "/data/m")
    assert Paths([root, data, mine, above, below_cover]).cover_of(mine) == below_cover
    assert Paths([root, data, mine, above, below_cover]).cover_of(below_cover) is None


def test_one_look_at_a_container_leaves_no_connection(fake: FakeBlobService) -> None:
    examiner, before = Examiner(fake.definition(), "some/path/"), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        found = examiner.look(5)
        assert (found.error, found.is_reached, found.credential) == (None, True, "anonymous")
        assert found.clock_error_s is not None and abs(found.clock_error_s) < 5
    assert [asked.query["prefix"] for asked in fake.asked] == ["some/path/"] * 3
    fake.fail("status", status=503, code="ServerBusy")
    assert examiner.look(5).error is not None and len(fake.asked) == 4, "one try"
    fake.fail("status", status=403, code="AuthenticationFailed")
    refused = examiner.look(5)
    assert isinstance(refused.error, AccessDeniedError) and refused.is_reached
    fake.fail("silence")
    begun = time.monotonic()
    silent = examiner.look(0.2)
    assert silent.is_reached is False and time.monotonic() - begun < 3
    assert isinstance(Examiner(fake.definition("nope")).look(5).error, ContainerNotFoundError)
    # The service is ours too, and one of its threads hangs with a connection.
    poll(lambda: len(os.listdir("/proc/self/fd")) <= before + 1, "connections are left")


def test_what_a_credential_says_of_itself(fake: FakeBlobService, tmp_path: Path) -> None:
    path = tmp_path / "sas"
    path.touch(0o600)
    path.write_text("sv=2023-11-03&sp=rl&st=2026-01-01T00:00:00Z&se=2026-01-02&sig=c2VjcmV0")
    examiner = Examiner(fake.definition(credentials={"sas_token": {"file": str(path)}}))
    found = examiner.look(5)
    assert found.credential_until_s is not None and found.credential_from_s == found.credential_until_s - 24 * HOUR
    path.write_text("sv=2023-11-03&sp=rl&se=2036-01-01&sig=c2VjcmV0")
    later = examiner.look(5)
    assert later.credential_until_s is not None and later.credential_until_s > found.credential_until_s
    path.unlink()
    gone = examiner.look(5)
    assert gone.is_reached is None and gone.error is not None and "c2VjcmV0" not in gone.error.message


def test_many_questions_at_once_are_few_messages_and_few_threads_are_kept(tmp_path: Path) -> None:
    paths = [str(tmp_path / ("x" * 200) / str(number)) for number in range(300)]

    async def story() -> None:
        prober = Prober()
        unheard = [asyncio.create_task(prober.ask("write", str(tmp_path), 0.0, mount_id=n)) for n in range(20)]
        found = await asyncio.gather(*(prober.ask("free", path, 20) for path in paths))
        assert all(answer.error == 0 and answer.value > 0 for answer in found), "each is answered, in many parts"
        assert [await one for one in unheard] == [SILENCE] * 20
        assert await prober.ask("attributes", "/", 20) == Answer(0)
        child = prober._child
        assert child is not None
        threads = f"/proc/{child.pid}/task"
        poll(lambda: len(os.listdir(threads)) <= 1 + KEPT_THREADS, "all threads are kept")
        prober.close()
        poll(lambda: not os.path.exists(threads) or child.poll() is not None, "it lives on")

    asyncio.run(story())


def test_a_child_that_hangs_or_dies_holds_up_nobody(tmp_path: Path) -> None:
    async def story() -> None:
        prober = Prober()
        os.mkfifo(tmp_path / "fifo")
        assert await prober.ask("attributes", str(tmp_path), 5) == Answer(0)
        assert await prober.ask("list", str(tmp_path / "nope"), 5) == Answer(errno.ENOENT)
        assert (await prober.ask("free", str(tmp_path / "not" / "there"), 5)).value > 0
        assert await prober.ask("write", str(tmp_path), 5) == Answer(0) and os.listdir(tmp_path) == ["fifo"]
        child = prober._child
        assert child is not None
        os.kill(child.pid, signal.SIGSTOP)
        assert await prober.ask("attributes", str(tmp_path), 0.05) == Answer(None), "silence is an answer"
        os.kill(child.pid, signal.SIGKILL)
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while await prober.ask("attributes", str(tmp_path), 5) != Answer(0):
                await asyncio.sleep(0.01)
        second = prober._child
        assert second is not None and second.pid != child.pid
        prober.close()
        poll(lambda: not os.path.exists(f"/proc/{second.pid}") or second.poll() is not None, "it lives on")

    asyncio.run(story())
