"""Who uses a mount while its server is killed or replaced: `python users.py write|poll|open MOUNT [FOLDER]`.

Run as a process of its own (standard library only). Each prints `ready`, works until standard input ends, and then
prints one JSON object. `write` makes files in FOLDER of the mount and counts a file only if its close() succeeded;
`poll` looks every millisecond whether the bare directory shows; `open` opens, reads one byte and closes.
"""

import json
import os
import select
import sys
import time
from typing import Any

RECORD_BYTES, RECORDS = 4096, 20
PAUSE_S = 0.002


def content(name: str) -> bytes:
    """Return what a file of this name has to contain."""
    begin = sum(name.encode()) % 256
    return b"".join(bytes([(begin + index) % 256]) * RECORD_BYTES for index in range(RECORDS))


def is_over() -> bool:
    """Say whether standard input has ended."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def write(mount: str, folder: str) -> dict[str, Any]:
    """Write files, record by record, so that most kills come upon an open one."""
    closed: list[str] = []
    errors: list[str] = []
    worst_s, number = 0.0, 0
    while not is_over():
        name, begun = f"f{number:06}", time.monotonic()
        number += 1
        try:
            with open(f"{mount}/{folder}/{name}", "wb", buffering=0) as file:
                for index in range(RECORDS):
                    file.write(content(name)[index * RECORD_BYTES : (index + 1) * RECORD_BYTES])
                    time.sleep(PAUSE_S)
            closed.append(name)
        except OSError as error:
            errors.append(f"{name}: {error}")
        worst_s = max(worst_s, time.monotonic() - begun)
    return {"closed": closed, "errors": errors, "worst_s": round(worst_s, 3)}


def poll(mount: str) -> dict[str, Any]:
    """Look every millisecond which device shows at the mount."""
    bare = os.stat(os.path.dirname(mount)).st_dev
    looks, seen_bare, errors = 0, 0, []
    while not is_over():
        try:
            seen_bare += os.stat(mount).st_dev == bare
            looks += 1
        except OSError as error:
            errors.append(str(error))
        time.sleep(0.001)
    return {"looks": looks, "bare": seen_bare, "errors": errors}


def open_all(paths: list[str]) -> dict[str, Any]:
    """Open one file after the other, as fast as that goes."""
    opens, errors, worst_s = 0, [], 0.0
    while not is_over():
        for path in paths[:200]:
            begun = time.monotonic()
            try:
                fd = os.open(path, os.O_RDONLY)
                os.read(fd, 1)
                os.close(fd)
                opens += 1
            except OSError as error:
                errors.append(str(error))
            worst_s = max(worst_s, time.monotonic() - begun)
    return {"opens": opens, "errors": errors[:10], "worst_s": round(worst_s, 3)}


def main() -> None:
    """Do one of them."""
    what, mount, *rest = sys.argv[1:]
    paths = [os.path.join(top, name) for top, _, names in os.walk(mount) for name in names] if what == "open" else []
    print("ready", flush=True)
    found = write(mount, rest[0]) if what == "write" else poll(mount) if what == "poll" else open_all(paths)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
