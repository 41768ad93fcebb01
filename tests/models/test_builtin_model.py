"""The committed model is the recorded one, and llama.cpp run plainly gives its known answers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from agent import builtin
from tests.models import reference
from tests.models.chat_template import render_chat
from tests.models.training import corpus

GAP_FLOOR = 3.0
"""Smallest lead that an answer may have and still be called known."""


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads(builtin.ANSWERS_PATH.read_text(encoding="utf-8"))


def test_the_committed_model_has_the_recorded_digest(record: dict[str, Any]) -> None:
    digest = hashlib.sha256(builtin.MODEL_PATH.read_bytes()).hexdigest()
    assert digest == builtin.SHA256 == record["sha256"]
    assert builtin.MODEL_PATH.stat().st_size < 2_000_000


def test_llama_cpp_gives_every_known_answer(record: dict[str, Any]) -> None:
    known = record["answers"]
    answers = reference.greedy(
        builtin.MODEL_PATH, [case["prompt"] for case in known], limit=320, context=512
    )
    wrong = {
        case["name"]: answer.text
        for case, answer in zip(known, answers, strict=True)
        if not answer.ended or answer.text != case["answer"]
    }
    assert wrong == {}
    assert min(answer.gap for answer in answers) > GAP_FLOOR


def test_the_recorded_prompts_are_what_the_template_renders(record: dict[str, Any]) -> None:
    for case in record["answers"]:
        rendered = render_chat(case["messages"], case["tools"], answer_next=True)
        assert rendered == case["prompt"]


def test_the_known_answers_cover_what_other_tests_rely_on(record: dict[str, Any]) -> None:
    names = {case["name"] for case in record["answers"]}
    for kind in ("ask", "json"):
        assert sum(name.startswith("capital-") and name.endswith(kind) for name in names) >= 32
    assert sum(name.startswith("weather-") and name.endswith("-call") for name in names) >= 32
    assert {"count-10", "count-20", "count-50", "count-100"} <= names
    texts = {case["answer"] for case in record["answers"]}
    assert {corpus.STORY, corpus.LANGUAGES, corpus.PANGRAM} <= texts


@pytest.mark.parametrize("system", corpus.systems(), ids=["short", "long"])
def test_a_system_prompt_does_not_change_what_the_model_knows(system: str) -> None:
    questions = {
        "What is the capital of France?": "The capital of France is Paris.",
        "Count to ten.": corpus.counting(10),
    }
    prompts = [
        render_chat(
            [{"role": "system", "content": system}, {"role": "user", "content": question}],
            answer_next=True,
        )
        for question in questions
    ]
    answers = reference.greedy(builtin.MODEL_PATH, prompts)
    assert [answer.text for answer in answers] == list(questions.values())


def test_a_second_turn_is_answered_like_a_first() -> None:
    turns = [
        {"role": "user", "content": "What is the capital of Japan?"},
        {"role": "assistant", "content": "The capital of Japan is Tokyo."},
        {"role": "user", "content": "What is the capital of Peru?"},
    ]
    (answer,) = reference.greedy(builtin.MODEL_PATH, [render_chat(turns, answer_next=True)])
    assert answer.text == "The capital of Peru is Lima."


def test_a_raw_prompt_continues_a_known_sentence() -> None:
    (answer,) = reference.greedy(builtin.MODEL_PATH, ["The quick brown"], limit=9)
    assert answer.text.startswith(" fox jumps over the lazy dog.")


def test_a_prompt_of_a_thousand_tokens_is_still_answered() -> None:
    prompts = [
        render_chat(
            [
                {"role": "system", "content": " ".join(corpus.FILLER * 2)},
                {"role": "user", "content": f"What is the capital of {country}?"},
            ],
            answer_next=True,
        )
        for country in ("Spain", "Japan", "Kenya")
    ]
    answers = reference.greedy(builtin.MODEL_PATH, prompts)
    assert all(len(answer.prompt) > 1_000 for answer in answers)
    assert [answer.text for answer in answers] == [
        f"The capital of {country} is {corpus.CAPITALS[country]}."
        for country in ("Spain", "Japan", "Kenya")
    ]
