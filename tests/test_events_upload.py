"""Events that the process of a mount tells of by itself: uploads that fail, and what was put under another name."""

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from amlmount.errors import NetworkError
from amlmount.events import Kind, kinds
from amlmount.vfs.writing.outcomes import FORGOTTEN_AFTER_S, UploadNews
from amlmount.vfs.writing.sending import ConflictError
from amlmount.worker.channel import Channel
from amlmount.worker.news import MAX_EARLY, News
from daemons import poll
from world import World

CONFIG = """\
stores: {{s: {{type: local, path: ./data}}}}
mounts: {{m: {{target: {root}/mnt, source: s, engine: python, read_only: false, durability: journal}}}}
"""


def bring_up(world: World) -> Path:
    os.mkdir(f"{world.root}/data")
    world.write_config(CONFIG.format(root=world.root))
    done = world.cli("up")
    assert done.returncode == 0, done.stderr
    return Path(world.root)


def told(world: World, kind: str) -> dict[str, Any]:
    """Wait until it is told, and return the event."""

    def look() -> dict[str, Any] | None:
        return next((event for event in world.cli_json("events", "m") if event["type"] == kind), None)

    found: dict[str, Any] = poll(look, f"{kind} is not told", timeout_s=30)
    return found


def test_what_does_not_get_into_the_store_is_told_and_so_is_its_end(world: World) -> None:
    root = bring_up(world)
    with open(root / "mnt/file", "xb", buffering=0) as file:
        file.write(b"mine")
        os.rename(root / "data", root / "gone")
    failed = told(world, "upload-failed")
    assert failed["severity"] == "warning" and failed["message"].startswith("'file' is not in the store yet: cannot")
    assert failed["details"]["name"] == "file"
    os.rename(root / "gone", root / "data")
    assert told(world, "upload-recovered")["number"] > failed["number"]
    assert (root / "data/file").read_text() == "mine"
    [stats] = world.cli_json("stats", "m")
    uploads = stats["counted"]["store"]["uploads"]
    assert sum(uploads["counts"]) == 1 and uploads["failed"] >= 1 and stats["counted"]["written_bytes"] == 4
    assert stats["counted"]["unsent"]["bytes"] == 0
    assert world.cli("down").returncode == 0


def test_what_was_put_under_another_name_is_told(world: World) -> None:
    root = bring_up(world)
    (root / "data/file").write_text("first")
    with open(root / "mnt/file", "r+b", buffering=0) as file:
        file.write(b"mine!")
        time.sleep(0.01)
        (root / "data/file").write_text("theirs, and longer")
    kept = told(world, "writes-set-aside")
    assert "somebody else has changed it" in kept["message"] and kept["details"]["name"] == "file"
    assert (root / "data/file").read_text() == "theirs, and longer"
    assert world.cli("down").returncode == 0


class Heard:
    """Listens to news of uploads, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.kinds: list[str] = []
        self.news = UploadNews(lambda: self.now)
        self.news.tell = lambda kind, message, details: self.kinds.append(kind.name)


def test_uploads_are_told_of_when_they_turn() -> None:
    heard, error = Heard(), NetworkError("cannot reach it")
    for name, trouble in [("a", None), ("a", error), ("b", error), ("a", error), ("a", None), ("c", None)]:
        heard.news.attempted(name, trouble)
    assert heard.kinds == ["upload-failed"], "b is still not there"
    heard.news.attempted("b", None)
    assert heard.kinds == ["upload-failed", "upload-recovered"]
    heard.news.attempted("deleted since", error)
    heard.now += FORGOTTEN_AFTER_S + 1
    heard.news.attempted("c", None)
    heard.news.attempted("c", ConflictError("c", "c.mine"))
    assert heard.kinds[2:] == ["upload-failed", "upload-recovered", "writes-set-aside"]


def test_what_is_told_early_waits_and_who_does_not_listen_holds_nobody_up() -> None:
    sent: list[dict[str, Any]] = []
    news = News(sent.append)
    for number in range(MAX_EARLY + 5):
        news.tell(kinds.UPLOAD_FAILED, str(number), {})
    assert sent == []
    news.open()
    news.tell(Kind("x", kinds.UPLOAD_FAILED.severity, "", ""), "last", {"a": 1})
    assert len(sent) == MAX_EARLY + 1 and sent[-1] == {
        "op": "news",
        "kind": "x",
        "message": "last",
        "details": {"a": 1},
    }
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    done = threading.Event()

    def flood() -> None:
        while channel.offer({"op": "news", "text": "x" * 1000}):
            pass
        done.set()

    threading.Thread(target=flood, daemon=True).start()
    assert done.wait(10), "it waits for somebody who does not read"
    ours.close()
    theirs.close()
