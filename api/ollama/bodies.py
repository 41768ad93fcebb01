"""The JSON bodies of Ollama's routes, with the additions of the cluster's documents. Pure.

Fields whose type Ollama checks itself, with words of its own, are ``object`` here.
"""

from __future__ import annotations

from msgspec import field

from api.json_body import Body


class FunctionBody(Body):
    """The function of a tool call in an earlier turn."""

    name: str = ""
    index: int = 0
    arguments: dict[str, object] = field(default_factory=dict[str, object])


class ToolCallBody(Body):
    """A tool call in an earlier turn."""

    id: str = ""
    type: str = ""
    function: FunctionBody = field(default_factory=FunctionBody)


class MessageBody(Body):
    """One turn of a conversation."""

    role: str = ""
    content: str = ""
    thinking: str = ""
    images: list[str] = field(default_factory=list[str])
    tool_calls: list[ToolCallBody] = field(default_factory=list[ToolCallBody])
    tool_name: str = ""
    tool_call_id: str = ""


class GenerateBody(Body):
    """``POST /api/generate``."""

    model: str = ""
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: list[int] = field(default_factory=list[int])
    stream: bool = True
    raw: bool = False
    format: object = None
    keep_alive: object = None
    images: list[str] = field(default_factory=list[str])
    options: dict[str, object] = field(default_factory=dict[str, object])
    think: object = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    debug_render_only: bool = field(default=False, name="_debug_render_only")


class ChatBody(Body):
    """``POST /api/chat``; the fields from ``prompt`` on belong to its second form."""

    model: str = ""
    messages: list[MessageBody] | None = None
    stream: bool = True
    format: object = None
    keep_alive: object = None
    tools: list[object] = field(default_factory=list[object])
    options: dict[str, object] = field(default_factory=dict[str, object])
    think: object = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    debug_render_only: bool = field(default=False, name="_debug_render_only")
    prompt: str | None = None
    system: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None


class EmbedBody(Body):
    """``POST /api/embed`` and ``POST /api/embeddings``."""

    model: str = ""
    input: object = None
    prompt: object = None
    truncate: bool = True
    dimensions: int = 0
    keep_alive: object = None
    options: dict[str, object] = field(default_factory=dict[str, object])


class ShowBody(Body):
    """``POST /api/show``."""

    model: str = ""
    name: str = ""
    system: str = ""
    template: str = ""
    verbose: bool = False
    options: dict[str, object] = field(default_factory=dict[str, object])


class CreateBody(Body):
    """``POST /api/create``."""

    model: str = ""
    name: str = ""
    stream: bool = True
    from_: str = field(default="", name="from")
    files: dict[str, str] = field(default_factory=dict[str, str])
    adapters: dict[str, str] = field(default_factory=dict[str, str])
    template: str | None = None
    license: object = None
    system: str | None = None
    parameters: dict[str, object] = field(default_factory=dict[str, object])
    messages: list[MessageBody] | None = None
    quantize: str = ""
    quantization: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    info: dict[str, object] = field(default_factory=dict[str, object])
    modelfile: str | None = None


class CopyBody(Body):
    """``POST /api/copy``."""

    source: str = ""
    destination: str = ""


class NameBody(Body):
    """``DELETE /api/delete``."""

    model: str = ""
    name: str = ""


class TransferBody(Body):
    """``POST /api/pull`` and ``POST /api/push``."""

    model: str = ""
    name: str = ""
    insecure: bool = False
    stream: bool = True
    username: str = ""
    password: str = ""
    node: str = ""
    replicas: int = 0
    bandwidth_limit: int = 0
    priority: object = None
    verify_checksum: bool = True
