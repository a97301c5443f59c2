"""Bad days of a real protocol below FUSE: the right bytes, or the right errno, in time. Large and small blobs alike."""

import errno
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from amlmount.stores.azure import open_azure
from amlmount.stores.azure.timing import Timing
from amlmount.vfs import open_filesystem
from amlmount.vfs.filesystem import BlobFileSystem
from fakeblob import Asked, FakeBlobService
from remote_content import MIB, policy, read_all
from vfs_trees import find, make_spec, source

TIMING = Timing(connect_s=1, silence_s=0.3, request_s=1.0, call_s=3, first_backoff_s=0.02, max_backoff_s=0.1)
BIG = bytes(range(256)) * (6 * MIB // 256)
SMALL = {f"set/{n:02d}": bytes([n]) * 900 for n in range(20)}
KINDS = ["reset", "garbage", "silence", "stall", "truncate", "wrong_range", "no_etag"]


@pytest.fixture
def fake() -> Iterator[FakeBlobService]:
    service = FakeBlobService()
    with service.lock:
        for name, data in (SMALL | {"big": BIG}).items():
            service.put("data", name, data)
    yield service
    service.close()


@pytest.fixture
def fs(fake: FakeBlobService, tmp_path: Path) -> Iterator[BlobFileSystem]:
    spec = make_spec([source()], policy()).model_copy(update={"cache_dir": str(tmp_path / "cache")})
    files = open_filesystem(spec, stores={"data": open_azure(fake.definition(), timing=TIMING)})
    yield files
    files.close()


def is_get(asked: Asked) -> bool:
    return asked.method == "GET" and not asked.is_list


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_wrong_now_and_then_is_not_noticed(fake: FakeBlobService, fs: BlobFileSystem, kind: str) -> None:
    fake.fail(kind, 3, when=is_get)
    assert read_all(fs, find(fs, "big"), len(BIG)) == BIG
    fake.fail(kind, 3, when=is_get)
    for name, data in SMALL.items():
        assert fs.read(find(fs, name), 0, 1000) == data


@pytest.mark.parametrize("kind", KINDS)
def test_what_stays_wrong_is_eio_in_time(fake: FakeBlobService, fs: BlobFileSystem, kind: str) -> None:
    ids = [find(fs, "big"), find(fs, "set/03")]
    fake.fail(kind, 100000, when=is_get)
    for node_id in ids:
        began = time.monotonic()
        with pytest.raises(OSError) as caught:
            fs.read(node_id, 500, 400)
        assert caught.value.errno == errno.EIO
        assert time.monotonic() - began < TIMING.call_s + TIMING.request_s + 1


def test_a_damaged_small_blob_never_gets_into_the_cache(fake: FakeBlobService, fs: BlobFileSystem) -> None:
    fake.fail("corrupt", 10, when=is_get)
    for _ in range(2):
        for name, data in SMALL.items():
            assert fs.read(find(fs, name), 0, 1000) == data
