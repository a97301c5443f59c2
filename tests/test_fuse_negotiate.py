"""What comes of an INIT: only what the kernel offers, as a value that can be handed on."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlmount.config.profiles import PROFILES
from amlmount.errors import MountFailedError, UsageError
from amlmount.fuse.negotiate import CAP_VARIABLE, Feature, Negotiated, Offer, negotiate, offer_for
from amlmount.fuse.protocol import INIT_OUT, InitIn

EVERYTHING = (1 << 64) - 1


def kernel(minor: int = 45, flags: int = EVERYTHING, readahead: int = 131072) -> InitIn:
    return InitIn(7, minor, readahead, flags)


def test_profiles_ask_for_what_they_need() -> None:
    epochs = negotiate(kernel(), offer_for(PROFILES["epochs"])).features
    assert Feature.NO_OPEN_SUPPORT in epochs and Feature.AUTO_INVAL_DATA not in epochs
    standard = negotiate(kernel(), offer_for(PROFILES["standard"])).features
    assert Feature.NO_OPEN_SUPPORT not in standard and Feature.AUTO_INVAL_DATA in standard
    for features in (epochs, standard):
        assert Feature.DO_READDIRPLUS in features and Feature.READDIRPLUS_AUTO not in features
        assert Feature.NO_OPENDIR_SUPPORT not in features and Feature.EXPORT_SUPPORT not in features
        assert Feature.HAS_RESEND in features and Feature.WRITEBACK_CACHE not in features


def test_direct_io_needs_its_opens() -> None:
    rules = PROFILES["epochs"].model_copy(update={"direct_io": True})
    assert Feature.NO_OPEN_SUPPORT not in offer_for(rules).features


@given(st.integers(0, EVERYTHING), st.integers(31, 99), st.integers(0, 2**32 - 1))
def test_never_more_than_the_kernel_offers(flags: int, minor: int, readahead: int) -> None:
    for rules in PROFILES.values():
        result = negotiate(kernel(minor, flags, readahead), offer_for(rules, cap=45))
        assert int(result.features) & ~flags == 0
        assert result.minor <= min(minor, 45) and result.max_readahead_bytes <= readahead
        assert bool(result.max_pages) == (Feature.MAX_PAGES in result.features)
        assert Negotiated.from_json(json.loads(json.dumps(result.to_json()))) == result
        assert len(result.pack()) == 64


def test_reply_carries_what_was_negotiated() -> None:
    result = negotiate(kernel(), offer_for(PROFILES["epochs"]))
    major, minor, readahead, flags, _, _, max_write, gran, max_pages, _, flags2, _, _ = INIT_OUT.unpack(result.pack())
    assert (major, minor, readahead, gran, max_pages) == (7, 45, 131072, 1, 256)
    assert flags | flags2 << 32 == int(result.features) and max_write == result.max_write_bytes
    assert result.buffer_bytes >= max_write + 80


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (6, 45)])
def test_too_old_a_kernel_is_told_so(major: int, minor: int) -> None:
    with pytest.raises(MountFailedError, match=rf"^cannot serve a mount: .*FUSE {major}\.{minor}.*7\.31") as caught:
        negotiate(InitIn(major, minor, 0, 0), Offer())
    assert caught.value.hint


def test_a_cap_gives_what_an_old_kernel_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAP_VARIABLE, "34")
    offer = offer_for(PROFILES["epochs"])
    result = negotiate(kernel(), offer)
    assert result.minor == 34 and int(result.features) >> 30 == 0
    assert Feature.NO_OPEN_SUPPORT in result.features and Feature.DO_READDIRPLUS in result.features
    assert offer == offer_for(PROFILES["epochs"], cap=34)


@pytest.mark.parametrize("text", ["7.34", "30", "-1", "new"])
def test_a_cap_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(CAP_VARIABLE, text)
    with pytest.raises(UsageError, match=rf"^cannot use {CAP_VARIABLE}='{text}'"):
        offer_for(PROFILES["epochs"])
