"""Starting salvages in a process of their own and saying in the log what came of them; what fails is tried again."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence

from amlmount.engines.offload import in_thread
from amlmount.errors import AmlmountError
from amlmount.recovery import Folder, empty_trash, read_report
from amlmount.run import run

log = logging.getLogger(__name__)
TIMEOUT_S = 24 * 3600.0
PAUSES_S = (30.0, 60.0, 300.0, 900.0)


async def salvage_now(folders: Sequence[Folder]) -> None:
    """Salvage, and again after a pause while something is left that could not be sent."""
    for folder in folders:
        empty_trash(folder)
    if not await salvage_once(folders):
        await salvage_later(folders)


async def salvage_later(folders: Sequence[Folder]) -> None:
    """Salvage after a pause, and again until nothing is left that could not be sent."""
    attempt, done = 0, False
    while not done:
        await asyncio.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
        done = await salvage_once(folders)
        attempt += 1


async def salvage_once(folders: Sequence[Folder]) -> bool:
    """Salvage once; False if something should be tried again."""
    paths = [folder.path for folder in folders if os.path.isdir(folder.path) and not _is_settled(folder)]
    if not paths:
        return True
    argv = [sys.executable, "-P", "-m", "amlmount.recovery", *paths]
    try:
        done = await in_thread(lambda: run(argv, timeout_s=TIMEOUT_S, env=os.environ, cwd="/", check=False))
    except AmlmountError as error:
        log.error("%s", error.message)
        return False
    for line in done.text.splitlines():
        tell(line)
    if done.returncode not in (0, 1):
        log.error("the salvage of %s ended with %d: %s", ", ".join(paths), done.returncode, done.last_words)
    return done.returncode == 0


def _is_settled(folder: Folder) -> bool:
    """Say whether only a person can do more: it was looked through, and what is kept is not for us to decide."""
    report = read_report(folder)
    return report is not None and not report["pending"]


def tell(line: str) -> None:
    """Say in the log what a report says, which is a line of JSON."""
    try:
        data = json.loads(line)
    except ValueError:
        return
    if "error" in data:
        log.info("%s: %s", data["folder"], data["error"]["message"])
        return
    counts: dict[str, int] = {}
    for found in data["files"]:
        counts[found["action"]] = counts.get(found["action"], 0) + 1
        if found["action"] == "kept":
            log.warning("%s: %s: %s; kept in %s", data["mount"], found["name"], found["detail"], data["folder"])
    said = ", ".join(f"{count} {action}" for action, count in sorted(counts.items())) or "nothing was left"
    log.info("%s: looked through the cache of an earlier run: %s", data["mount"], said)
