"""The two log formats, what is cut out of them, and how often the same thing may be said."""

import io
import logging
import os
from collections.abc import Iterator

import pytest

from amlmount.errors import AmlmountError
from amlmount.log import BURST, RepeatFilter, leads_to_journal, setup_logging, wants_colour
from amlmount.redaction import redact

KEY = "Q" * 86 + "=="
SECRETS = {
    f"https://a.blob.core.windows.net/c?sv=2024&sig={'aB%2F' * 8}&se=2030": "aB%2F",
    f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={KEY};EndpointSuffix=x": "QQQ",
    "Authorization: Bearer abc.def-123-abc.def": "abc.def",
    "Authorization: SharedKey acct:AbCd+/12=": "AbCd",
    f"unexpected {KEY} in text": "QQQ",
    '{"client_secret": "hunter2", "n": 1}': "hunter2",
    "sas_token=sv-hunter2": "hunter2",
    "token eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln": "eyJh",
}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Give pytest its handlers back."""
    root, ours = logging.getLogger(), logging.getLogger("amlmount")
    saved = list(root.handlers), root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = saved[0], saved[1], saved[2]
    logging.captureWarnings(False)
    root.manager._clear_cache()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("text", "secret"), SECRETS.items())
def test_secrets_are_hidden(text: str, secret: str) -> None:
    assert secret not in redact(text) and "[hidden]" in redact(text)


@pytest.mark.parametrize("text", ["account_key: {env: MNIST_KEY}", "design=1 assigned", "sha256 " + "a" * 64])
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_what_surrounds_a_secret_stays() -> None:
    text = next(iter(SECRETS))
    assert redact(text) == "https://a.blob.core.windows.net/c?sv=2024&sig=[hidden]&se=2030"


def test_journal_lines_carry_their_priority() -> None:
    out = io.StringIO()
    setup_logging("debug", journal=True, stream=out)
    log = logging.getLogger("amlmount.supervisor")
    log.debug("d")
    log.info("i")
    log.warning("first\nsecond AccountKey=abc")
    log.error("e")
    lines = ["<7>supervisor: d", "<6>supervisor: i", "<4>supervisor: first", "<4>second AccountKey=[hidden]"]
    assert out.getvalue().splitlines() == [*lines, "<3>supervisor: e"]


def test_an_exception_is_logged_with_its_secrets_hidden() -> None:
    out = io.StringIO()
    setup_logging(journal=True, stream=out)
    try:
        raise ValueError("sig=abcdef")
    except ValueError:
        logging.getLogger("amlmount.x").exception("went wrong")
    lines = out.getvalue().splitlines()
    assert lines[-1] == "<3>ValueError: sig=[hidden]" and all(line.startswith("<3>") for line in lines)


def test_the_console_shows_time_and_level_and_hears_libraries_from_warnings_upwards() -> None:
    out = io.StringIO()
    setup_logging("info", journal=False, stream=out)
    logging.getLogger("amlmount.a.b").info("text")
    logging.getLogger("azure.core").info("quiet")
    logging.getLogger("azure.core").warning("loud")
    first, second = out.getvalue().splitlines()
    assert first.split(" ", 1)[1] == "info a.b: text" and second.endswith("warning azure.core: loud")


def test_repetitions_are_counted_not_repeated() -> None:
    now = [0.0]
    repeats = RepeatFilter(clock=lambda: now[0])
    record = [logging.makeLogRecord({"name": "n", "levelno": 30, "msg": "down %s", "args": ("x",)}) for _ in range(9)]
    assert [repeats.filter(one) for one in record[:8]] == [True] * BURST + [False] * (8 - BURST)
    now[0] = 61.0
    assert repeats.filter(record[8]) and record[8].getMessage() == "down x (and 5 times more in 61 s)"
    assert repeats.filter(logging.makeLogRecord({"name": "n", "levelno": 30, "msg": "down y"}))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals_and_no_color_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_colour(Terminal()) and not wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Terminal())


def test_the_journal_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    with open(os.path.join(tmp_path, "x"), "w") as file:
        found = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert leads_to_journal(file)
    assert not leads_to_journal(io.StringIO())


@pytest.mark.parametrize(("text", "secret"), list(SECRETS.items())[:5])
def test_an_error_hides_secrets_whoever_raises_it(text: str, secret: str) -> None:
    error = AmlmountError(f"cannot use it: {text}", hint=text, details={"answer": text, "tries": 3})
    assert secret not in f"{error} {error.to_json()}" and error.details["tries"] == 3


def test_an_error_speaks_of_secrets() -> None:
    text = "cannot use stores.a.credentials.account_key: a secret must not stand in the configuration (sas_token: x)"
    assert str(AmlmountError(text)) == text
