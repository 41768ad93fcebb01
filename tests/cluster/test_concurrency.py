"""Many clients at once get exactly what each would get alone."""

from __future__ import annotations

import trio

from tests.cluster.asking import (
    CHAT,
    GREEDY,
    Asker,
    Json,
    asking,
    known,
    known_answers,
    known_body,
    text_of,
)
from tests.models.live_node import LiveNode

STREAMS = 16
SINGLE_TURNS = [
    name
    for name, case in known_answers().items()
    if not case["tools"] and [turn["role"] for turn in case["messages"]] == ["user"]
]


def mixed_requests() -> list[tuple[str, Json, str]]:
    """Route, body and known answer: long and short ones, both routes, common beginnings."""
    long = ["other-76", "count-100", "other-16", "count-50"]
    spread = SINGLE_TURNS[:: len(SINGLE_TURNS) // (STREAMS - len(long))]
    requests: list[tuple[str, Json, str]] = []
    for number, name in enumerate((*long, *spread)[:STREAMS]):
        messages, answer = known(name)
        if number % 2:
            prompt = messages[0]["content"]
            body = {"model": CHAT, "prompt": prompt, "options": GREEDY}
            requests.append(("/api/generate", body, answer))
        else:
            requests.append(("/api/chat", known_body(name), answer))
    assert len(requests) == STREAMS
    return requests


async def stream_all(asker: Asker, requests: list[tuple[str, Json]]) -> list[list[Json]]:
    """All at once; returns each one's lines."""
    answers: list[list[Json]] = [[] for _ in requests]

    async def read(number: int, path: str, body: Json) -> None:
        async with asker.stream(path, body) as stream:
            answers[number] = await stream.rest()

    async with trio.open_nursery() as nursery:
        for number, (path, body) in enumerate(requests):
            nursery.start_soon(read, number, path, body)
    return answers


async def test_sixteen_mixed_streams_give_the_known_answers(node: LiveNode) -> None:
    requests = mixed_requests()
    async with asking(node) as asker:
        for _ in range(2):  # once cold, once with every prompt already in the cache
            answers = await stream_all(asker, [(path, body) for path, body, _ in requests])
            assert [text_of(lines) for lines in answers] == [text for _, _, text in requests]
            for lines in answers:
                assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
                assert lines[-1]["done_reason"] == "stop"


async def test_clients_with_one_conversation_behind_them_agree_with_a_lone_one(
    node: LiveNode,
) -> None:
    history: list[Json] = []
    for name in SINGLE_TURNS[:12]:
        messages, answer = known(name)
        history += [*messages, {"role": "assistant", "content": answer}]
    bodies = [
        known_body(name) | {"messages": [*history, *known(name)[0]]}
        for name in SINGLE_TURNS[40 : 40 + STREAMS // 2]
    ]
    async with asking(node) as asker:
        alone = [await asker.chat(**body) for body in bodies]
        together = await stream_all(asker, [("/api/chat", body) for body in bodies])
    assert [text_of(lines) for lines in together] == [text_of([whole]) for whole in alone]
    for whole, lines in zip(alone, together, strict=True):
        assert lines[-1]["prompt_eval_count"] == whole["prompt_eval_count"] > 200
        assert lines[-1]["eval_count"] == whole["eval_count"]


async def test_seeded_answers_do_not_depend_on_the_company(node: LiveNode) -> None:
    bodies = [
        {
            "model": CHAT, "prompt": f"Count to {word}.",
            "options": {"temperature": 0.8, "seed": seed, "num_predict": 60},
        }
        for seed, word in enumerate(("ten", "twenty", "fifty", "one hundred") * 2)
    ]  # fmt: skip
    async with asking(node) as asker:
        alone = [await asker.generate(**body) for body in bodies]
        together = await stream_all(asker, [("/api/generate", body) for body in bodies])
    assert [text_of(lines) for lines in together] == [whole["response"] for whole in alone]
    assert [lines[-1]["context"] for lines in together] == [whole["context"] for whole in alone]


async def test_cached_prompt_tokens_still_count(node: LiveNode) -> None:
    async with asking(node) as asker:
        body = known_body(SINGLE_TURNS[-1])
        first = await asker.chat(**body)
        cached = await asker.figure("llamesh_prompt_tokens_cached_total")
        second = await asker.chat(**body)
        assert await asker.figure("llamesh_prompt_tokens_cached_total") > cached
        assert second["prompt_eval_count"] == first["prompt_eval_count"]
