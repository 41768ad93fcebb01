"""One node: its parts, its state, and how it starts, drains and stops."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import structlog
import trio

from agent.settings import Settings

State = Literal["starting", "serving", "draining"]

STOP_MARGIN_S: Final = 2.0
"""What the API may take after its runners have ended before the node cancels it."""

_log = structlog.get_logger()


class Lifecycle:
    """Whether the node admits requests."""

    def __init__(self) -> None:
        self._state: State = "starting"
        self.stopping = trio.Event()
        """Set once, when the node begins to drain."""

    def state(self) -> State:
        """What ``/readyz`` tells: only ``serving`` is ready."""
        return self._state

    def begin_serving(self) -> None:
        """The node is ready; no effect once it is stopping."""
        if self._state == "starting":
            self._state = "serving"

    def begin_stop(self) -> None:
        """Admit nothing more; the running requests go on."""
        self._state = "draining"
        self.stopping.set()


class ServeApi(Protocol):
    """Answers HTTP and reports its URL. After ``node.lifecycle.stopping`` it admits nothing,
    lets streams finish up to the grace period, and returns."""

    async def __call__(self, node: Node, *, task_status: trio.TaskStatus[str]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The parts of one node, handed in by the composition root."""

    settings: Settings
    runners: AbstractAsyncContextManager[object]
    """Open while the node lives; leaving it stops every runner process, and fails the requests
    that still need one."""
    serve_api: ServeApi
    lifecycle: Lifecycle = field(default_factory=Lifecycle)

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until ``lifecycle.begin_stop`` and the drain after it; reports the API's URL.

        Runners are stopped once no stream needs them, or at the end of the grace period; then
        the API has a moment left to tell that to those who still waited. Cancellation skips the
        drain.
        """
        settings, lifecycle = self.settings, self.lifecycle
        async with trio.open_nursery() as nursery:
            async with self.runners:
                api_ended = trio.Event()
                url = await nursery.start(self._serve_api, api_ended)
                lifecycle.begin_serving()
                _log.info("node_ready", node=settings.node_name, url=url)
                task_status.started(url)
                await lifecycle.stopping.wait()
                _log.info("node_draining", grace_period_s=settings.grace_period_s)
                with trio.move_on_after(settings.grace_period_s):
                    await api_ended.wait()
            nursery.cancel_scope.deadline = trio.current_time() + STOP_MARGIN_S
        _log.info("node_stopped", node=settings.node_name)

    async def _serve_api(self, ended: trio.Event, *, task_status: trio.TaskStatus[str]) -> None:
        try:
            await self.serve_api(self, task_status=task_status)
        finally:
            ended.set()
