"""Fixtures every test may use, and the rule every test is under: nothing stays behind, nothing is skipped unseen."""

import fnmatch
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandbox as ground
from sandbox import Sandbox
from userbox import UserBox, open_box
from world import World, make_world

pytest_plugins = ["azurite"]

HERE = Path(__file__).parent
SANDBOX = pytest.StashKey[Sandbox]()
SKIPPED = pytest.StashKey[list[str]]()
GRACE_S = float(os.environ.get("AMLMOUNT_TEST_GRACE_S", "3"))


def pytest_configure(config: pytest.Config) -> None:
    """Lay the ground of the run before anything else happens (a namespace is entered while there is one thread)."""
    config.addinivalue_line("markers", "root: needs root; as an ordinary user it is skipped, if the list permits")
    config.stash[SKIPPED] = []
    config.stash[SANDBOX] = ground.open_sandbox()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take the ground away."""
    if SANDBOX in config.stash:
        ground.close_sandbox(config.stash[SANDBOX])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs root where there is none."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> "Iterator[None]":  # a generator: `yield` returns the report
    """Remember what was skipped."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.skipped and not hasattr(report, "wasxfail"):
        item.config.stash[SKIPPED].append(item.nodeid)
    return report  # type: ignore[return-value]


def permitted_skips() -> list[str]:
    """Return the patterns of tests/permitted-skips.txt."""
    lines = (HERE / "permitted-skips.txt").read_text().splitlines()
    return [pattern for line in lines if (pattern := line.partition("#")[0].strip())]


def skips_not_permitted(config: pytest.Config) -> list[str]:
    """Return the tests that were skipped and are not on the list."""
    names = [nodeid.partition("[")[0] for nodeid in config.stash[SKIPPED]]
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in permitted_skips())]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skip that is not on the list fails the run."""
    if skips_not_permitted(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Count skips against the list."""
    skipped, bad = config.stash[SKIPPED], skips_not_permitted(config)
    if skipped:
        terminalreporter.write_line(f"skipped: {len(skipped)}, of which permitted: {len(skipped) - len(bad)}")
    for name in bad:
        terminalreporter.write_line(f"FAILED skip is not in tests/permitted-skips.txt: {name}", red=True)


@pytest.fixture(scope="session")
def sandbox(pytestconfig: pytest.Config) -> Sandbox:
    """The ground of this run: `sandbox.make_dir("x")` gives a directory with a short path."""
    return pytestconfig.stash[SANDBOX]


@pytest.fixture(autouse=True)
def nothing_left_behind(sandbox: Sandbox) -> Iterator[None]:
    """Fail the test that leaves a mount, a process or an amlmount* temporary file, and remove it for the next one."""
    before = sandbox.snapshot()
    yield
    left = sandbox.leftovers(before, GRACE_S)
    if left:
        text = str(left)
        sandbox.sweep(left)
        pytest.fail(f"left behind:\n{text}", pytrace=False)


@pytest.fixture
def mountpoint(sandbox: Sandbox) -> Iterator[str]:
    """An empty directory to mount on; whatever is mounted there is let go of afterwards, dead or alive."""
    path = sandbox.make_dir("m")
    yield path
    for _, point in sorted(ground.mounts_below(path), reverse=True):
        ground.lazy_unmount(point)
    os.rmdir(path)


@pytest.fixture
def as_user(sandbox: Sandbox) -> Iterator[UserBox]:
    """An ordinary user who can mount: `as_user.run("fusermount3", "-V")`. See `UserBox`."""
    needed = [sys.base_prefix, sys.prefix, str(HERE.parent), sandbox.root]
    box = open_box(sandbox.make_dir("u"), sandbox.make_dir("d"), needed)
    namespace = None if box.namespace_fd is None else os.readlink(f"/proc/self/fd/{box.namespace_fd}")
    if namespace:
        sandbox.namespaces.add(namespace)
    yield box
    # While we hold the namespace its number is ours; afterwards the kernel may give it to another run's processes.
    sandbox.namespaces.discard(namespace or "")
    box.close()


@pytest.fixture
def world(sandbox: Sandbox) -> Iterator[World]:
    """An amlmount of its own: `world.write_config(...)`, `world.cli("up")`, `world.env`. See `World`."""
    made = make_world(sandbox.make_dir("w"))
    yield made
    made.end()


@pytest.fixture
def user_world(sandbox: Sandbox, as_user: UserBox) -> Iterator[World]:
    """The same for an ordinary user: its commands run in the user's box."""
    made = make_world(sandbox.make_dir("w"), as_user)
    yield made
    made.end()
