"""What a request may ask of an answer, against real models."""

from __future__ import annotations

import pytest

from tests.cluster.asking import (
    CHAT,
    GREEDY,
    asking,
    known,
    known_answers,
    known_body,
    text_of,
)
from tests.models.live_node import LiveNode

COUNT = "Count to one hundred."
COUNT_TEXT = known("count-100")[1]
BRIEF = GREEDY | {"num_predict": 12}


async def test_an_adapter_changes_the_answers_of_its_model_only(node: LiveNode) -> None:
    body = {"prompt": "The quick brown", "raw": True, "options": BRIEF}
    async with asking(node) as asker:
        plain = await asker.generate(model="tiny-llama", **body)
        adapted = await asker.generate(model="tiny-llama:adapted", **body)
        again = await asker.generate(model="tiny-llama", **body)
        assert adapted["response"] != plain["response"] == again["response"]
        assert (await asker.generate(model="tiny-llama:adapted", **body))["response"] == adapted[
            "response"
        ]
        rows = {row["name"]: row["pid"] for row in await asker.runners()}
        assert rows["tiny-llama:latest"] != rows["tiny-llama:adapted"]


async def test_a_quantised_model_answers_and_repeats_itself(node: LiveNode) -> None:
    body = {"model": "tiny-llama:q8_0", "prompt": "Hello", "options": BRIEF}
    async with asking(node) as asker:
        first = await asker.generate(**body)
        assert first["eval_count"] > 0
        assert (await asker.generate(**body))["response"] == first["response"]
        shown = await asker.ask("/api/show", {"model": "tiny-llama:q8_0"})
        assert shown["model_info"]["general.file_type"] == 7


async def test_raw_and_template_overrides_reach_the_model(node: LiveNode) -> None:
    case = known("capital-france-ask")
    question = case[0][0]["content"]
    rendered = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    template = "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n"
    async with asking(node) as asker:
        raw = await asker.generate(model=CHAT, prompt=rendered, raw=True, options=GREEDY)
        assert raw["response"] == case[1]
        assert "context" not in raw
        templated = await asker.generate(
            model=CHAT, prompt=question, template=template, options=GREEDY
        )
        assert templated["response"] == case[1]
        assert templated["prompt_eval_count"] == raw["prompt_eval_count"]
        fixed = await asker.generate(
            model=CHAT, prompt="ignored", template=rendered, options=GREEDY
        )
        assert fixed["response"] == case[1]
        broken = await asker.post(
            "/api/generate", {"model": CHAT, "prompt": "x", "template": "{{ .Prompt"}
        )
        assert broken.status_code == 400
        assert broken.json()["error"] == "template error: line 1: unclosed action"
        both = await asker.post(
            "/api/generate", {"model": CHAT, "prompt": "x", "raw": True, "template": template}
        )
        assert both.json()["error"] == "raw mode does not support template, system, or context"
        suffix = await asker.post("/api/generate", {"model": CHAT, "prompt": "a", "suffix": "b"})
        assert (suffix.status_code, suffix.json()["error"]) == (
            400, "registry.ollama.ai/library/llamesh-tiny:latest does not support insert",
        )  # fmt: skip


async def test_a_returned_context_continues_where_a_chat_would(node: LiveNode) -> None:
    first, answer = known("capital-france-ask")
    second, known_answer = known("capital-italy-ask")
    history = [*first, {"role": "assistant", "content": answer}, *second]
    async with asking(node) as asker:
        whole = await asker.generate(model=CHAT, prompt=first[0]["content"], options=GREEDY)
        assert whole["response"] == answer
        continued = await asker.generate(
            model=CHAT, prompt=second[0]["content"], context=whole["context"], options=GREEDY
        )
        chatted = await asker.chat(model=CHAT, messages=history, options=GREEDY)
        assert continued["response"] == text_of([chatted]) == known_answer
        assert continued["prompt_eval_count"] > whole["prompt_eval_count"]


@pytest.mark.parametrize("limit", [1, 7, 40])
async def test_num_predict_ends_an_answer_exactly(node: LiveNode, limit: int) -> None:
    async with asking(node) as asker:
        body = {"model": CHAT, "prompt": COUNT, "options": GREEDY | {"num_predict": limit}}
        answer = await asker.generate(**body)
        assert answer["eval_count"] == limit
        assert answer["done_reason"] == "length"
        assert COUNT_TEXT.startswith(answer["response"])
        async with asker.stream("/api/generate", body) as stream:
            assert text_of(await stream.rest()) == answer["response"]


@pytest.mark.parametrize("stop", [[", 1"], ["12, 1"], ["99", "13,"], ["never", ", 20, 21, 22"]])
async def test_stop_strings_end_an_answer_before_them_also_when_streamed(
    node: LiveNode, stop: list[str]
) -> None:
    wanted = min((COUNT_TEXT.partition(text)[0] for text in stop), key=len)
    async with asking(node) as asker:
        body = {"model": CHAT, "prompt": COUNT, "options": GREEDY | {"stop": stop}}
        answer = await asker.generate(**body)
        assert (answer["response"], answer["done_reason"]) == (wanted, "stop")
        async with asker.stream("/api/generate", body) as stream:
            lines = await stream.rest()
        assert text_of(lines) == wanted
        assert lines[-1]["done_reason"] == "stop"


async def test_logprobs_of_a_sure_model_spell_its_answer(node: LiveNode) -> None:
    name = "capital-france-tell"
    async with asking(node) as asker:
        body = known_body(name, logprobs=True, top_logprobs=2)
        whole = await asker.chat(**body)
        assert len(whole["logprobs"]) == whole["eval_count"]
        spelled = b"".join(bytes(entry["bytes"]) for entry in whole["logprobs"])
        assert spelled.decode().startswith(known(name)[1])
        for entry in whole["logprobs"]:
            assert -0.2 < entry["logprob"] <= 0
            best, other = entry["top_logprobs"]
            assert best["token"] == entry["token"]
            assert other["logprob"] < best["logprob"]
        async with asker.stream("/api/chat", body) as stream:
            lines = await stream.rest()
        streamed = [entry for line in lines for entry in line.get("logprobs", ())]
        assert [entry["token"] for entry in streamed] == [
            entry["token"] for entry in whole["logprobs"]
        ]
        wrong = await asker.post("/api/chat", known_body(name, logprobs=True, top_logprobs=21))
        assert wrong.status_code == 400
        assert wrong.json()["error"] == "top_logprobs must be between 0 and 20"


async def test_multibyte_text_streams_whole_characters(node: LiveNode) -> None:
    names = [
        name
        for name, case in known_answers().items()
        if not case["answer"].isascii() and not case["tools"]
    ]
    assert names
    async with asking(node) as asker:
        for name in names[:6]:
            async with asker.stream("/api/chat", known_body(name)) as stream:
                lines = await stream.rest()
            assert text_of(lines) == known(name)[1]
            assert "\ufffd" not in text_of(lines)


async def test_what_comes_later_is_refused_and_says_so(node: LiveNode) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    async with asking(node) as asker:
        thinking = await asker.post("/api/chat", known_body("count-10", think=True))
        assert thinking.status_code == 400
        assert thinking.json()["error"] == f'"{CHAT}" does not support thinking'
        assert (await asker.chat(**known_body("count-10", think=False)))["done"]
        tools = await asker.post("/api/chat", known_body("count-10", tools=[tool]))
        assert tools.status_code in (400, 501)
        assert "tools" in tools.json()["error"]
        image = await asker.post(
            "/api/generate", {"model": CHAT, "prompt": "What is this?", "images": ["aGVsbG8="]}
        )
        assert image.status_code == 400
        assert image.json()["error"].endswith("does not support vision")
        pull = await asker.post("/api/pull", {"model": "x"})
        assert pull.status_code == 501
