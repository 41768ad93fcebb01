"""The runner process against llama.cpp run plainly: whatever is shared, queued, preempted, cut or
continued, a sequence's greedy tokens are those of a lone sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.inference.protocol import LogprobRow, Sampling
from tests.engine.direct_runner import GREEDY, Answer, DirectRunner
from tests.models import reference

PROMPTS = (
    "The quick brown fox",
    "A cluster of peers serves one model to many users.",
    "Tokens are streamed as they are made, and nobody waits",
    "Every request goes to a replica that is loaded and least busy.",
    "snake_case __init__ 0 1 2 3",
    "¡Hola! Grüße, 你好",
)
LONG_PREFIX = "A cluster of peers serves one model to many users. " * 12
LIMIT = 40
NEAR_TIE = 0.02
"""Another batch shape rounds differently. Where the two best logits lie closer than this, another
choice is not an error; everything after it is another text and not compared."""

Expected = dict[str, list[tuple[int, float]]]
"""Per prompt: the reference's token and its lead over the runner-up, at each answer position."""


@pytest.fixture(scope="module")
def expected(tiny_llama: Path, runner: DirectRunner) -> Expected:
    """Greedy answers of a plain, single-sequence llama.cpp loop."""
    prompts = (*PROMPTS, *(LONG_PREFIX + prompt for prompt in PROMPTS))
    answers = reference.greedy(tiny_llama, prompts, limit=LIMIT)
    leads: Expected = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        rows = runner.ask(prompt, predict_limit=LIMIT, logprobs=2).logprobs
        gaps = [row.top[0][2] - row.top[1][2] for row in rows]
        leads[prompt] = list(zip(answer.tokens, gaps, strict=True))
    return leads


def load(model: Path, **changes: Any) -> DirectRunner:
    settings: dict[str, Any] = {
        "cells": 4096,
        "slots": 8,
        "sequence_context": 4096,
        "threads": 1,
        "idle_cells": 512,
        "host_cache_bytes": 64 << 20,
    }
    return DirectRunner(model, **(settings | changes))


@pytest.fixture(scope="module")
def runner(tiny_llama: Path) -> Iterator[DirectRunner]:
    with load(tiny_llama) as one:
        yield one


def check(answers: list[Answer], prompts: list[str], expected: Expected) -> None:
    for answer, prompt in zip(answers, prompts, strict=True):
        assert answer.finish in ("length", "stop"), answer.reason
        agree(answer.tokens, expected[prompt])


def agree(tokens: list[int], leads: list[tuple[int, float]]) -> None:
    """Equal, or different from a near-tie on."""
    for position, (token, (wanted, lead)) in enumerate(zip(tokens, leads, strict=False)):
        if token != wanted:
            assert lead < NEAR_TIE, f"token {position} differs although it led by {lead:.3f}"
            return
    assert len(tokens) == len(leads)


def lead(row: LogprobRow, banned: Sequence[int]) -> tuple[int, float]:
    """The chosen token and its lead over the best other one that was not banned."""
    others = [value for token, _, value in row.top if token not in (*banned, row.chosen[0])]
    return row.chosen[0], row.chosen[2] - max(others)


def test_a_lone_sequence_equals_plain_llama_cpp(runner: DirectRunner, expected: Expected) -> None:
    for prompt in PROMPTS:
        answer = runner.ask(prompt, predict_limit=LIMIT)
        assert answer.tokens == [token for token, _ in expected[prompt]]


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "split"])
def test_batched_sequences_equal_lone_ones(
    tiny_llama: Path, expected: Expected, unified: bool
) -> None:
    with load(tiny_llama, kv_unified=unified, cells=8 * 1024) as one:
        prompts = [*PROMPTS, *PROMPTS]
        ids = [one.begin(prompt, predict_limit=LIMIT) for prompt in prompts]
        check(one.finish(ids), prompts, expected)


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "split"])
def test_a_shared_prefix_is_reused_and_changes_nothing(
    tiny_llama: Path, expected: Expected, unified: bool
) -> None:
    with load(tiny_llama, kv_unified=unified, cells=8 * 1024) as one:
        prompts = [LONG_PREFIX + prompt for prompt in PROMPTS]
        ids = [one.begin(prompt, predict_limit=LIMIT) for prompt in prompts]
        answers = one.finish(ids)
        check(answers, prompts, expected)
        reused = [answer.summary.cached_tokens for answer in answers if answer.summary]
        assert sum(1 for count in reused if count > 100) == len(prompts) - 1


def test_a_later_turn_reuses_the_whole_earlier_one(runner: DirectRunner) -> None:
    prompt = list(runner.tokenize(LONG_PREFIX + "one"))
    first = runner.ask(prompt, predict_limit=LIMIT)
    second = runner.ask([*prompt, *first.tokens, *runner.tokenize(" two")], predict_limit=4)
    assert second.summary is not None
    assert second.summary.cached_tokens >= len(prompt) + len(first.tokens) - 1


def test_a_cache_moved_to_host_memory_comes_back_exact(
    tiny_llama: Path, expected: Expected
) -> None:
    with load(tiny_llama, idle_cells=0) as one:
        prompt = LONG_PREFIX + PROMPTS[0]
        one.ask(prompt, predict_limit=LIMIT)
        assert one.ask(PROMPTS[1], predict_limit=2).finish == "length"
        assert one.statistics is not None
        assert one.statistics.cells_cached == 0
        again = one.ask(prompt, predict_limit=LIMIT)
        check([again], [prompt], expected)
        assert again.summary is not None
        assert again.summary.cached_tokens > 100


def test_preempted_sequences_go_on_as_if_never_interrupted(tiny_llama: Path) -> None:
    # Three answers of ninety tokens cannot stay in 160 cells together: one must lose its cache.
    endless = Sampling(seed=0, temperature=0.0, ignore_eos=True)
    asked: dict[str, Any] = {"sampling": endless, "predict_limit": 90}
    with load(tiny_llama, cells=160, sequence_context=160, idle_cells=0) as one:
        leads: list[list[tuple[int, float]]] = []
        for prompt in PROMPTS[:4]:
            rows = one.ask(prompt, **asked, logprobs=4).logprobs
            leads.append([lead(row, one.facts.end_tokens) for row in rows])
        prompts = [one.tokenize(prompt) for prompt in PROMPTS[:4]]
        answers = one.finish([one.begin(prompt, **asked) for prompt in prompts])
        for answer, wanted in zip(answers, leads, strict=True):
            agree(answer.tokens, wanted)
        one.ask(PROMPTS[0], predict_limit=1)
        assert one.statistics is not None
        assert one.statistics.preemptions > 0


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(seed=11, temperature=0.9, repeat_penalty=1.2, frequency_penalty=0.3)],
    ids=["greedy", "seeded"],
)
@pytest.mark.parametrize("cut", [1, 7, 23])
def test_a_continued_answer_equals_the_uninterrupted_one(
    runner: DirectRunner, sampling: Sampling, cut: int
) -> None:
    whole = runner.ask(PROMPTS[1], sampling=sampling, predict_limit=LIMIT)
    delivered = len(runner.ask(PROMPTS[1], sampling=sampling, predict_limit=cut).text)
    rest = runner.ask(
        PROMPTS[1],
        sampling=sampling,
        predict_limit=LIMIT,
        emitted=tuple(whole.tokens[:cut]),
        emitted_characters=delivered,
    )
    assert whole.tokens[:cut] + rest.tokens == whole.tokens
    assert whole.text[:delivered] + rest.text == whole.text


def test_a_continued_constrained_answer_stays_in_its_grammar(runner: DirectRunner) -> None:
    grammar = 'root ::= "[" [0-9]{5} ", " [a-z]{5} "]"'
    sampling = Sampling(seed=3, temperature=1.0)
    whole = runner.ask(PROMPTS[0], sampling=sampling, grammar=grammar)
    assert whole.finish == "stop"
    rest = runner.ask(
        PROMPTS[0], sampling=sampling, grammar=grammar, emitted=tuple(whole.tokens[:4])
    )
    assert rest.text == whole.text
    wrong = runner.ask(PROMPTS[0], grammar=grammar, emitted=runner.tokenize("nothing like it"))
    assert wrong.finish == "failed"
    assert "grammar" in wrong.reason


def test_seeded_sampling_does_not_depend_on_company(runner: DirectRunner) -> None:
    sampling = Sampling(seed=42, temperature=0.8)
    lone = runner.ask(PROMPTS[2], sampling=sampling, predict_limit=LIMIT)
    ids = [runner.begin(prompt, predict_limit=LIMIT) for prompt in PROMPTS]
    again = runner.begin(PROMPTS[2], sampling=sampling, predict_limit=LIMIT)
    runner.finish(ids)
    assert runner.finish([again])[0].tokens == lone.tokens
    other = runner.ask(PROMPTS[2], sampling=Sampling(seed=43, temperature=0.8), predict_limit=LIMIT)
    assert other.tokens != lone.tokens


def test_cancelling_frees_the_slot_within_one_step(runner: DirectRunner) -> None:
    one = runner.begin(PROMPTS[0], predict_limit=-1, sampling=Sampling(seed=1, ignore_eos=True))
    while len(runner.answers[one].tokens) < 5:
        runner.pump()
    runner.cancel(one)
    answer = runner.finish([one])[0]
    assert answer.finish == "cancelled"
    assert runner.ask(PROMPTS[1], predict_limit=2).finish == "length"


def test_a_lone_prefill_is_aborted_at_once(tiny_llama: Path) -> None:
    with load(tiny_llama, cells=8192, sequence_context=8192, batch=4096, micro_batch=4096) as one:
        prompt = list(range(4, 260)) * 30
        started = one.begin(prompt[:7600], predict_limit=8)
        one.cancel(started)
        answer = one.finish([started])[0]
        assert answer.finish == "cancelled"
        assert answer.tokens == []
        again = one.ask(PROMPTS[0], predict_limit=2)
        assert again.finish == "length"


def test_context_shift_keeps_going_and_no_shift_ends_with_length(runner: DirectRunner) -> None:
    endless = Sampling(seed=5, ignore_eos=True)
    shifted = runner.ask(PROMPTS[0], sampling=endless, predict_limit=150, context_limit=64)
    assert shifted.finish == "length"
    assert len(shifted.tokens) == 150
    prompt = runner.tokenize(PROMPTS[0])
    stopped = runner.ask(prompt, sampling=endless, predict_limit=150, context_limit=64, shift=False)
    assert stopped.finish == "length"
    assert len(prompt) + len(stopped.tokens) == 64


def test_a_shift_beside_a_sharer_leaves_the_sharer_alone(
    runner: DirectRunner, expected: Expected
) -> None:
    prompt = LONG_PREFIX + PROMPTS[0]
    tokens = runner.tokenize(prompt)
    endless = Sampling(seed=5, ignore_eos=True)
    shifting = runner.begin(
        tokens, sampling=endless, predict_limit=120, context_limit=len(tokens) + 16
    )
    sharing = runner.begin(prompt, predict_limit=LIMIT)
    answers = runner.finish([shifting, sharing])
    assert len(answers[0].tokens) == 120
    agree(answers[1].tokens, expected[prompt])


def test_logprobs_come_from_the_raw_logits_best_first(runner: DirectRunner) -> None:
    answer = runner.ask(PROMPTS[0], predict_limit=6, logprobs=4)
    assert len(answer.logprobs) == len(answer.tokens)
    for token, row in zip(answer.tokens, answer.logprobs, strict=True):
        assert row.chosen[0] == token
        values = [alternative[2] for alternative in row.top]
        assert values == sorted(values, reverse=True)
        assert row.top[0][0] == token, "greedy takes the likeliest"
        assert all(value <= 0 for value in values)


def test_a_stop_string_across_tokens_ends_the_answer_before_it(runner: DirectRunner) -> None:
    whole = runner.ask(PROMPTS[3], predict_limit=LIMIT)
    assert len(whole.text) > 12
    stop = whole.text[6:11]
    cut = whole.text.find(stop)
    answer = runner.ask(PROMPTS[3], predict_limit=LIMIT, stop=(stop,))
    assert answer.finish == "stop"
    assert answer.text == whole.text[:cut]


def test_bad_work_is_refused_and_the_runner_lives_on(runner: DirectRunner) -> None:
    assert runner.ask([1] * 5000).finish == "failed"
    assert "vocabulary" in runner.ask([1, 10**6]).reason
    assert "grammar" in runner.ask([1, 2], grammar="root ::= (((").reason
    assert runner.ask(PROMPTS[0], predict_limit=2).finish == "length"


def test_an_adapter_changes_the_answer_as_it_does_in_plain_llama_cpp(
    tiny_llama: Path, tiny_adapter: Path
) -> None:
    from agent.inference.protocol import Adapter

    prompt = PROMPTS[0]
    (with_adapter,) = reference.greedy(tiny_llama, [prompt], limit=LIMIT, adapter=tiny_adapter)
    (plain,) = reference.greedy(tiny_llama, [prompt], limit=LIMIT)
    with load(tiny_llama, adapters=(Adapter(str(tiny_adapter)),)) as one:
        answer = one.ask(prompt, predict_limit=LIMIT)
    assert answer.tokens == list(with_adapter.tokens)
    assert answer.tokens != list(plain.tokens)


def test_embeddings_are_normalised_and_do_not_depend_on_the_batch(tiny_embedding: Path) -> None:
    import numpy as np

    from agent.inference.protocol import CallRejected, Vectors

    with DirectRunner(
        tiny_embedding, embedding=True, cells=2048, slots=4, sequence_context=512, batch=512
    ) as one:
        texts = ["the quick brown fox", "peers", "a cluster of peers", "users", "tokens are made"]
        inputs = [one.tokenize(text) for text in texts]
        together = one.embed(inputs)
        assert isinstance(together, Vectors)
        rows = np.frombuffer(together.data, "<f4").reshape(len(texts), together.dimensions)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
        for row, tokens in zip(rows, inputs, strict=True):
            alone = one.embed([tokens])
            assert isinstance(alone, Vectors)
            assert float(row @ np.frombuffer(alone.data, "<f4")) > 0.99999
        refused = one.embed([[7] * 600])
        assert isinstance(refused, CallRejected)
        assert "limit" in refused.reason
        assert isinstance(one.embed(inputs[:1]), Vectors)


def test_a_rerank_model_scores_with_one_number(tiny_reranker: Path) -> None:
    from agent.inference.protocol import Vectors

    with DirectRunner(
        tiny_reranker, embedding=True, cells=512, slots=2, sequence_context=512, batch=512
    ) as one:
        assert one.facts.pooling == "rank"
        scored = one.embed([one.tokenize("a cluster of peers")])
        assert isinstance(scored, Vectors)
        assert scored.dimensions == 1


def test_a_generating_model_embeds_with_last_token_pooling(tiny_llama: Path) -> None:
    from agent.inference.protocol import Vectors

    with DirectRunner(
        tiny_llama, embedding=True, cells=512, slots=2, sequence_context=512, batch=512
    ) as one:
        assert one.facts.pooling == "last"
        assert isinstance(one.embed([one.tokenize("a cluster")]), Vectors)
