"""Embedding a batch of texts with a loaded runner."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from agent.inference.errors import EmbeddingTooLong, RunnerRefused
from agent.inference.lease import Runner

BATCH_INPUTS_LIMIT: Final = 64
"""Most inputs handed to a runner at once."""
TOO_LONG: Final = "the input length exceeds the context length"
NOTHING_LEFT: Final = "input after truncation exceeds maximum context length"
NOT_FINITE: Final = "embedding contains NaN or Inf values"


async def embed_texts(
    runner: Runner,
    texts: Sequence[str],
    *,
    context_length: int,
    truncate: bool,
    dimensions: int,
) -> tuple[tuple[tuple[float, ...], ...], int]:
    """One vector per text, and the number of tokens embedded.

    Every text is tokenised and checked before the first one is embedded. Raises
    EmbeddingTooLong, RunnerRefused, RunnerDied. Cancellation stops before the next batch.
    """
    limit = min(context_length, runner.facts.batch)
    inputs = [await _fitting(runner, text, limit, truncate) for text in texts]
    vectors: list[tuple[float, ...]] = []
    for batch in batches(inputs, runner.facts.batch):
        answered = await runner.embed(batch)
        vectors.extend(shortened(vector, dimensions) for vector in answered)
    return tuple(vectors), sum(map(len, inputs))


async def _fitting(runner: Runner, text: str, limit: int, truncate: bool) -> tuple[int, ...]:
    tokens = await runner.tokenize(text)
    if len(tokens) <= limit:
        return tokens
    if not truncate:
        raise EmbeddingTooLong(TOO_LONG)
    plain = await runner.tokenize(text, add_special=False)
    return truncated(tokens, plain, limit)


def truncated(tokens: Sequence[int], plain: Sequence[int], limit: int) -> tuple[int, ...]:
    """The first ``limit`` tokens of an input, keeping what the tokenizer put around it.

    ``tokens`` has the special tokens and ``plain`` is the same text without. Raises
    EmbeddingTooLong when no token of the text would remain.
    """
    before, after = _frame(tokens, plain)
    room = limit - before - after
    if room <= 0:
        raise EmbeddingTooLong(NOTHING_LEFT)
    tail = tokens[len(tokens) - after :] if after else ()
    return (*tokens[: before + room], *tail)


def _frame(tokens: Sequence[int], plain: Sequence[int]) -> tuple[int, int]:
    """How many tokens stand before and after the text's own."""
    extra = max(len(tokens) - len(plain), 0)
    for before in range(extra + 1):
        if tuple(tokens[before : before + len(plain)]) == tuple(plain):
            return before, extra - before
    # The tokenizer reads the text differently without markers: assume one in front.
    return min(1, extra), max(extra - 1, 0)


def batches(
    inputs: Sequence[tuple[int, ...]], tokens_limit: int
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """``inputs`` in order, in groups of at most ``tokens_limit`` tokens; a longer input goes
    alone."""
    group: list[tuple[int, ...]] = []
    size = 0
    for tokens in inputs:
        full = len(group) >= BATCH_INPUTS_LIMIT or size + len(tokens) > tokens_limit
        if group and full:
            yield tuple(group)
            group, size = [], 0
        group.append(tokens)
        size += len(tokens)
    if group:
        yield tuple(group)


def shortened(vector: tuple[float, ...], dimensions: int) -> tuple[float, ...]:
    """``vector`` cut to ``dimensions`` and of length 1 again; 0 keeps it as it is.

    Raises RunnerRefused when it holds anything but finite numbers.
    """
    if not math.isfinite(sum(vector)):
        raise RunnerRefused(NOT_FINITE)
    if not 0 < dimensions < len(vector):
        return vector
    cut = vector[:dimensions]
    norm = math.hypot(*cut)
    return tuple(value / norm for value in cut) if norm else cut
