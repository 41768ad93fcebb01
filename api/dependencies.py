"""What the HTTP layer needs of the agent, handed in once as one frozen value."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agent.inference.options import OptionValue
from agent.inference.request import InferenceService, JsonValue, Message
from agent.models.installed import Capability, InstalledModel
from agent.settings import Settings
from agent.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class TensorDetails:
    """One tensor of a GGUF file; ``shape`` in GGUF order."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowDetails:
    """Everything ``/api/show`` tells about one model. Texts are empty when absent."""

    model: InstalledModel
    modelfile: str
    parameters: str
    template: str
    system: str
    license: str
    messages: tuple[Message, ...]
    model_info: Mapping[str, JsonValue]
    projector_info: Mapping[str, JsonValue]
    tensors: tuple[TensorDetails, ...]
    """Empty unless verbose."""
    capabilities: frozenset[Capability]
    modified_at_s: float
    renderer: str
    parser: str
    requires: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """A model to write: its layers, and what each inherits or replaces.

    ``None`` inherits from ``from_``; an empty ``system`` removes the inherited one. ``files`` and
    ``adapters`` map relative file names to ``sha256:`` digests of blobs already in the store.
    """

    model: str
    from_: str | None = None
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    adapters: Mapping[str, str] = field(default_factory=dict[str, str])
    template: str | None = None
    licenses: tuple[str, ...] = ()
    system: str | None = None
    parameters: Mapping[str, OptionValue] = field(default_factory=dict[str, OptionValue])
    messages: tuple[Message, ...] = ()
    quantize: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    info: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateProgress:
    """One step of a create; sizes in bytes, 0 where a step has none."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


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
