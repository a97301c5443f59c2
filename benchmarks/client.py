"""What the storage client does alone, with no file system in between: `python client.py WORK ENDPOINT [FILE]`.

Reports as reader.py does. obstore is what the Python engine reads with; `own-names` is the engine's own lister.
Where several settings are tried, the best one counts, and `tried` tells the others.
"""

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
from obstore.store import AzureStore

SMALL_IN_FLIGHT = (64, 128, 256)
RANGES = ((4 << 20, 16), (8 << 20, 16), (16 << 20, 8))
BIG = "big/one.bin"
Report = dict[str, Any]


def opened(endpoint: str) -> AzureStore:
    """Return a client of the stand-in's container `data`, without credentials."""
    return AzureStore(
        "data",
        account_name="devstoreaccount1",
        endpoint=endpoint,
        skip_signature=True,
        client_options={"allow_http": True},
    )


def names_of(store: AzureStore, prefix: str) -> list[str]:
    """List everything below a prefix."""
    return [entry["path"] for page in obstore.list(store, prefix=prefix, chunk_size=5000) for entry in page]


def timed(work: Callable[[], int]) -> Report:
    """Run it once."""
    started, cpu = time.perf_counter(), os.times()
    total_bytes = work()
    ended = os.times()
    return {"seconds": time.perf_counter() - started, "bytes": total_bytes, "cpu_s": sum(ended[:4]) - sum(cpu[:4])}


def best(reports: Sequence[tuple[str, Report]]) -> Report:
    """Return the fastest, with what the others took."""
    tried = {name: round(report["seconds"], 4) for name, report in reports}
    return min((report for _, report in reports), key=lambda report: report["seconds"]) | {"tried": tried}


def epoch(store: AzureStore, _: str) -> Report:
    """List and fetch every small file, many at a time; nothing is written."""

    def fetch_all(pool: ThreadPoolExecutor) -> int:
        return sum(pool.map(lambda name: len(store.get(name).bytes()), names_of(store, "MNIST_FLAT")))

    reports = []
    for in_flight in SMALL_IN_FLIGHT:
        with ThreadPoolExecutor(in_flight) as pool:
            list(pool.map(lambda _: store.head(BIG), range(in_flight)))  # connections and threads are there already
            reports.append((f"{in_flight} in flight", timed(lambda pool=pool: fetch_all(pool))))  # type: ignore[misc]
    return best(reports)


def sequential(store: AzureStore, path: str) -> Report:
    """Fetch the large file in ranges, many at a time, and write each to its place on the disk."""
    reports = [(f"{size >> 20} MiB x {n}", _download(store, path, size, n)) for size, n in RANGES]
    return best(reports)


def _download(store: AzureStore, path: str, range_bytes: int, in_flight: int) -> Report:
    size_bytes = store.head(BIG)["size"]
    target = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)

    def one(start: int) -> int:
        length = min(range_bytes, size_bytes - start)
        return os.pwrite(target, store.get_range(BIG, start=start, length=length), start)

    try:
        with ThreadPoolExecutor(in_flight) as pool:
            return timed(lambda: sum(pool.map(one, range(0, size_bytes, range_bytes))))
    finally:
        os.close(target)
        os.unlink(path)
        os.sync()


def first_bytes(store: AzureStore, _: str) -> Report:
    """Return what one round trip takes: the median of 20 requests for 4 KiB, one after the other."""
    store.head(BIG)
    reports = [timed(lambda: len(store.get_range(BIG, start=0, length=4096))) for _ in range(20)]
    middle = statistics.median(report["seconds"] for report in reports)
    return {"seconds": middle, "bytes": 4096, "cpu_s": statistics.median(report["cpu_s"] for report in reports)}


def random_256k(store: AzureStore, _: str) -> Report:
    """Fetch the pieces that reader.py's random-256k reads, one after the other."""
    size = 256 << 10
    places = range(store.head(BIG)["size"] // size)
    chosen = random.Random(1).sample(places, min(200, len(places)))
    return timed(lambda: sum(len(store.get_range(BIG, start=place * size, length=size)) for place in chosen))


def obstore_names(store: AzureStore, _: str) -> Report:
    """List everything."""
    found: list[str] = []
    store.head(BIG)

    def list_all() -> int:
        found.extend(names_of(store, ""))
        return 0

    return timed(list_all) | {"digest": len(found)}


def own_names(store: AzureStore, _: str) -> Report:
    """List everything with the engine's own client."""
    from amlmount.stores.azure import open_azure

    own = open_azure(definition(store.config["endpoint"]))
    found: list[object] = []

    def all_pages() -> int:
        for page in own.list("MNIST_FLAT/"):
            found.extend(page.objects)
        return 0

    next(iter(own.list("big/")))
    try:
        return timed(all_pages) | {"digest": len(found)}
    finally:
        own.close()


def keep(store: AzureStore, path: str) -> Report:
    """Download the large file to stay."""

    def write() -> int:
        with open(path, "wb") as file:
            return sum(file.write(chunk) for chunk in store.get(BIG).stream(min_chunk_size=8 << 20))

    return timed(write)


def upload(store: AzureStore, folder: str) -> Report:
    """Bring a folder into the container, under its own name."""
    top = os.path.dirname(folder)
    paths = [f"{base}/{name}" for base, _, names in os.walk(folder) for name in names]

    def one(path: str) -> int:
        with open(path, "rb") as file:
            data = file.read()
        store.put(os.path.relpath(path, top), data)
        return len(data)

    with ThreadPoolExecutor(64) as pool:
        return timed(lambda: sum(pool.map(one, paths)))


def definition(endpoint: str) -> dict[str, object]:
    """Return the stand-in's container as amlmount's configuration describes it."""
    return {
        "type": "azure_blob",
        "account_name": "devstoreaccount1",
        "container_name": "data",
        "endpoint": endpoint,
        "credentials": {"anonymous": {}},
    }


def upload_large(store: AzureStore, path: str) -> Report:
    """Upload one file from the disk in blocks, many at a time."""

    def upload_in(chunk_bytes: int, in_flight: int) -> int:
        store.put("uploaded.bin", Path(path), chunk_size=chunk_bytes, max_concurrency=in_flight)
        return os.stat(path).st_size

    Path(path).read_bytes()  # who has just written it has it in memory
    reports = []
    for size, count in RANGES:
        took = timed(lambda size=size, count=count: upload_in(size, count))  # type: ignore[misc]
        reports.append((f"{size >> 20} MiB x {count}", took))
    return best(reports)


WORK: dict[str, Callable[[AzureStore, str], Report]] = {
    "upload-large": upload_large,
    "first-epoch": epoch,
    "sequential": sequential,
    "first-bytes": first_bytes,
    "random-256k": random_256k,
    "obstore-names": obstore_names,
    "own-names": own_names,
    "keep": keep,
    "upload": upload,
}


def main() -> None:
    """Do one piece of work and report."""
    name, endpoint, path = sys.argv[1:4]
    print(json.dumps(WORK[name](opened(endpoint), path)))


if __name__ == "__main__":
    main()
