"""Events: kept in order over a restart, bounded, private, without secrets; one place through which all of them pass."""

import json
import logging
import os
import stat
import threading
from pathlib import Path

import pytest

from amlmount.events import KINDS, Event, EventFile, EventHub, Severity, kinds
from amlmount.events.reference import with_table

KEY = "A" * 86 + "=="


def test_events_outlive_the_daemon(tmp_path: Path) -> None:
    folder = str(tmp_path / "events")
    hub = EventHub(EventFile(folder), clock=lambda: 1000.0)
    told = [hub.tell(kinds.MOUNTED, "at /a", mount="a", details={"pid": 7}), hub.tell(kinds.CRASHED, "boom", mount="a")]
    kept = list(EventFile(folder).read())
    assert kept == told and [event.number for event in kept] == [1, 2]
    assert kept[0] == Event(1, 1000.0, "mounted", "info", "a", "at /a", {"pid": 7})
    assert EventHub(EventFile(folder)).tell(kinds.DAEMON_STARTED, "again").number == 3
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert [stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(folder)] == [0o600]


def test_what_is_kept_is_bounded_and_the_newest(tmp_path: Path) -> None:
    hub = EventHub(EventFile(str(tmp_path), max_bytes=4000))
    for number in range(200):
        hub.tell(kinds.REFRESHED, f"change {number}", mount="m")
    assert hub.file is not None
    kept = [event.number for event in hub.file.read()]
    assert kept == list(range(kept[0], 201)) and 10 < len(kept) < 60
    assert sum(entry.stat().st_size for entry in os.scandir(tmp_path)) < 8500
    assert EventFile(str(tmp_path)).last_number() == 200


def test_the_number_goes_on_right_after_the_file_was_changed(tmp_path: Path) -> None:
    hub = EventHub(EventFile(str(tmp_path), max_bytes=1))
    hub.tell(kinds.RELOADED, "one")
    assert not os.path.exists(tmp_path / "events.jsonl")
    assert EventHub(EventFile(str(tmp_path), max_bytes=1)).tell(kinds.RELOADED, "two").number == 2


def test_a_line_that_was_cut_off_spoils_only_itself(tmp_path: Path) -> None:
    hub = EventHub(EventFile(str(tmp_path)))
    hub.tell(kinds.RELOADED, "one")
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"number": 2, "ti')
    hub.tell(kinds.RELOADED, "two")
    assert [event.message for event in EventFile(str(tmp_path)).read()] == ["one", "two"]


def test_no_secret_gets_into_an_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub = EventHub(EventFile(str(tmp_path)))
    heard: list[Event] = []
    hub.observe(heard.append)
    url = "https://x.blob.core.windows.net/c?sv=1&sig=topsecret&se=2"
    hub.tell(kinds.START_FAILED, f"refused {url}", mount="m", details={"hint": f"key {KEY}", "url": url, "list": [KEY]})
    text = (tmp_path / "events.jsonl").read_text() + caplog.text + json.dumps([event.to_json() for event in heard])
    assert "topsecret" not in text and KEY not in text and text.count("[hidden]") >= 4


def test_log_records_carry_the_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    events = [EventHub().tell(kinds.MOUNTED, "at /a", mount="a"), EventHub().tell(kinds.GAVE_UP, "no", mount="a")]
    records = [record for record in caplog.records if record.name == "amlmount.events"]
    assert [record.event for record in records] == events  # type: ignore[attr-defined]
    assert [(record.levelname, record.getMessage()) for record in records] == [
        ("INFO", "a: mounted: at /a"),
        ("ERROR", "a: gave-up: no"),
    ]


def test_a_full_disk_is_said_once_and_hides_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "events").write_text("in the way")
    hub, heard = EventHub(EventFile(str(tmp_path / "events"))), list[Event]()
    hub.observe(heard.append)
    hub.tell(kinds.RELOADED, "one"), hub.tell(kinds.RELOADED, "two")
    assert [event.message for event in heard] == ["one", "two"]
    assert caplog.text.count("cannot keep events") == 1


def test_an_observer_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    hub, heard = EventHub(), list[Event]()
    hub.observe(lambda event: [][0])
    end = hub.observe(heard.append)
    hub.tell(kinds.RELOADED, "one")
    end(), end()
    hub.tell(kinds.RELOADED, "two")
    assert [event.message for event in heard] == ["one"] and "an observer of events failed" in caplog.text


def test_events_of_many_threads_have_numbers_of_their_own(tmp_path: Path) -> None:
    hub, heard = EventHub(EventFile(str(tmp_path))), list[Event]()
    hub.observe(heard.append)
    threads = [threading.Thread(target=lambda: [hub.tell(kinds.RELOADED, "x") for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.number for event in heard] == list(range(1, 401))
    assert [event.number for event in EventFile(str(tmp_path)).read()] == list(range(1, 401))


def test_whom_an_event_concerns() -> None:
    event = Event(1, 100.0, "mounted", "info", "all/logs", "")
    assert event.concerns(None) and event.concerns(frozenset({"all"})) and event.concerns(frozenset({"all/logs"}))
    assert not event.concerns(frozenset({"logs"})) and not event.concerns(None, since_s=100.1)
    assert not Event(1, 100.0, "reloaded", "info", None, "").concerns(frozenset({"all"}))


def test_every_kind_says_what_to_do() -> None:
    assert all(kind.name == name and kind.meaning and kind.action for name, kind in KINDS.items())
    assert all(kind.action != "nothing" for kind in KINDS.values() if kind.severity is not Severity.INFO)


def test_the_document_has_the_table_of_now() -> None:
    text = (Path(__file__).parents[1] / "docs/operations.md").read_text()
    assert text == with_table(text), "regenerate: python -m amlmount.events.reference docs/operations.md"
    with pytest.raises(ValueError, match="no place"):
        with_table("nothing")
