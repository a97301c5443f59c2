"""Descriptors kept by name: by a keeper of our own, which outlives who started it, and by something like systemd."""

import array
import contextlib
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from amlmount.descriptors import open_store
from amlmount.descriptors.base import DescriptorStore
from amlmount.descriptors.keeping import KeeperStore
from amlmount.descriptors.servicemanager import SystemdStore, passed_by_name
from amlmount.errors import AmlmountError
from amlmount.mounts import open_and_mount, unmount
from mounting import until
from sandbox import Sandbox, all_processes, command_line

Keepers = Callable[[], list[int]]


@pytest.fixture
def keepers(sandbox: Sandbox) -> Keepers:
    """The keepers of this run: others run beside it on the same machine."""

    def find() -> list[int]:
        found = [pid for pid, _ in all_processes() if "descriptors/keeper.py" in command_line(pid)]
        return [pid for pid in found if sandbox.owns(pid)]

    return find


@pytest.fixture
def store(sandbox: Sandbox, keepers: Keepers) -> Iterator[KeeperStore]:
    store = KeeperStore(sandbox.make_dir("k", mode=0o700))
    yield store
    store.drop(["a.one", "a.two", *(f"m{i}.x" for i in range(300))])
    store.close()
    until(lambda: not keepers())


def memfd(text: str) -> int:
    fd = os.memfd_create("test")
    os.pwrite(fd, text.encode(), 0)
    return fd


def texts(descriptors: dict[str, int]) -> dict[str, str]:
    found = {}
    for name, fd in descriptors.items():
        assert not os.get_inheritable(fd)
        found[name] = os.pread(fd, 100, 0).decode()
        os.close(fd)
    return found


def give(store: DescriptorStore, **names: str) -> None:
    fds = {name.replace("_", "."): memfd(text) for name, text in names.items()}
    store.keep(fds)
    for fd in fds.values():
        os.close(fd)


def test_what_is_kept_comes_back_to_another(store: KeeperStore, sandbox: Sandbox, keepers: Keepers) -> None:
    assert store.recall() == {} and not keepers(), "asking starts nothing"
    give(store, a_one="1", a_two="2")
    give(store, a_two="two")
    store.close()
    other = KeeperStore(os.path.dirname(store._path))
    assert texts(other.recall()) == {"a.one": "1", "a.two": "two"}
    other.drop(["a.one", "unknown"])
    assert texts(other.recall()) == {"a.two": "two"}
    other.close()


def test_what_is_kept_takes_the_place_of_something_else(store: KeeperStore) -> None:
    give(store, a_one="1", a_two="2")
    fd = memfd("one")
    store.keep({"a.one": fd}, instead_of=["a.two", "unknown"])
    os.close(fd)
    assert texts(store.recall()) == {"a.one": "one"}


def test_it_ends_with_the_last_thing_it_keeps(store: KeeperStore, keepers: Keepers) -> None:
    give(store, a_one="1")
    [keeper] = keepers()
    os.kill(keeper, signal.SIGTERM)
    store.drop(["a.one"])
    assert keepers() == [keeper], "somebody talks to it"
    store.close()
    until(lambda: not keepers())


def test_sigterm_ends_it_when_no_daemon_is_there(store: KeeperStore, keepers: Keepers) -> None:
    give(store, a_one="1")
    [keeper] = keepers()
    store.close()
    os.kill(keeper, signal.SIGINT)
    os.kill(keeper, signal.SIGHUP)
    os.kill(keeper, signal.SIGTERM)
    until(lambda: not keepers())


def test_hundreds(store: KeeperStore) -> None:
    give(store, **{f"m{i}_x": str(i) for i in range(300)})
    assert texts(store.recall()) == {f"m{i}.x": str(i) for i in range(300)}


def test_a_keeper_that_was_killed_is_replaced(store: KeeperStore, keepers: Keepers) -> None:
    give(store, a_one="1")
    [keeper] = keepers()
    os.kill(keeper, signal.SIGKILL)
    give(store, a_two="2")
    assert texts(store.recall()) == {"a.two": "2"}


@pytest.mark.root
def test_a_mount_that_is_gone_is_kept_no_longer(store: KeeperStore, mountpoint: str) -> None:
    fuse_fd = open_and_mount(
        mountpoint, source="x", subtype="x", read_only=True, allow_other=False, default_permissions=True
    )
    store.keep({"a.one": fuse_fd})
    os.close(fuse_fd)
    [kept] = store.recall().values()
    os.close(kept)
    unmount(mountpoint, lazy=True)
    until(lambda: not store.recall())


def test_nonsense_ends_the_conversation_and_nothing_else(store: KeeperStore) -> None:
    give(store, a_one="1")
    for packet in (b"{", b"[]", b'{"op":"?"}', b'{"op":"keep","names":["x"]}', b'{"op":"keep"}'):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(5)
            peer.connect(store._path)
            peer.send(packet)
            assert peer.recv(100) == b""
    assert texts(store.recall()) == {"a.one": "1"}


def same_file(one: int, other: int) -> bool:
    """As systemd finds out: kcmp(2) with KCMP_FILE, else by what fstat says."""
    number, me = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine, -1), os.getpid()
    result = ctypes.CDLL(None).syscall(number, me, me, 0, one, other)
    return os.path.sameopenfile(one, other) if result < 0 else result == 0


class Manager:
    """The side of systemd: keeps what it is sent and has not yet, answers barriers unless it is `deaf`."""

    def __init__(self, path: str) -> None:
        self.kept: dict[str, int] = {}
        self.deaf = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(4))
                if not data:
                    return
                fds = [fd for _, _, payload in ancillary for fd in array.array("i", payload)]
                fields = dict(line.split("=", 1) for line in data.decode().splitlines())
                if fields.get("FDSTORE") and any(same_file(fds[0], fd) for fd in self.kept.values()):
                    os.close(fds[0])
                elif fields.get("FDSTORE"):
                    self.kept[fields["FDNAME"]] = fds[0]
                elif fields.get("FDSTOREREMOVE"):
                    fds = [self.kept.pop(fields["FDNAME"])] if fields["FDNAME"] in self.kept else []
                    os.closerange(fds[0], fds[0] + 1) if fds else None
                elif self.deaf:
                    self.kept["barrier"] = fds[0]
                else:
                    os.close(fds[0])

    def close(self) -> None:
        for fd in self.kept.values():
            os.close(fd)
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def manager(sandbox: Sandbox) -> Iterator[tuple[Manager, str]]:
    path = f"{sandbox.make_dir('n')}/notify"
    manager = Manager(path)
    yield manager, path
    manager.close()


def test_systemd_has_what_it_was_given_when_keep_returns(manager: tuple[Manager, str]) -> None:
    boss, path = manager
    store = SystemdStore(path, {})
    give(store, a_one="1", a_two="2")
    give(store, a_one="one")
    assert {name: os.pread(fd, 9, 0) for name, fd in boss.kept.items()} == {"a.one": b"one", "a.two": b"2"}
    store.drop(["a.two"])
    give(store, a_three="3")
    assert set(boss.kept) == {"a.one", "a.three"}


def test_what_systemd_has_already_can_have_another_name(manager: tuple[Manager, str]) -> None:
    """As when one mount takes the place of another: it is kept under a name for the next one first."""
    boss, path = manager
    store, fd = SystemdStore(path, {}), memfd("new")
    give(store, a_one="old")
    store.keep({"a.next-one": fd})
    assert set(boss.kept) == {"a.one", "a.next-one"}
    store.keep({"a.one": fd}, instead_of=["a.next-one"])
    os.close(fd)
    assert {name: os.pread(kept, 9, 0) for name, kept in boss.kept.items()} == {"a.one": b"new"}


def test_a_systemd_that_does_not_answer_is_an_error(
    manager: tuple[Manager, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    boss, path = manager
    boss.deaf = True
    monkeypatch.setattr("amlmount.descriptors.servicemanager.BARRIER_TIMEOUT_S", 0.05)
    with pytest.raises(AmlmountError, match="cannot give systemd descriptors to keep"):
        give(SystemdStore(path, {}), a_one="1")
    with pytest.raises(AmlmountError):
        give(SystemdStore(path + "x", {}), a_one="1")


def test_the_store_is_systemds_only_where_it_keeps_anything(sandbox: Sandbox) -> None:
    place = sandbox.make_dir("k")
    assert open_store(place, {}).kind == "keeper"
    assert open_store(place, {"NOTIFY_SOCKET": "/x"}).kind == "keeper"
    assert open_store(place, {"NOTIFY_SOCKET": "/x", "FDSTORE": "0"}).kind == "keeper"
    assert open_store(place, {"NOTIFY_SOCKET": "@x", "FDSTORE": "512"}).kind == "systemd"


def test_descriptors_of_another_process_are_not_ours() -> None:
    assert passed_by_name({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}) == {}
    assert passed_by_name({}) == {}
