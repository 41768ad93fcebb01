"""Frames between an agent and its runner processes.

Each frame is a 4-byte little-endian length and one msgpack array, tagged in its first element.
A runner sends at most one ``Step`` per engine step, whatever the number of sequences. Both ends
run the same build, so the protocol has one version and the handshake compares build ids.
"""

from __future__ import annotations

import struct
from typing import Final, Literal

import msgspec

from agent import __version__

BUILD_ID: Final = f"llamesh {__version__}"
LENGTH: Final = struct.Struct("<I")
FRAME_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""Longest frame either side accepts; an image or a large embedding batch stays far below."""


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all frames; encoded as ``[tag, field, ...]``."""


# -- agent to runner -------------------------------------------------------------------------


class Adapter(msgspec.Struct, frozen=True, array_like=True):
    """A LoRA adapter file and its strength."""

    path: str
    scale: float = 1.0


class LoadModel(Frame, frozen=True):
    """First frame of a runner's life: everything that shapes its context."""

    build_id: str
    model_path: str
    adapters: tuple[Adapter, ...] = ()
    embedding: bool = False
    """Encoder-only or pooled model: no generation, ``Embed`` calls alone."""
    cells: int = 4096
    """KV cells over all sequences."""
    slots: int = 1
    sequence_context: int = 4096
    """Most cells one sequence may use."""
    batch: int = 512
    micro_batch: int = 512
    threads: int = 1
    gpu_layers: int = 0
    main_gpu: int = 0
    split_mode: Literal["none", "layer", "row"] = "layer"
    tensor_split: tuple[float, ...] = ()
    use_mmap: bool = True
    flash_attention: Literal["auto", "on", "off"] = "auto"
    kv_type: Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"] = "f16"
    kv_unified: bool = True
    idle_cells: int = 0
    """Cached tokens of finished sequences that may stay in unified KV; the rest moves to the
    host cache."""
    host_cache_bytes: int = 0
    prefill_budget: int = 256
    """Prompt tokens added to a step in which others decode."""


class SetThreads(Frame, frozen=True):
    """CPU threads from the next step on."""

    threads: int


class Tokenize(Frame, frozen=True):
    call_id: int
    text: str
    add_special: bool = True
    parse_special: bool = True


class Detokenize(Frame, frozen=True):
    call_id: int
    tokens: tuple[int, ...]
    special: bool = False


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How tokens are drawn. The draw is keyed by (seed, position), so it can be continued
    elsewhere."""

    seed: int
    """0 .. 2**64 - 1, already drawn."""
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False


class Generate(Frame, frozen=True):
    """Start, or continue, one sequence.

    ``emitted`` are tokens an earlier runner already drew for this answer and
    ``emitted_characters`` how much of their text was delivered: the runner re-feeds them to
    KV, penalties, grammar and text assembly, then goes on as if never interrupted.
    """

    sequence_id: int
    prompt: tuple[int, ...]
    sampling: Sampling
    predict_limit: int
    """Tokens in all, emitted ones included; negative for no limit but the context's."""
    emitted: tuple[int, ...] = ()
    emitted_characters: int = 0
    context_limit: int = 0
    """Cells this sequence may use; 0 for the runner's own bound."""
    keep: int = 4
    shift: bool = True
    stop: tuple[str, ...] = ()
    grammar: str = ""
    """GBNF with rule ``root``; empty for none."""
    logprobs: int = -1
    """-1 none, otherwise the number of alternatives."""


class Cancel(Frame, frozen=True):
    sequence_id: int


class Embed(Frame, frozen=True):
    """One forward pass per batch of inputs; every input must fit (``ModelFacts``)."""

    call_id: int
    inputs: tuple[tuple[int, ...], ...]


class Shutdown(Frame, frozen=True):
    """Finish nothing, free everything, exit 0."""


ToRunner = LoadModel | SetThreads | Tokenize | Detokenize | Generate | Cancel | Embed | Shutdown


# -- runner to agent -------------------------------------------------------------------------

LoadPhase = Literal["starting", "reading weights", "adding adapters", "creating context", "warming"]


class LoadProgress(Frame, frozen=True):
    phase: LoadPhase
    fraction: float


class ModelFacts(msgspec.Struct, frozen=True, array_like=True):
    """What only the loaded model knows. Sizes in bytes."""

    vocabulary: int
    train_context: int
    embedding_length: int
    bos: int
    """-1 when the vocabulary has none; likewise below."""
    eos: int
    bos_text: str
    eos_text: str
    add_bos: bool
    add_eos: bool
    end_tokens: tuple[int, ...]
    cells: int
    slots: int
    sequence_context: int
    batch: int
    """Longest input of an encoder model."""
    pooling: Literal["none", "mean", "cls", "last", "rank", "unspecified"]
    can_shift: bool
    can_rewind: bool
    """False for recurrent models, whose cache cannot be cut."""
    weight_bytes: int
    resident_bytes: int
    """Memory of the process after loading."""
    devices: tuple[str, ...]
    supports_rpc: bool


class Loaded(Frame, frozen=True):
    facts: ModelFacts


class LoadRejected(Frame, frozen=True):
    """The model could not be loaded; the runner exits after this frame."""

    phase: LoadPhase
    reason: str


class Tokens(Frame, frozen=True):
    call_id: int
    tokens: tuple[int, ...]


class Text(Frame, frozen=True):
    call_id: int
    text: str


class Vectors(Frame, frozen=True):
    """Row-major little-endian float32, one row per input, L2-normalised unless rank pooling."""

    call_id: int
    dimensions: int
    data: bytes


class CallRejected(Frame, frozen=True):
    call_id: int
    reason: str


class LogprobRow(msgspec.Struct, frozen=True, array_like=True):
    """``(token, bytes, logprob)`` of the sampled token and of each alternative."""

    chosen: tuple[int, bytes, float]
    top: tuple[tuple[int, bytes, float], ...]


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """Measured once a sequence ends."""

    cached_tokens: int
    prompt_tokens: int
    completion_tokens: int
    wait_ns: int
    prompt_ns: int
    eval_ns: int


FinishReason = Literal["stop", "length", "cancelled", "failed"]


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What one step added to one sequence. ``index`` is the answer position of ``tokens[0]``,
    so a reader can prove that nothing is missing or repeated."""

    sequence_id: int
    index: int
    tokens: tuple[int, ...]
    text: str
    finish: FinishReason | None = None
    summary: Summary | None = None
    logprobs: tuple[LogprobRow, ...] = ()
    reason: str = ""


class Step(Frame, frozen=True):
    deltas: tuple[Delta, ...]


class Statistics(Frame, frozen=True):
    """Sent about twice a second while anything changes. Counters grow for the runner's life."""

    slots_busy: int
    waiting: int
    cells_used: int
    cells_cached: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    preemptions: int
    cancelled: int
    decode_ns: int
    sample_ns: int
    tokens_per_s: float
    resident_bytes: int


FromRunner = (
    LoadProgress
    | Loaded
    | LoadRejected
    | Tokens
    | Text
    | Vectors
    | CallRejected
    | Step
    | Statistics
)

_encoder = msgspec.msgpack.Encoder()


def encode_frame(frame: Frame) -> bytes:
    """One length-prefixed frame. Raises ValueError above FRAME_LIMIT_BYTES."""
    body = _encoder.encode(frame)
    if len(body) > FRAME_LIMIT_BYTES:
        raise ValueError(f"frame of {len(body)} bytes is over the limit of {FRAME_LIMIT_BYTES}")
    return LENGTH.pack(len(body)) + body


to_runner_decoder: Final = msgspec.msgpack.Decoder(ToRunner)
from_runner_decoder: Final = msgspec.msgpack.Decoder(FromRunner)
