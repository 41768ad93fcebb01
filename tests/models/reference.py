"""llama.cpp run plainly, as the truth that the engine is compared with.

One sequence, one context, one thread, greedy, in a process of its own: a crash of the library is
an error of one test and two OpenMP pools never meet.

    python -m tests.models.reference < job.json
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

CONTEXT: Final = 2048
TIME_LIMIT_S: Final = 120.0


class Answer(msgspec.Struct, frozen=True):
    """A greedy continuation. ``gap`` is the smallest lead of a chosen token's logit."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    ended: bool
    """True when the model ended it, false when the limit did."""
    gap: float


class Job(msgspec.Struct, frozen=True):
    """What the child process is asked to do."""

    model: str
    prompts: tuple[str, ...] = ()
    """Text with special tokens parsed."""
    inputs: tuple[str, ...] = ()
    """Texts to embed instead."""
    limit: int = 64
    context: int = CONTEXT
    adapter: str | None = None


class Result(msgspec.Struct, frozen=True):
    answers: tuple[Answer, ...] = ()
    vectors: tuple[tuple[float, ...], ...] = ()


class ReferenceFailed(Exception):
    """The child process failed; the message holds what it wrote."""


def greedy(
    model: Path,
    prompts: Sequence[str],
    *,
    limit: int = 64,
    context: int = CONTEXT,
    adapter: Path | None = None,
) -> tuple[Answer, ...]:
    """Greedy answers to ``prompts``, each from an empty cache. Raises ReferenceFailed."""
    job = Job(
        model=str(model),
        prompts=tuple(prompts),
        limit=limit,
        context=context,
        adapter=None if adapter is None else str(adapter),
    )
    return run(job).answers


def embed(model: Path, inputs: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """Pooled, unnormalised vectors (one score with rank pooling). Raises ReferenceFailed."""
    return run(Job(model=str(model), inputs=tuple(inputs), context=512)).vectors


def run(job: Job) -> Result:
    """Run ``job`` in a child process. Raises ReferenceFailed."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.models.reference"],
        input=msgspec.json.encode(job),
        capture_output=True,
        timeout=TIME_LIMIT_S,
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"OMP_WAIT_POLICY": "passive", "GGML_NO_BACKTRACE": "1"},
        check=False,
    )
    if child.returncode != 0:
        raise ReferenceFailed(f"status {child.returncode}: {child.stderr.decode()[-2000:]}")
    return msgspec.json.decode(child.stdout, type=Result)


def _work(job: Job) -> Result:
    from llama_cpp import llama_cpp as library

    @library.llama_log_callback
    def quiet(level: int, text: bytes, data: Any) -> None:
        if level >= 4:  # errors
            sys.stderr.write(text.decode(errors="replace"))

    library.llama_log_set(quiet, ctypes.c_void_p(0))
    library.llama_backend_init()
    model = library.llama_model_load_from_file(
        job.model.encode(), library.llama_model_default_params()
    )
    assert model, "the model was not loaded"
    vocabulary = library.llama_model_get_vocab(model)
    assert vocabulary, "the model has no vocabulary"
    settings = library.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = job.context
    settings.n_threads = settings.n_threads_batch = 1
    settings.embeddings = bool(job.inputs)
    context = library.llama_init_from_model(model, settings)
    assert context, "the context was not created"
    memory = library.llama_get_memory(context)
    if job.adapter is not None:
        loaded = library.llama_adapter_lora_init(model, job.adapter.encode())
        assert loaded, "the adapter was not loaded"
        library.llama_set_adapters_lora(
            context, (library.llama_adapter_lora_p_ctypes * 1)(loaded), 1, (ctypes.c_float * 1)(1)
        )

    def tokenize(text: str) -> list[int]:
        data = text.encode()
        room = (library.llama_token * (len(data) + 8))()
        count = library.llama_tokenize(
            vocabulary, data, len(data), room, len(room), job.inputs != (), True
        )
        assert count >= 0, "the text has more tokens than bytes"
        return list(room[:count])

    def forget() -> None:
        if memory:  # an encoder has none
            library.llama_memory_clear(memory, True)

    def decode(tokens: Sequence[int]) -> None:
        room = (library.llama_token * len(tokens))(*tokens)
        status = library.llama_decode(context, library.llama_batch_get_one(room, len(tokens)))
        assert status == 0, f"llama_decode returned {status}"

    def piece(token: int) -> bytes:
        room = ctypes.create_string_buffer(256)
        count = library.llama_token_to_piece(vocabulary, token, room, len(room), 0, False)
        return room.raw[:count]

    def answer(text: str) -> Answer:
        forget()
        prompt = tokenize(text)
        pending: Sequence[int] = prompt
        drawn: list[int] = []
        gap = float("inf")
        ended = False
        while len(drawn) < job.limit and not ended:
            decode(pending)
            size = library.llama_vocab_n_tokens(vocabulary)
            row = np.ctypeslib.as_array(library.llama_get_logits_ith(context, -1), (size,))
            token = int(row.argmax())
            second, first = np.partition(row, -2)[-2:]
            gap = min(gap, float(first - second))
            ended = library.llama_vocab_is_eog(vocabulary, token)
            if not ended:
                drawn.append(token)
                pending = [token]
        written = b"".join(piece(token) for token in drawn).decode(errors="replace")
        return Answer(tuple(prompt), tuple(drawn), written, ended, gap)

    def vector(text: str) -> tuple[float, ...]:
        forget()
        decode(tokenize(text))
        rank = library.llama_pooling_type(context) == library.LLAMA_POOLING_TYPE_RANK
        size = 1 if rank else library.llama_model_n_embd(model)
        row = library.llama_get_embeddings_seq(context, 0)
        return tuple(float(value) for value in row[:size])

    return Result(
        tuple(answer(text) for text in job.prompts), tuple(vector(text) for text in job.inputs)
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(
        msgspec.json.encode(_work(msgspec.json.decode(sys.stdin.buffer.read(), type=Job)))
    )
