"""The one internal request and its events. API adapters translate to and from these. Pure.

Nothing here belongs to any outside protocol; nothing of an outside protocol passes inward.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, NewType, Protocol

from agent.inference.options import OptionValue
from agent.security.principal import ANONYMOUS, Principal

RequestId = NewType("RequestId", str)
JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call the model made in an earlier turn."""

    name: str
    arguments: Mapping[str, JsonValue]
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str = ""
    thinking: str = ""
    images: tuple[bytes, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, rendered through the model's chat template."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """A single prompt, as ``/api/generate`` takes it.

    ``raw`` sends ``text`` as it is. ``template`` replaces the model's template (Go syntax).
    ``context`` holds the tokens of earlier turns and goes in front. A ``suffix`` asks for a
    fill in the middle.
    """

    text: str
    suffix: str = ""
    system: str | None = None
    template: str | None = None
    context: tuple[int, ...] = ()
    raw: bool = False


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """Any JSON object or array."""


@dataclass(frozen=True, slots=True)
class SchemaFormat:
    """JSON that validates against ``schema``."""

    schema: Mapping[str, JsonValue] | bool


OutputFormat = JsonFormat | SchemaFormat


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """How long an idle runner stays loaded; ``None`` seconds means forever."""

    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One inference. ``model`` is the name exactly as the client wrote it."""

    request_id: RequestId
    model: str
    prompt: ChatPrompt | TextPrompt
    options: Mapping[str, OptionValue] = field(default_factory=dict[str, OptionValue])
    format: OutputFormat | None = None
    keep_alive: KeepAlive | None = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    principal: Principal = ANONYMOUS


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """Vectors for a batch of inputs; ``dimensions`` 0 keeps the model's own size."""

    request_id: RequestId
    model: str
    inputs: tuple[str, ...]
    truncate: bool = True
    dimensions: int = 0
    options: Mapping[str, OptionValue] = field(default_factory=dict[str, OptionValue])
    keep_alive: KeepAlive | None = None
    principal: Principal = ANONYMOUS


@dataclass(frozen=True, slots=True)
class Candidate:
    """One token with its natural-log probability; ``text`` holds its bytes, maybe not UTF-8."""

    token: int
    text: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A sampled token and the likeliest alternatives at its place, best first."""

    chosen: Candidate
    top: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text. Never splits a UTF-8 character, never holds part of a stop string."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


DoneReason = Literal["stop", "length", "load", "unload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event of a request, exactly once. Durations in nanoseconds.

    ``prompt_tokens`` counts cached and new tokens alike; ``context`` is the rendered prompt
    plus the answer as tokens.
    """

    reason: DoneReason
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    total_ns: int = 0
    load_ns: int = 0
    prompt_ns: int = 0
    eval_ns: int = 0
    context: tuple[int, ...] = ()


GenerateEvent = TextDelta | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult:
    """L2-normalised vectors in input order; ``prompt_tokens`` is their sum."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    total_ns: int
    load_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningModel:
    """One live runner, as ``/api/ps`` shows it. Sizes in bytes, times in unix seconds."""

    runner_id: str
    name: str
    digest: str
    size_bytes: int
    vram_bytes: int
    context_length: int
    expires_at_s: float | None
    """None means never."""
    device: str
    slots_total: int
    slots_busy: int
    waiting: int
    pid: int
    state: Literal["starting", "loading", "ready", "stopping"]


class EventStream(Protocol):
    """The events of one request, read by one task; ends after Finished."""

    def __aiter__(self) -> EventStream: ...

    async def __anext__(self) -> GenerateEvent: ...

    def end(self) -> Finished | None:
        """The Finished that came together with the event just read, so that both can leave in
        one write; iteration then gives it no more. None if it is still to come."""
        ...


class InferenceService(Protocol):
    """What the API sees of inference: one node's today, the cluster's later.

    Every method raises the errors of ``agent.inference.errors`` and
    ``agent.models.errors``. Leaving the context of ``generate`` in any way stops decoding
    within one step and frees the slot.
    """

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[EventStream]:
        """Open a stream. Entering waits for admission, load and prompt checks, so that errors
        known before the first token are raised there."""
        ...

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Vectors for all inputs. Cancellation stops before the next batch."""
        ...

    async def load(
        self, model: str, options: Mapping[str, OptionValue], keep_alive: KeepAlive | None
    ) -> int:
        """Load without generating; returns the nanoseconds it took."""
        ...

    async def unload(self, model: str) -> None:
        """Stop the model's runners once idle; a model that is not loaded is no error."""
        ...

    async def render(self, request: GenerateRequest) -> str:
        """The prompt text ``generate`` would send, for ``_debug_render_only``."""
        ...

    def running(self) -> tuple[RunningModel, ...]:
        """Live runners, latest expiry first."""
        ...
