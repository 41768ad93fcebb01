"""Embeddings through the service, against scripted runners."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from agent.inference.embedding import batches, shortened, truncated
from agent.inference.errors import EmbeddingTooLong, RunnerRefused
from agent.inference.request import EmbedRequest, RequestId
from tests.unit.inference.scripted_runner import BOS, FACTS, ScriptedRunner, letters
from tests.unit.inference.test_service import service


def request(*inputs: str, **changes: Any) -> EmbedRequest:
    return EmbedRequest(request_id=RequestId("e"), model="scripted", inputs=inputs, **changes)


async def test_every_input_gets_a_vector_and_tokens_are_summed() -> None:
    runner = ScriptedRunner(vectors={"b": (1.0, 0.0, 0.0)})
    inference, pool, metrics = service(runner)
    result = await inference.embed(request("a", "b"))
    assert result.vectors == ((0.6, 0.0, 0.8), (1.0, 0.0, 0.0))
    assert result.prompt_tokens == 4
    assert result.load_ns == 7
    assert pool.leases[0][3] is True
    assert pool.held == 0
    assert metrics.registry.get_sample_value("llamesh_requests_active") == 0


async def test_no_inputs_only_load_the_model() -> None:
    runner = ScriptedRunner()
    inference, pool, _ = service(runner)
    result = await inference.embed(request())
    assert result.vectors == ()
    assert len(pool.leases) == 1
    assert runner.batches == []


async def test_dimensions_cut_and_normalise_again() -> None:
    inference, _, _ = service(ScriptedRunner(vectors={"a": (0.3, 0.4, math.sqrt(0.75))}))
    result = await inference.embed(request("a", dimensions=2))
    assert result.vectors[0] == pytest.approx((0.6, 0.8))


async def test_numbers_that_are_not_finite_are_refused() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        inference, _, _ = service(ScriptedRunner(vectors={"a": (bad, 0.0, 0.0)}))
        with pytest.raises(RunnerRefused, match="embedding contains NaN or Inf values"):
            await inference.embed(request("a"))


async def test_a_long_input_is_cut_or_refused() -> None:
    runner = ScriptedRunner()
    inference, _, _ = service(runner, context_length=4)
    result = await inference.embed(request("abcdef"))
    assert runner.batches == [((BOS, *letters("abc")),)]
    assert result.prompt_tokens == 4
    with pytest.raises(EmbeddingTooLong, match="the input length exceeds the context length"):
        await inference.embed(request("abcdef", truncate=False))


async def test_an_input_never_exceeds_the_batch_of_the_model() -> None:
    runner = ScriptedRunner(facts=msgspec.structs.replace(FACTS, batch=3))
    inference, _, _ = service(runner)
    await inference.embed(request("abcdef", "x"))
    assert runner.batches == [((BOS, *letters("ab")),), ((BOS, *letters("x")),)]


def test_truncation_keeps_the_markers_on_both_sides() -> None:
    assert truncated([1, 10, 11, 12, 2], [10, 11, 12], 4) == (1, 10, 11, 2)
    assert truncated([10, 11, 12, 2], [10, 11, 12], 2) == (10, 2)
    assert truncated([10, 11, 12], [10, 11, 12], 2) == (10, 11)


def test_truncation_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(EmbeddingTooLong, match="input after truncation exceeds"):
        truncated([1, 10, 2], [10], 2)


def test_batches_keep_order_and_stay_within_the_limit() -> None:
    inputs = [(1,) * size for size in (3, 3, 9, 1, 1)]
    assert [list(map(len, group)) for group in batches(inputs, 6)] == [[3, 3], [9], [1, 1]]
    many = [(1,)] * 130
    assert list(map(len, batches(many, 10_000))) == [64, 64, 2]


def test_a_vector_of_nothing_but_zeros_stays_so() -> None:
    assert shortened((0.0, 0.0, 1.0), 2) == (0.0, 0.0)
