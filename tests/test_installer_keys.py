"""Keys of repositories are checked by their fingerprints, and what apt says becomes what to do."""

import random
import shutil
from pathlib import Path

import pytest

from amlmount.errors import AmlmountError, BusyError, NetworkError
from amlmount.installer.apt_errors import explain
from amlmount.installer.files import fetch_key
from amlmount.installer.openpgp import fingerprints
from amlmount.installer.steps import FetchKey
from amlmount.run import Completed
from aptrepo import make_key


@pytest.mark.skipif(shutil.which("gpg") is None, reason="needs gpg as the judge")
def test_fingerprints_are_what_gpg_says(tmp_path: Path) -> None:
    key = make_key(tmp_path / "gpg", "x@test.invalid")
    assert fingerprints(key.public) == [key.fingerprint]
    armoured = key.public.replace(b"BLOCK-----\n", b"BLOCK-----\nVersion: x\n", 1)
    assert fingerprints(armoured) == fingerprints(key.public.replace(b"\n", b"\r\n")) == [key.fingerprint]
    path = tmp_path / "key.asc"
    path.write_bytes(key.public)
    step = FetchKey(path.as_uri(), "/k", key.fingerprint, "w")
    assert fetch_key(step) == key.public
    with pytest.raises(AmlmountError, match="cannot trust the key") as caught:
        fetch_key(FetchKey(path.as_uri(), "/k", "BC528686B50D79E339D3721CEB3E94ADBE1229CF", "w"))
    assert key.fingerprint in caught.value.message


def test_what_is_no_key_has_no_fingerprint(tmp_path: Path) -> None:
    noise = random.Random(4).randbytes(4000)
    for data in (
        b"",
        b"<html>login</html>",
        noise,
        b"\x99\xff\xff",
        b"\xc6\xc0",
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----",
    ):
        assert fingerprints(data) == []
    page = tmp_path / "page"
    page.write_text("<html>")
    with pytest.raises(AmlmountError, match="no OpenPGP public key"):
        fetch_key(FetchKey(page.as_uri(), "/k", None, "w"))
    with pytest.raises(NetworkError, match="cannot fetch the key"):
        fetch_key(FetchKey((tmp_path / "none").as_uri(), "/k", None, "w"))


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 42 (unattended-upgr)",
            BusyError,
            "42",
        ),
        (
            "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)",
            BusyError,
            "process 7, apt",
        ),
        ("dpkg: error: dpkg frontend lock was locked by another process with pid 9", BusyError, "(process 9)"),
        (" cannot copy extracted data: failed to write (No space left on device)", AmlmountError, "disk is full"),
        ("E: You don't have enough free space in /var/cache/apt/archives/.", AmlmountError, "disk is full"),
        (
            "W: GPG error: x: The following signatures couldn't be verified: NO_PUBKEY 1",
            AmlmountError,
            "not signed with",
        ),
        ("E: The repository 'x' is not signed.", AmlmountError, "not signed with"),
        ("W: Failed to fetch http://x  Could not resolve 'x'", NetworkError, "cannot be reached"),
        ("Err:1 x  Temporary failure resolving 'x'", NetworkError, "cannot be reached"),
        ("E: Unable to locate package blobfuse2", AmlmountError, "does not have this package or version"),
        ("E: Version '9' for 'blobfuse2' was not found", AmlmountError, "does not have this package or version"),
        ("E: The repository 'x' does not have a Release file.", AmlmountError, "no packages for this release"),
        ("E: dpkg was interrupted, you must manually run 'dpkg --configure -a'", AmlmountError, "in disorder"),
        ("E: something new", AmlmountError, "apt-get exited with 100"),
    ],
)
def test_what_apt_says_becomes_what_to_do(said: str, kind: type[AmlmountError], words: str) -> None:
    error = explain(Completed(("apt-get", "install", "x"), 100, b"Reading...\n", said.encode()), 3)
    assert type(error) is kind and words in error.message and error.message.startswith("cannot install packages: ")
    assert error.hint
