"""Sizes and durations: what is understood, what is refused, and that writing gives back what was read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlmount.config.fields import format_mode, parse_mode
from amlmount.config.units import (
    DURATION_PATTERN,
    PERCENT_PATTERN,
    SIZE_PATTERN,
    Percent,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    parse_size_or_percent,
)


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("512MiB", 512 << 20),
        ("10GiB", 10 << 30),
        ("1.5GB", 1_500_000_000),
        ("1.5 GiB", 3 << 29),
        ("700B", 700),
        ("2tib", 2 << 40),
        ("0.1KB", 100),
        (0, 0),
        ("0", 0),
    ],
)
def test_sizes(written: object, size_bytes: int) -> None:
    assert parse_size(written) == size_bytes


@pytest.mark.parametrize(
    "written", [512, "512", 1.5, "10G", "10 Gi", "-1MiB", "1e3MB", "", "MiB", True, None, "٣MiB", "8192PiB"]
)
def test_sizes_that_leave_a_doubt_are_refused(written: object) -> None:
    with pytest.raises(ValueError):
        parse_size(written)


def test_a_bare_size_is_answered_with_what_to_write() -> None:
    with pytest.raises(ValueError, match="a number needs its unit, as in 512MiB"):
        parse_size(512)


@pytest.mark.parametrize(
    ("written", "duration_s"),
    [("30s", 30), ("5m", 300), ("2h", 7200), ("7d", 604800), ("1h30m", 5400), ("250ms", 0.25), ("1.5h", 5400), (0, 0)],
)
def test_durations(written: object, duration_s: float) -> None:
    assert parse_duration(written) == duration_s


@pytest.mark.parametrize("written", [30, "30", "5 min", "1:30", "-5s", "5s!", "", "s", True, None, ["5s"], "9999999d"])
def test_durations_that_leave_a_doubt_are_refused(written: object) -> None:
    with pytest.raises(ValueError):
        parse_duration(written)


def test_a_bare_duration_is_answered_with_what_to_write() -> None:
    with pytest.raises(ValueError, match="a number needs its unit, as in 30s"):
        parse_duration(30)


@pytest.mark.parametrize("written", ["101%", "-1%", "%", "x%", "80"])
def test_shares_outside_0_to_100_are_refused(written: str) -> None:
    with pytest.raises(ValueError):
        parse_size_or_percent(written)


def test_a_share_is_taken_of_the_total_and_rounded_down() -> None:
    assert parse_size_or_percent("80%") == Percent(80)
    assert Percent(33.3).of(1000) == 333
    assert Percent(100).of((1 << 63) + 1) == (1 << 63) + 1


@given(st.integers(min_value=0, max_value=1 << 60))
def test_a_size_is_written_so_that_reading_gives_it_back(size_bytes: int) -> None:
    written = format_size(size_bytes)
    assert parse_size(written) == size_bytes
    assert re.search(SIZE_PATTERN, written)


@given(st.integers(min_value=0, max_value=10_000).map(lambda hundredths: Percent(hundredths / 100)))
def test_a_share_is_written_so_that_reading_gives_it_back(share: Percent) -> None:
    written = format_size(share)
    assert parse_size_or_percent(written) == share
    assert re.search(PERCENT_PATTERN, written)


@given(st.integers(min_value=0, max_value=100 * 365 * 86_400_000))
def test_a_duration_is_written_so_that_reading_gives_it_back(duration_ms: int) -> None:
    written = format_duration(duration_ms / 1000)
    assert parse_duration(written) == duration_ms / 1000
    assert re.search(DURATION_PATTERN, written)


@given(st.text() | st.floats() | st.integers() | st.booleans() | st.none())
def test_garbage_is_a_value_error_and_nothing_else(written: object) -> None:
    for parse in (parse_size_or_percent, parse_duration, parse_mode):
        try:
            assert parse(written) is not None
        except ValueError as exc:
            assert str(exc)


@pytest.mark.parametrize("written", ["644", 644, "0644", "0o644"])
def test_a_mode_means_what_chmod_takes_it_for_however_it_is_written(written: object) -> None:
    assert parse_mode(written) == 0o644


@pytest.mark.parametrize("written", ["0888", "rw-r--r--", "4755", -1, True, None, ""])
def test_what_is_no_mode_is_refused(written: object) -> None:
    with pytest.raises(ValueError):
        parse_mode(written)


@given(st.integers(min_value=0, max_value=0o777))
def test_a_mode_is_written_so_that_reading_gives_it_back(mode: int) -> None:
    assert parse_mode(format_mode(mode)) == mode
