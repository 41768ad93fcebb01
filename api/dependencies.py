"""What the HTTP layer needs of the agent, handed in once as one frozen value."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from agent.inference.request import InferenceService
from agent.models.create_request import CreateProgress, CreateRequest
from agent.models.installed import InstalledModel
from agent.models.show import ShowDetails
from agent.settings import Settings
from agent.telemetry.metrics import Metrics


class ModelCatalog(Protocol):
    """The model store as the API sees it. Names are as the client wrote them.

    Methods raise the errors of ``agent.models.errors``. All of them are cancel-safe: a
    cancelled call leaves no name half written.
    """

    async def resolve(self, name: str) -> InstalledModel: ...

    async def list(self) -> tuple[InstalledModel, ...]:
        """All installed names, newest first."""
        ...

    async def show(self, name: str, *, verbose: bool = False) -> ShowDetails: ...

    async def copy(self, source: str, destination: str) -> None: ...

    async def delete(self, name: str) -> None: ...

    async def has_blob(self, digest: str) -> bool: ...

    async def receive_blob(
        self, digest: str, chunks: AsyncIterator[bytes], size_bytes: int | None
    ) -> bool:
        """Stream a blob to disk; True when it was new. ``size_bytes`` None is unknown."""
        ...

    def create(self, request: CreateRequest) -> AsyncGenerator[CreateProgress]:
        """Write a model, telling each step; the last is ``success``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """Who this node is and what was built. ``started_at_s`` in unix seconds."""

    node_id: str
    node_name: str
    agent_version: str
    started_at_s: float
    build_date: str = "unknown"
    git_commit: str = "unknown"


AgentState = Literal["starting", "serving", "draining"]


def _serving() -> AgentState:
    return "serving"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiDependencies:
    """Parts the HTTP handlers call. ``now_ns`` is the wall clock in unix nanoseconds."""

    settings: Settings
    catalog: ModelCatalog
    inference: InferenceService
    metrics: Metrics
    node: NodeFacts
    modelfile_request: Callable[[str, str], CreateRequest]
    """Reads a Modelfile sent as text: name and text to a request."""
    state: Callable[[], AgentState] = _serving
    now_ns: Callable[[], int] = time.time_ns
