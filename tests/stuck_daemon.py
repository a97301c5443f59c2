"""`amlmount` as a service starts it, but with a loop that stands still while STUCK is there; its other threads go on.

A thread of its own writes down that it lives: `BEATS` grows all the time.
"""

import asyncio
import os
import threading
import time
from collections.abc import Coroutine
from typing import Any

from amlmount.__main__ import main

STUCK = "/run/stuck"
BEATS = "/run/beats"
EVERY_S = 0.05


def beat() -> None:
    """Say so, again and again."""
    while True:
        with open(BEATS, "a") as file:
            file.write(f"{os.getpid()} {time.monotonic()} {os.path.exists(STUCK)}\n")
        time.sleep(EVERY_S)


async def stand_still(work: Coroutine[Any, Any, Any]) -> Any:
    """Do the work, and block in the middle of it, for ever."""
    loop = asyncio.get_running_loop()

    def look() -> None:
        if os.path.exists(STUCK):
            threading.Event().wait()
        loop.call_later(EVERY_S, look)

    look()
    return await work


def run(work: Coroutine[Any, Any, Any], **options: Any) -> Any:
    """Stand in for asyncio.run."""
    threading.Thread(target=beat, daemon=True).start()
    with asyncio.Runner(**options) as runner:
        return runner.run(stand_still(work))


if __name__ == "__main__":
    asyncio.run = run  # type: ignore[assignment]
    main()
