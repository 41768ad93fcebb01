"""A model as the rest of the agent sees it: everything already read, nothing to parse. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agent.inference.options import OptionValue
from agent.inference.request import Message
from agent.models.names import ModelName

Capability = Literal[
    "completion", "embedding", "vision", "audio", "tools", "insert", "thinking", "image"
]
GgufScalar = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufSummary:
    """The parts of a GGUF header that planning and rendering need. Sizes in bytes."""

    architecture: str
    context_length: int
    embedding_length: int
    block_count: int
    head_count: int
    head_count_kv: tuple[int, ...]
    """One entry per layer; 0 for layers without attention."""
    key_length: int
    value_length: int
    vocabulary: int
    parameter_count: int
    file_type: str
    """``Q4_K_M``, ``F16``, ... or ``unknown``."""
    pooling: Literal["none", "mean", "cls", "last", "rank", "unspecified"]
    """``unspecified`` when the header has no pooling key."""
    chat_template: str | None
    sliding_window: int
    """0 when every layer attends to everything."""
    expert_count: int
    layer_bytes: tuple[int, ...]
    """Tensor bytes per block."""
    input_bytes: int
    output_bytes: int
    """Output head and final norm; the tied embedding counts here too when there is no head."""
    other_bytes: int
    file_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledModel:
    """One name in the store, resolved to files."""

    name: ModelName
    digest: str
    """64 hex digits: sha256 of the manifest file's bytes."""
    size_bytes: int
    modified_at_s: float
    weights_path: Path
    """Loadable by llama.cpp as it is: a blob, or a translated copy of one."""
    weights_digest: str
    projector_paths: tuple[Path, ...] = ()
    adapter_paths: tuple[Path, ...] = ()
    header: GgufSummary
    capabilities: frozenset[Capability]
    template: str | None = None
    """Ollama TEMPLATE layer (Go syntax), if any."""
    template_source: Literal["auto", "go", "jinja"] = "auto"
    """The per-model switch; ``auto`` prefers the GGUF's Jinja template unless a Modelfile of the
    user's own set TEMPLATE."""
    template_overridden: bool = False
    """The TEMPLATE layer came from a Modelfile or create request on this store."""
    system: str | None = None
    parameters: Mapping[str, OptionValue] = field(default_factory=dict[str, OptionValue])
    messages: tuple[Message, ...] = ()
    licenses: tuple[str, ...] = ()
    family: str = ""
    families: tuple[str, ...] = ()
    parameter_size: str = ""
    """``7.6B``."""
    quantization: str = ""
    parent_model: str = ""
