"""Turns a ``LoadModel`` frame into a model, a context and the engine that fits it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agent.inference.engine.embedder import Embedder
from agent.inference.engine.engine import Engine
from agent.inference.engine.statistics import resident_bytes
from agent.inference.llama import library, logs
from agent.inference.llama.context import Context
from agent.inference.llama.model import LoadError, Model
from agent.inference.protocol import BUILD_ID, Frame, LoadModel, LoadPhase, LoadProgress, ModelFacts

PROGRESS_INTERVAL_S: Final = 0.1

Emit = Callable[[Frame], None]


class LoadAborted(Exception):
    """The agent no longer wants the model."""


@dataclass
class LoadRefused(Exception):
    """Loading failed in a phase, for a reason."""

    phase: LoadPhase
    reason: str


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything a runner needs to serve."""

    model: Model
    context: Context
    engine: Engine | Embedder
    facts: ModelFacts


class _Progress:
    """Sends where a load is, not more often than is useful."""

    def __init__(self, emit: Emit, aborted: Callable[[], bool]) -> None:
        self._emit = emit
        self._aborted = aborted
        self._sent_s = 0.0
        self.phase: LoadPhase = "starting"

    def enter(self, phase: LoadPhase) -> None:
        if self._aborted():
            raise LoadAborted
        self.phase = phase
        self._emit(LoadProgress(phase, 0.0))

    def reading(self, fraction: float) -> bool:
        now_s = time.monotonic()
        if now_s - self._sent_s >= PROGRESS_INTERVAL_S or fraction >= 1.0:
            self._sent_s = now_s
            self._emit(LoadProgress(self.phase, fraction))
        return not self._aborted()


def load(order: LoadModel, emit: Emit, aborted: Callable[[], bool]) -> LoadedModel:
    """Load and warm up. Raises LoadRefused or LoadAborted."""
    if order.build_id != BUILD_ID:
        raise LoadRefused("starting", f"this runner is build {BUILD_ID}, not {order.build_id}")
    logs.capture()
    library.load_all_backends()
    progress = _Progress(emit, aborted)
    try:
        progress.enter("reading weights")
        model = Model(
            order.model_path,
            gpu_layers=order.gpu_layers,
            main_gpu=order.main_gpu,
            split_mode=order.split_mode,
            tensor_split=order.tensor_split,
            use_mmap=order.use_mmap,
            on_progress=progress.reading,
        )
        progress.enter("creating context")
        context = _context(model, order)
        if order.adapters:
            progress.enter("adding adapters")
            context.set_adapters(model, [(one.path, one.scale) for one in order.adapters])
        progress.enter("warming")
        context.warm(model)
    except LoadError as error:
        if aborted():
            raise LoadAborted from error
        raise LoadRefused(progress.phase, str(error)) from error
    engine: Engine | Embedder
    if order.embedding:
        limit = _input_limit(model, context, order)
        engine = Embedder(model, context, emit, input_limit=limit)
    else:
        engine = Engine(
            model,
            context,
            emit,
            kv_unified=order.kv_unified,
            prefill_budget=order.prefill_budget,
            idle_cells=order.idle_cells,
            host_cache_bytes=order.host_cache_bytes,
        )
    return LoadedModel(model, context, engine, _facts(model, context, order))


def _context(model: Model, order: LoadModel) -> Context:
    if not order.embedding:
        if not model.has_decoder:
            raise LoadError("an encoder-only model cannot generate")
        return _new_context(model, order, order.cells, order.slots, order.batch, None)
    # An encoder computes each batch at once: the micro batch must hold the whole batch.
    batch = min(order.batch, order.cells)
    context = _new_context(model, order, order.cells, order.slots, batch, None)
    if library.POOLING_NAMES[context.pooling] != "none":
        return context
    context.close()
    return _new_context(model, order, order.cells, order.slots, batch, library.POOLING_LAST)


def _new_context(
    model: Model, order: LoadModel, cells: int, slots: int, batch: int, pooling: int | None
) -> Context:
    return Context(
        model,
        cells=cells,
        slots=slots,
        batch=max(batch, slots),
        micro_batch=max(batch, slots) if order.embedding else order.micro_batch,
        threads=order.threads,
        flash_attention=order.flash_attention,
        kv_type=order.kv_type,
        kv_unified=True if order.embedding else order.kv_unified,
        embeddings=order.embedding,
        pooling=pooling,
    )


def _input_limit(model: Model, context: Context, order: LoadModel) -> int:
    # llama.cpp rounds contexts up; what was asked for is the limit all the same.
    limit = min(context.batch_capacity, context.sequence_cells, order.sequence_context)
    return min(limit, model.train_context) if model.train_context > 0 else limit


def _facts(model: Model, context: Context, order: LoadModel) -> ModelFacts:
    vocabulary = model.vocabulary
    is_input_limited = order.embedding
    return ModelFacts(
        vocabulary=vocabulary.size,
        train_context=model.train_context,
        embedding_length=model.embedding_length,
        bos=vocabulary.bos,
        eos=vocabulary.eos,
        bos_text=vocabulary.spell(vocabulary.bos, special=True).decode("utf-8", "replace"),
        eos_text=vocabulary.spell(vocabulary.eos, special=True).decode("utf-8", "replace"),
        add_bos=vocabulary.add_bos,
        add_eos=vocabulary.add_eos,
        end_tokens=tuple(sorted(vocabulary.end_tokens)),
        cells=context.cells,
        slots=context.slots,
        sequence_context=min(order.sequence_context, context.sequence_cells),
        batch=_input_limit(model, context, order) if is_input_limited else context.batch_capacity,
        pooling=library.POOLING_NAMES[context.pooling],
        can_shift=context.can_shift,
        can_rewind=model.can_rewind,
        weight_bytes=model.size_bytes,
        resident_bytes=resident_bytes(),
        devices=library.device_names(),
        supports_rpc=library.supports_rpc(),
    )
