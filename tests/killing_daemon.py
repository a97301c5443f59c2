"""`amlmount` as a service starts it, but one that is killed at an await point: the one whose number is in ARMED.

Points are counted from the moment the file is there (`killpoints`); without it this is amlmount and nothing else.
"""

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any

from amlmount.__main__ import main
from killpoints import Killer

ARMED = "/run/kill-at"


class ArmedKiller(Killer):
    """Armed by a file, which goes with the process that it kills."""

    def __init__(self) -> None:
        super().__init__(0)
        self._armed_at = 0

    def tick(self) -> None:
        """Count, and die if this is the point."""
        try:
            with open(ARMED) as file:
                at, armed_at = int(file.read()), os.fstat(file.fileno()).st_mtime_ns
        except (OSError, ValueError):
            return
        self.count = self.count + 1 if armed_at == self._armed_at else 1
        self._armed_at = armed_at
        if self.count == at:
            os.unlink(ARMED)
            os.kill(os.getpid(), signal.SIGKILL)


def run_counted(work: Coroutine[Any, Any, Any], **options: Any) -> Any:
    """Stand in for asyncio.run."""

    async def counted() -> Any:
        asyncio.get_running_loop().set_task_factory(ArmedKiller().make_task)
        return await work

    with asyncio.Runner(**options) as runner:
        return runner.run(counted())


if __name__ == "__main__":
    asyncio.run = run_counted  # type: ignore[assignment]
    main()
