"""What is told while somebody waits for a store: how much is left and how fast it goes, and the same not over again."""

import pytest

from amlmount.cli import flush_command
from amlmount.cli.flush_command import Told


class Heard:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_same_is_told_again_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    told, talk = Told(), Heard()
    for _ in range(5):
        told.tell(talk, "w: 9 bytes", 0.0)  # type: ignore[arg-type]
    told.tell(talk, "w: 5 bytes", 0.0)  # type: ignore[arg-type]
    told.tell(talk, "w: 5 bytes", 2_000_000)  # type: ignore[arg-type]
    told.tell(talk, "w: 5 bytes", 3_000_000)  # type: ignore[arg-type]
    assert talk.notes == ["w: 9 bytes", "w: 5 bytes", "w: 5 bytes, 2 MB/s", "w: 5 bytes, 3 MB/s"]
    monkeypatch.setattr(flush_command, "SAME_AGAIN_S", 0.0)
    told.tell(talk, "w: 5 bytes", 0.0)  # type: ignore[arg-type]
    assert talk.notes[-1] == "w: 5 bytes"
