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
"""What the API may take beyond the grace period before the node cancels it."""

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
    """Open while the node lives; leaving it stops every runner process."""
    serve_api: ServeApi
    lifecycle: Lifecycle = field(default_factory=Lifecycle)

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until ``lifecycle.begin_stop`` and the drain after it; reports the API's URL.

        Runners are stopped last, so that streams can end. Cancellation skips the drain.
        """
        settings, lifecycle = self.settings, self.lifecycle
        async with self.runners, trio.open_nursery() as nursery:
            url = await nursery.start(self.serve_api, self)
            lifecycle.begin_serving()
            _log.info("node_ready", node=settings.node_name, url=url)
            task_status.started(url)
            await lifecycle.stopping.wait()
            _log.info("node_draining", grace_period_s=settings.grace_period_s)
            nursery.cancel_scope.deadline = (
                trio.current_time() + settings.grace_period_s + STOP_MARGIN_S
            )
        _log.info("node_stopped", node=settings.node_name)
