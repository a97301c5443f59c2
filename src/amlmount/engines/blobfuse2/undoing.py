"""Steps that run in threads and can be given up: a thread cannot be cancelled, so its end says what is to be undone."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TypeVar

from amlmount.engines.offload import in_thread

UNDO_TIMEOUT_S = 5.0
T = TypeVar("T")


async def made(make: Callable[[], T], take_back: Callable[[T], None], undo: AsyncExitStack) -> T:
    """Run `make` in a thread; what it has made is taken back by `undo`, even if it comes after we have given up."""
    job = in_thread(make)

    def settle(done: "asyncio.Future[T]") -> None:
        if not done.cancelled() and done.exception() is None:
            take_back(done.result())

    async def give_up() -> None:
        await asyncio.wait([job], timeout=UNDO_TIMEOUT_S)
        if job.done():
            await in_thread(lambda: settle(job))
        else:
            job.add_done_callback(settle)

    undo.push_async_callback(give_up)
    return await asyncio.shield(job)


async def settled(call: Callable[[], None]) -> None:
    """Run `call` in a thread; one who gives up meanwhile goes on only after it has ended, so that it can be undone."""
    job = in_thread(call)
    try:
        await asyncio.shield(job)
    except asyncio.CancelledError:
        await asyncio.wait([job], timeout=UNDO_TIMEOUT_S)
        raise
