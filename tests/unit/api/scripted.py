"""A scripted node behind the real application: in-memory inference and catalog."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import trio

from agent.inference.options import DEFAULT_OPTIONS, OptionValue, apply_options
from agent.inference.request import (
    Candidate,
    ChatPrompt,
    EmbedRequest,
    EmbedResult,
    Finished,
    GenerateEvent,
    GenerateRequest,
    KeepAlive,
    RunningModel,
    TextDelta,
    TextPrompt,
    TokenLogprob,
)
from agent.models.create_request import CreateProgress, CreateRequest
from agent.models.errors import (
    BlobNotFound,
    CreateRejected,
    DigestMismatch,
    InvalidDigest,
    ModelNotFound,
)
from agent.models.installed import GgufSummary, InstalledModel
from agent.models.names import parse_name
from agent.models.show import ShowDetails, TensorDetails
from agent.settings import Settings
from agent.telemetry.metrics import Metrics
from api.dependencies import ApiDependencies, NodeFacts

NOW_NS = 1_790_000_000_123_456_789

HEADER = GgufSummary(
    architecture="llama",
    context_length=2048,
    embedding_length=64,
    block_count=2,
    head_count=4,
    head_count_kv=(4, 4),
    key_length=16,
    value_length=16,
    vocabulary=512,
    parameter_count=1_000_000,
    file_type="F16",
    pooling="unspecified",
    chat_template=None,
    sliding_window=0,
    expert_count=0,
    layer_bytes=(100, 100),
    input_bytes=10,
    output_bytes=10,
    other_bytes=0,
    file_bytes=220,
)


def installed(name: str, capabilities=("completion",), modified_at_s=1_780_000_000.0):
    return InstalledModel(
        name=parse_name(name),
        digest=sha256(name.encode()).hexdigest(),
        size_bytes=3_800_000_000,
        modified_at_s=modified_at_s,
        weights_path=Path("/models/weights"),
        weights_digest="0" * 64,
        header=HEADER,
        capabilities=frozenset(capabilities),
        family="llama",
        families=("llama",),
        parameter_size="1M",
        quantization="F16",
    )


async def collect_chunks(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


class ScriptedCatalog:
    def __init__(self) -> None:
        self.models = {
            model.name.key: model
            for model in (
                installed("chat", ("completion",), 1_780_000_000.0),
                installed("gifted", ("completion", "tools", "thinking", "vision"), 1_780_000_005.0),
                installed("embedder", ("embedding",), 1_780_000_001.5),
            )
        }
        self.blobs: dict[str, bytes] = {}
        self.created: list[CreateRequest] = []
        self.create_error: Exception | None = None
        self.receive: Callable[[AsyncIterator[bytes]], Awaitable[bytes]] = collect_chunks

    async def resolve(self, name: str) -> InstalledModel:
        model = self.models.get(parse_name(name).key)
        if model is None:
            raise ModelNotFound(name)
        return model

    async def list(self):
        return tuple(self.models.values())

    async def show(self, name: str, *, verbose: bool = False) -> ShowDetails:
        model = await self.resolve(name)
        return ShowDetails(
            model=model,
            modelfile="FROM /models/weights\n",
            parameters='temperature                    0.5\nstop                           "x"',
            template="{{ .Prompt }}",
            system="Be brief.",
            license="Apache-2.0",
            model_info={"general.architecture": "llama", "llama.context_length": 2048},
            tensors=(TensorDetails("output.weight", "F16", (64, 512)),) if verbose else (),
            capabilities=model.capabilities,
            modified_at_s=model.modified_at_s,
            messages=(),
            projector_info={},
            renderer="",
            parser="",
            requires="",
        )

    async def copy(self, source: str, destination: str) -> None:
        model = await self.resolve(source)
        name = parse_name(destination)
        self.models[name.key] = replace(model, name=name)

    async def delete(self, name: str) -> None:
        model = await self.resolve(name)
        del self.models[model.name.key]

    async def has_blob(self, digest: str) -> bool:
        _check_digest(digest)
        return digest in self.blobs

    async def receive_blob(self, digest, chunks, size_bytes):
        _check_digest(digest)
        if digest in self.blobs:
            return False
        data = await self.receive(chunks)
        actual = f"sha256:{sha256(data).hexdigest()}"
        if actual != digest:
            raise DigestMismatch(digest, actual)
        self.blobs[digest] = data
        return True

    async def create(self, request: CreateRequest):
        if self.create_error is not None:
            raise self.create_error
        for digest in request.files.values():
            _check_digest(digest)
            if digest not in self.blobs:
                raise BlobNotFound(digest)
        if request.from_:
            source = await self.resolve(request.from_)
            name = parse_name(request.model)
            self.models[name.key] = replace(source, name=name)
        self.created.append(request)
        yield CreateProgress(status="parsing GGUF")
        yield CreateProgress(status="creating new layer", digest="sha256:ab", total=4, completed=4)
        yield CreateProgress(status="success")


def request_from_modelfile(name: str, text: str) -> CreateRequest:
    if not text.startswith("FROM "):
        raise CreateRejected("no FROM line")
    return CreateRequest(model=name, from_=text.removeprefix("FROM ").strip())


def _check_digest(digest: str) -> None:
    algorithm, _, digits = digest.partition(":")
    if algorithm != "sha256" or len(digits) != 64:
        raise InvalidDigest(digest)


DONE = Finished(
    reason="stop",
    prompt_tokens=7,
    completion_tokens=2,
    total_ns=50,
    load_ns=10,
    prompt_ns=20,
    eval_ns=15,
    context=(1, 2, 3),
)


@dataclass
class Stream:
    """Yields what the script yields; a pair of a delta and Finished comes as one."""

    events: AsyncIterator[GenerateEvent | tuple[TextDelta, Finished]]
    last: Finished | None = None

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.last is not None:
            return self.end()
        event = await self.events.__anext__()
        if isinstance(event, tuple):
            event, self.last = event
        return event

    def end(self):
        last, self.last = self.last, None
        return last


@dataclass
class ScriptedInference:
    """Answers each generate with ``script(request)``, an async iterator of events."""

    catalog: ScriptedCatalog
    requests: list[GenerateRequest] = field(default_factory=list)
    embeds: list[EmbedRequest] = field(default_factory=list)
    loads: list[tuple[str, Mapping[str, OptionValue], KeepAlive | None]] = field(
        default_factory=list
    )
    unloads: list[str] = field(default_factory=list)
    error: Exception | None = None
    runners: tuple[RunningModel, ...] = ()
    ended: trio.Event = field(default_factory=trio.Event)
    script: Callable[[GenerateRequest], AsyncGenerator[GenerateEvent]] | None = None

    @asynccontextmanager
    async def generate(self, request):
        model = await self.catalog.resolve(request.model)
        if self.error is not None:
            raise self.error
        apply_options(DEFAULT_OPTIONS, request.options)
        assert model is not None
        self.requests.append(request)
        events = self.script(request) if self.script else _echo(request)
        try:
            yield Stream(events)
        finally:
            with trio.CancelScope(shield=True):
                await events.aclose()
            self.ended.set()

    async def embed(self, request):
        await self.catalog.resolve(request.model)
        if self.error is not None:
            raise self.error
        apply_options(DEFAULT_OPTIONS, request.options)
        self.embeds.append(request)
        width = request.dimensions or 4
        return EmbedResult(
            vectors=tuple(((1.0,) + (0.0,) * (width - 1)) for _ in request.inputs),
            prompt_tokens=3 * len(request.inputs),
            total_ns=9,
            load_ns=0,
        )

    async def load(self, model, options, keep_alive):
        await self.catalog.resolve(model)
        if self.error is not None:
            raise self.error
        apply_options(DEFAULT_OPTIONS, options)
        self.loads.append((model, options, keep_alive))
        return 5

    async def unload(self, model):
        self.unloads.append(model)

    async def render(self, request):
        return f"<{_text(request)}>"

    def running(self):
        return self.runners


def _text(request: GenerateRequest) -> str:
    match request.prompt:
        case TextPrompt(text=text):
            return text
        case ChatPrompt(messages=messages):
            return messages[-1].content


async def _echo(request: GenerateRequest):
    for word in ("Hel", "lo <&> ü"):
        logprobs = ()
        if request.logprobs:
            chosen = Candidate(5, word.encode(), -0.25)
            top = tuple(Candidate(n, b"\xff", -1.0 - n) for n in range(request.top_logprobs))
            logprobs = (TokenLogprob(chosen, top),)
        yield TextDelta(word, (5,), logprobs)
    yield DONE


def settings(**changes) -> Settings:
    base = Settings(home=Path("/home"), models=Path("/models"), node_name="node-a", port=0)
    return replace(base, **changes)


@dataclass
class Node:
    """A running application and the parts behind it."""

    url: str
    port: int
    catalog: ScriptedCatalog
    inference: ScriptedInference
    dependencies: ApiDependencies
    shutdown: trio.Event


def dependencies_for(catalog, inference, **changes) -> ApiDependencies:
    return ApiDependencies(
        settings=settings(**changes),
        catalog=catalog,
        inference=inference,
        metrics=Metrics(),
        node=NodeFacts(
            node_id="id-a", node_name="node-a", agent_version="0.1.0", started_at_s=NOW_NS / 1e9
        ),
        modelfile_request=request_from_modelfile,
        now_ns=lambda: NOW_NS,
    )
