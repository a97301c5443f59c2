"""Serves a mount from a worker process that goes when this process does: the Python engine, tied to us by pidfd.

The calls of the engine run in the loop thread; the worker needs nothing of this process, so nothing here can hang it.
"""

import logging

from amlmount.config.spec import MountSpec
from amlmount.engines.base import ExitReason, Running
from amlmount.engines.python import CallerTie, PythonEngine
from amlmount.mounts.target import TargetPlan, remove_target
from amlmount.session.loop import loop_thread

STOP_TIMEOUT_S = 5.0
log = logging.getLogger(__name__)


class WorkerHost:
    """See `session.mounting.Host`."""

    def __init__(self) -> None:
        self._thread = loop_thread()
        self._running: Running | None = None
        self._stopping = False

    def start(self, spec: MountSpec, plan: TargetPlan, timeout_s: float) -> None:
        """Start a worker, let it mount, wait until it answers."""
        self._engine = PythonEngine(tie=CallerTie(plan))
        running = self._thread.call(lambda: self._engine.start(spec, timeout_s=timeout_s))
        self._running = running
        self._thread.loop.call_soon_threadsafe(
            running.exited.add_done_callback, lambda done: self._on_exit(done.result(), spec, plan)
        )

    def stop(self) -> None:
        """Ask the worker to end, and see to it that it does."""
        running = self._running
        if running is not None:
            self._stopping = True
            self._thread.call(lambda: self._engine.stop(running, lazy=True, timeout_s=STOP_TIMEOUT_S))

    def _on_exit(self, reason: ExitReason, spec: MountSpec, plan: TargetPlan) -> None:
        """Say so if the worker died; a folder we made must then not stay as a dead mount that hangs about."""
        if self._stopping:
            return
        log.warning("the mount at %s has ended: its worker %s", spec.target, reason.text)
        if self._running is not None and plan.created:
            self._thread.loop.create_task(self._clean_up(self._running, plan))

    async def _clean_up(self, running: Running, plan: TargetPlan) -> None:
        await self._engine.stop(running, lazy=True, timeout_s=STOP_TIMEOUT_S)
        remove_target(plan)
