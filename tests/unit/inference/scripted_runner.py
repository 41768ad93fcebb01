"""Runners that follow a script: what the service is tested against, without a process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from agent.inference.errors import RunnerDied
from agent.inference.lease import DeltaStream
from agent.inference.options import Options
from agent.inference.protocol import Delta, Generate, ModelFacts
from agent.inference.request import KeepAlive, RunningModel
from agent.models.errors import ModelNotFound
from agent.models.installed import GgufSummary, InstalledModel
from agent.models.names import parse_name

BOS = 1
FACTS = ModelFacts(
    vocabulary=0x110000 + 10,
    train_context=4096,
    embedding_length=3,
    bos=BOS,
    eos=2,
    bos_text="<s>",
    eos_text="</s>",
    add_bos=True,
    add_eos=False,
    end_tokens=(2,),
    cells=4096,
    slots=4,
    sequence_context=4096,
    batch=512,
    pooling="mean",
    can_shift=True,
    can_rewind=True,
    weight_bytes=0,
    resident_bytes=0,
    devices=("CPU",),
    supports_rpc=False,
)
HEADER = GgufSummary(
    architecture="llama",
    context_length=4096,
    embedding_length=3,
    block_count=1,
    head_count=1,
    head_count_kv=(1,),
    key_length=1,
    value_length=1,
    vocabulary=100,
    parameter_count=1,
    file_type="F16",
    pooling="unspecified",
    chat_template=None,
    sliding_window=0,
    expert_count=0,
    layer_bytes=(1,),
    input_bytes=1,
    output_bytes=1,
    other_bytes=0,
    file_bytes=3,
)
PLAIN_JINJA = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
MODEL = InstalledModel(
    name=parse_name("scripted"),
    digest="0" * 64,
    size_bytes=3,
    modified_at_s=0.0,
    weights_path=Path("/nowhere"),
    weights_digest="1" * 64,
    header=replace(HEADER, chat_template=PLAIN_JINJA),
    capabilities=frozenset({"completion"}),
)


def letters(text: str) -> tuple[int, ...]:
    """The scripted tokenizer: one token per character, shifted past the special ones."""
    return tuple(ord(character) + 10 for character in text)


def text_of(tokens: Sequence[int]) -> str:
    return "".join("<s>" if token == BOS else chr(token - 10) for token in tokens)


@dataclass
class Models:
    """A catalog of fixed models."""

    models: dict[str, InstalledModel] = field(default_factory=lambda: {"scripted": MODEL})

    async def resolve(self, name: str) -> InstalledModel:
        await trio.lowlevel.checkpoint()
        if name not in self.models:
            raise ModelNotFound(name)
        return self.models[name]


@dataclass(frozen=True)
class Pause:
    """Let time pass before the next delta."""

    seconds: float


class Die:
    """End the process here."""


Script = Sequence[Delta | Pause | Die | trio.Event | Exception]


class ScriptedStream:
    def __init__(self, script: Script) -> None:
        self._steps = iter(script)

    def __aiter__(self) -> DeltaStream:
        return self

    async def __anext__(self) -> Delta:
        await trio.lowlevel.checkpoint()
        for step in self._steps:
            match step:
                case Delta():
                    return step
                case Pause():
                    await trio.sleep(step.seconds)
                case trio.Event():
                    step.set()
                    await trio.sleep_forever()
                case Exception():
                    raise step
                case _:
                    raise RunnerDied("killed by the script")
        raise StopAsyncIteration


@dataclass
class ScriptedRunner:
    """Plays one script for each sequence and records what it was asked."""

    scripts: list[Script] = field(default_factory=list)
    facts: ModelFacts = FACTS
    vectors: dict[str, tuple[float, ...]] = field(default_factory=dict)
    started: list[Generate] = field(default_factory=list)
    tokenized: list[str] = field(default_factory=list)
    batches: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)
    open_sequences: int = 0
    dies_on_tokenize: bool = False

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> tuple[int, ...]:
        await trio.lowlevel.checkpoint()
        if self.dies_on_tokenize:
            raise RunnerDied("killed by the script")
        self.tokenized.append(text)
        front = (BOS,) if add_special and self.facts.add_bos else ()
        if parse_special and text.startswith("<s>"):
            return (*front, BOS, *letters(text[3:]))
        return (*front, *letters(text))

    async def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        await trio.lowlevel.checkpoint()
        return text_of(tokens if special else [token for token in tokens if token != BOS])

    async def embed(self, inputs: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
        await trio.lowlevel.checkpoint()
        self.batches.append(tuple(tuple(item) for item in inputs))
        return tuple(
            self.vectors.get(text_of(item).removeprefix("<s>"), (0.6, 0.0, 0.8)) for item in inputs
        )

    @asynccontextmanager
    async def generate(self, start: Generate) -> AsyncGenerator[DeltaStream]:
        self.started.append(start)
        self.open_sequences += 1
        try:
            yield ScriptedStream(self.scripts.pop(0))
        finally:
            self.open_sequences -= 1


@dataclass
class ScriptedLease:
    runner: ScriptedRunner
    context_length: int
    load_ns: int


@dataclass
class ScriptedSource:
    """Hands out ``runners`` one after the other, the last one again and again."""

    runners: list[ScriptedRunner]
    context_length: int = 4096
    load_ns: int = 7
    leases: list[tuple[InstalledModel, Options, KeepAlive | None, bool]] = field(
        default_factory=list
    )
    held: int = 0
    most_held: int = 0
    stopped: list[InstalledModel] = field(default_factory=list)
    refusal: Exception | None = None

    @asynccontextmanager
    async def lease(
        self,
        model: InstalledModel,
        options: Options,
        *,
        keep_alive: KeepAlive | None = None,
        embedding: bool = False,
    ) -> AsyncGenerator[ScriptedLease]:
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        self.leases.append((model, options, keep_alive, embedding))
        runner = self.runners.pop(0) if len(self.runners) > 1 else self.runners[0]
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        try:
            # A scope of its own, as a real pool may have: the service must nest leases well.
            with trio.move_on_after(float("inf")):
                yield ScriptedLease(runner, self.context_length, self.load_ns)
        finally:
            self.held -= 1

    async def stop(self, model: InstalledModel) -> None:
        await trio.lowlevel.checkpoint()
        self.stopped.append(model)

    def running(self) -> tuple[RunningModel, ...]:
        return ()
