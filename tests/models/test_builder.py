"""The generated models load in llama.cpp and mean what they say."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models import reference
from tests.models.chat_template import CHATML, render_chat
from tests.models.library import TEXT, ModelLibrary
from tests.models.llama import LlamaShape, write_llama
from tests.models.tokenizer import BytePairTokenizer, pre_split

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Où est-ce ?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"function": {"name": "look_up", "arguments": {"place": "Zürich"}}},
            {"function": {"name": "look_up", "arguments": {}}},
        ],
    },
    {"role": "tool", "content": "here"},
    {
        "role": "assistant",
        "content": "One more.",
        "tool_calls": [{"function": {"name": "look_up", "arguments": {"n": 2}}}],
    },
]


@given(st.text())
def test_the_pre_split_loses_no_character(text: str) -> None:
    assert "".join(pre_split(text)) == text


def test_underscores_survive_the_tokenizer(model_library: ModelLibrary) -> None:
    tokenizer = model_library.tokenizer
    assert tokenizer.decode(tokenizer.encode("snake_case __init__ _")) == "snake_case __init__ _"


@given(text=st.text(max_size=80))
def test_encoding_and_decoding_return_the_text(text: str) -> None:
    tokenizer = SHARED
    assert tokenizer.decode(tokenizer.encode(text)) == text


SHARED = BytePairTokenizer.train(TEXT, 512)


def test_no_token_occurs_twice_in_a_vocabulary() -> None:
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]
    tokenizer = BytePairTokenizer.from_merges(merges, 300)
    assert len(set(tokenizer.tokens)) == len(tokenizer.tokens) == 300


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("tools", [[], [TOOL]])
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_the_chat_template_renders_the_same_text_under_any_whitespace_setting(
    trim: bool, tools: list[dict[str, object]], start: int, stop: int
) -> None:
    environment = jinja2.Environment(trim_blocks=trim, lstrip_blocks=trim)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    messages = CONVERSATION[start:stop]
    rendered = environment.from_string(CHATML).render(
        messages=messages, tools=tools, add_generation_prompt=True
    )
    assert rendered == render_chat(messages, tools, answer_next=True)


def test_the_same_names_hold_the_same_bytes(tmp_path: Path) -> None:
    digests: list[list[str]] = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        made = ModelLibrary(folder)
        paths = [made.llama, made.llama_q8, made.adapter, made.embedding, made.reranker]
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 5


def test_llama_cpp_tokenizes_as_the_builder_does(model_library: ModelLibrary) -> None:
    texts = [
        "The quick brown fox",
        "snake_case __init__ = 10  \n\n x",
        "<|im_start|>user\n你好 😀<|im_end|>\n",
        "don't we'll I've",
        '{"city": "Paris"}<tool_call>\n</tool_call>',
    ]
    answers = reference.greedy(model_library.llama, texts, limit=1)
    assert [list(answer.prompt) for answer in answers] == [
        model_library.tokenizer.encode(text) for text in texts
    ]


def test_quantised_and_adapted_variants_answer_in_their_own_way(
    model_library: ModelLibrary,
) -> None:
    prompts = ["The quick brown", "A cluster of peers", "Tokens are"]
    plain = reference.greedy(model_library.llama, prompts, limit=24)
    again = reference.greedy(model_library.llama, prompts, limit=24)
    small = reference.greedy(model_library.llama_q8, prompts, limit=24)
    adapted = reference.greedy(
        model_library.llama, prompts, limit=24, adapter=model_library.adapter
    )
    assert plain == again
    assert len({answer.tokens for answer in plain}) == len(prompts)
    assert [answer.tokens for answer in adapted] != [answer.tokens for answer in plain]
    assert all(answer.tokens for answer in small)


def test_the_embedding_model_tells_texts_apart(model_library: ModelLibrary) -> None:
    first, second, same = reference.embed(
        model_library.embedding, ["the quick fox", "a lazy dog", "the quick fox"]
    )
    assert len(first) == 64
    assert first == same
    assert first != second
    assert math.isfinite(sum(first))


def test_the_reranker_scores_an_input_with_one_number(model_library: ModelLibrary) -> None:
    scores = reference.embed(model_library.reranker, ["quick fox", "lazy dog"])
    assert [len(score) for score in scores] == [1, 1]
    assert scores[0] != scores[1]


def test_a_shape_counts_its_parameters(tmp_path: Path) -> None:
    shape = LlamaShape(embedding=64, layers=1, heads=2, kv_heads=1, feed_forward=96)
    tokenizer = BytePairTokenizer.train(TEXT, 320)
    path = write_llama(tmp_path / "one.gguf", tokenizer, shape, name="one", storage="f32")
    parameters = 320 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64 + 3 * 64
    assert shape.parameters(len(tokenizer)) == parameters
    assert path.stat().st_size > 4 * parameters


def test_the_models_are_tiny(model_library: ModelLibrary) -> None:
    paths = [model_library.llama, model_library.llama_q8, model_library.embedding]
    assert max(path.stat().st_size for path in paths) < 2_000_000
