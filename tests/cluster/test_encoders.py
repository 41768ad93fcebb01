"""Embedding and reranking models over HTTP, and embeddings of a model that generates."""

from __future__ import annotations

import math

import pytest

from tests.cluster.asking import CHAT, Asker, Json, asking, known, known_body
from tests.models.live_node import LiveNode

EMBEDDING = "tiny-embedding"
RERANKER = "tiny-reranker"
SENTENCE = "every request goes to a replica that is loaded and least busy "


async def embed(asker: Asker, model: str, texts: list[str] | str, **more: object) -> Json:
    return await asker.ask("/api/embed", {"model": model, "input": texts, **more})


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


async def test_a_batch_of_many_passes_keeps_order_and_values(node: LiveNode) -> None:
    texts = [SENTENCE * (1 + number % 7) + str(number) for number in range(150)]
    async with asking(node) as asker:
        whole = await embed(asker, EMBEDDING, texts)
        assert len(whole["embeddings"]) == len(texts)
        for vector in whole["embeddings"]:
            assert math.hypot(*vector) == pytest.approx(1, abs=1e-4)
        for number in (0, 63, 64, 149):
            alone = (await embed(asker, EMBEDDING, texts[number]))["embeddings"][0]
            assert cosine(alone, whole["embeddings"][number]) > 0.9999
        counts = [(await embed(asker, EMBEDDING, text))["prompt_eval_count"] for text in texts[:7]]
        part = await embed(asker, EMBEDDING, texts[:7])
        assert part["prompt_eval_count"] == sum(counts)


async def test_long_inputs_are_cut_or_refused(node: LiveNode) -> None:
    long = SENTENCE * 200
    async with asking(node) as asker:
        cut = await embed(asker, EMBEDDING, long)
        assert cut["prompt_eval_count"] == 512
        assert math.hypot(*cut["embeddings"][0]) == pytest.approx(1, abs=1e-4)
        again = await embed(asker, EMBEDDING, [SENTENCE * 300, long])
        assert cosine(cut["embeddings"][0], again["embeddings"][0]) > 0.9999
        body = {"model": EMBEDDING, "input": ["short", long], "truncate": False}
        refused = await asker.post("/api/embed", body)
        assert refused.status_code == 400
        assert refused.json()["error"] == "the input length exceeds the context length"
        small = await embed(asker, EMBEDDING, long, options={"num_ctx": 16})
        assert small["prompt_eval_count"] == 16
        for wrong in (5, [1, 2], {"a": 1}, ["a", None]):
            answer = await asker.post("/api/embed", {"model": EMBEDDING, "input": wrong})
            assert (answer.status_code, answer.json()["error"]) == (400, "invalid input type")


async def test_a_reranker_scores_its_inputs(node: LiveNode) -> None:
    async with asking(node) as asker:
        scores = await embed(asker, RERANKER, [SENTENCE, "yes", SENTENCE])
        values = scores["embeddings"]
        assert [len(value) for value in values] == [1, 1, 1]
        assert values[0][0] == pytest.approx(values[2][0], abs=1e-4)
        assert values[0][0] != pytest.approx(values[1][0], abs=1e-4)


async def test_a_model_that_generates_embeds_too_and_goes_on_generating(node: LiveNode) -> None:
    async with asking(node) as asker:
        assert await asker.text("/api/chat", known_body("count-10")) == known("count-10")[1]
        answer = await embed(asker, CHAT, ["What is the capital of France?", "Count to ten."])
        first, second = answer["embeddings"]
        assert len(first) == 128
        assert math.hypot(*first) == pytest.approx(1, abs=1e-4)
        assert cosine(first, second) < 0.9999
        assert await asker.text("/api/chat", known_body("count-10")) == known("count-10")[1]


async def test_encoders_do_not_generate_and_say_so(node: LiveNode) -> None:
    async with asking(node) as asker:
        for model in (EMBEDDING, RERANKER):
            answer = await asker.post("/api/generate", {"model": model, "prompt": "Hi"})
            assert answer.status_code == 400
            assert answer.json()["error"] == f'"{model}" does not support generate'
            loaded = await asker.generate(model=model, prompt="")
            assert loaded["done_reason"] == "load"
