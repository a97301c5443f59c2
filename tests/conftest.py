"""Fixtures every test may use, and the rule every test is under: nothing stays behind, nothing is skipped unseen."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import sandbox as ground
from sandbox import Sandbox
from skips import read_skip_list, summary
from userbox import UserBox, open_box
from world import World, make_world

pytest_plugins = ["azurite", "drivers"]

HERE = Path(__file__).parent
# How long an example takes says how busy the machine is, nothing else.
settings.register_profile("amlmount", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("amlmount")
SANDBOX = pytest.StashKey[Sandbox]()
SKIPPED = pytest.StashKey[list[str]]()
COLLECTED = pytest.StashKey[list[str]]()
OF_THE_TESTS = ("AMLMOUNT_TEST_", "AMLMOUNT_BLOBFUSE2_", "AMLMOUNT_UPDATE_")
GRACE_S = float(os.environ.get("AMLMOUNT_TEST_GRACE_S", "3"))


def pytest_configure(config: pytest.Config) -> None:
    """Lay the ground of the run before anything else happens (a namespace is entered while there is one thread)."""
    config.addinivalue_line("markers", "root: needs root; as an ordinary user it is skipped, if the list permits")
    config.addinivalue_line("markers", "real_blobfuse2: needs Microsoft's own binary, see tests/drivers.py")
    config.stash[SKIPPED], config.stash[COLLECTED] = [], []
    forget_surroundings()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts into the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[SANDBOX] = ground.open_sandbox()


def pytest_addoption(parser: pytest.Parser) -> None:
    """A run may be one of several that go on side by side."""
    parser.addoption("--shard", default="1/1", metavar="I/N", help="of the test files every N-th, from the I-th on")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the other shards' files to them."""
    number, count = (int(part) for part in config.option.shard.split("/"))
    mine = set(sorted({item.path for item in items})[number - 1 :: count])
    config.hook.pytest_deselected(items=[item for item in items if item.path not in mine])
    items[:] = [item for item in items if item.path in mine]


def forget_surroundings() -> None:
    """Forget what the caller's shell tells amlmount (`. .work/quickstart/world`, sudo, `az`) and its output."""
    for name in list(os.environ):
        ours = name.startswith("AMLMOUNT_") and not name.startswith(OF_THE_TESTS)
        if ours or name.startswith(("AZURE_", "SUDO_")) or name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
            del os.environ[name]
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost")))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take the ground away."""
    if SANDBOX in config.stash:
        ground.close_sandbox(config.stash[SANDBOX])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs root where there is none; as root, see that the skip would be permitted."""
    if not item.get_closest_marker("root"):
        return
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not item.path.name.startswith("test_"):  # only by name, as installer_trees.py: no plain run meets it
        return
    if read_skip_list(HERE / "permitted-skips.txt").refused([item.nodeid], root=False):
        pytest.fail("needs root, and tests/permitted-skips.txt does not permit an ordinary user to skip it", False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> "Iterator[None]":  # a generator: `yield` returns the report
    """Remember what was skipped."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.skipped and not hasattr(report, "wasxfail"):
        item.config.stash[SKIPPED].append(item.nodeid)
    return report  # type: ignore[return-value]


def skips_told(config: pytest.Config) -> list[str]:
    """Hold what was skipped against the list."""
    skipped, collected = config.stash[SKIPPED], config.stash[COLLECTED]
    permitted, root = read_skip_list(HERE / "permitted-skips.txt"), os.geteuid() == 0
    stale = permitted.stale(collected, skipped, root=root) if collected else []
    return summary(skipped, permitted.refused(skipped, root=root), stale)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skip that is not on the list fails the run, and so does a line of the list that has outlived its test."""
    config = session.config
    if is_whole(session):
        config.stash[COLLECTED].extend(item.nodeid for item in session.items)
    if any(line.startswith("FAILED") for line in skips_told(config)) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def is_whole(session: pytest.Session) -> bool:
    """Say whether this was a run of everything, to its end."""
    option = session.config.option
    chosen = option.keyword or option.markexpr or option.deselect or option.collectonly or getattr(option, "lf", False)
    chosen = chosen or option.shard != "1/1"
    everything = session.config.args_source is pytest.Config.ArgsSource.TESTPATHS
    ended = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    return everything and ended and not chosen and not session.shouldstop and not session.shouldfail


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Count skips against the list."""
    for line in skips_told(config):
        terminalreporter.write_line(line, red=line.startswith("FAILED"))


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
