"""The official Ollama client against a live node with real models.

Fixtures: ``node_url``, and the names ``chat_model`` (answers text) and ``embedding_model``.
"""

from __future__ import annotations

import asyncio
import json
import math
from hashlib import sha256

import httpx
import ollama
import pytest

GREEDY = {"temperature": 0, "num_predict": 24, "seed": 7}
SHORT = {"temperature": 0, "num_predict": 4}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture
def client(node_url):
    with ollama.Client(host=node_url, timeout=120) as official:
        yield official


@pytest.fixture
def http(node_url):
    with httpx.Client(base_url=node_url, timeout=120) as plain:
        yield plain


def turn(text: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def test_generate_answers_with_text_and_figures(client, chat_model):
    answer = client.generate(model=chat_model, prompt="Count to five.", options=GREEDY)
    assert answer.model == chat_model
    assert answer.done
    assert answer.done_reason in ("stop", "length")
    assert answer.response
    assert answer.prompt_eval_count > 0
    assert 0 < answer.eval_count <= 24
    assert answer.total_duration >= answer.eval_duration > 0


def test_a_stream_says_what_the_whole_answer_says(client, chat_model):
    whole = client.generate(model=chat_model, prompt="Count to five.", options=GREEDY)
    parts = list(
        client.generate(model=chat_model, prompt="Count to five.", options=GREEDY, stream=True)
    )
    assert "".join(part.response for part in parts) == whole.response
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count
    assert parts[-1].prompt_eval_count == whole.prompt_eval_count


def test_chat_answers_and_remembers_turns(client, chat_model):
    first = client.chat(model=chat_model, messages=[turn("Hello.")], options=GREEDY)
    assert first.message.role == "assistant"
    assert first.message.content
    messages = [turn("Hello."), turn(first.message.content, "assistant"), turn("And again?")]
    second = client.chat(model=chat_model, messages=messages, options=GREEDY)
    assert second.prompt_eval_count > first.prompt_eval_count


def test_a_chat_stream_says_what_the_whole_answer_says(client, chat_model):
    messages = [turn("Be brief.", "system"), turn("Hello.")]
    whole = client.chat(model=chat_model, messages=messages, options=GREEDY)
    parts = list(client.chat(model=chat_model, messages=messages, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content


def test_the_async_client_shares_the_node(node_url, chat_model):
    async def ask():
        async with ollama.AsyncClient(host=node_url, timeout=120) as client:
            calls = [
                client.generate(model=chat_model, prompt=f"Say {n}.", options=GREEDY)
                for n in range(8)
            ]
            together = await asyncio.gather(*calls)
            alone = await client.generate(model=chat_model, prompt="Say 3.", options=GREEDY)
            stream = await client.chat(
                model=chat_model, messages=[turn("Hello.")], options=GREEDY, stream=True
            )
            parts = [part.message.content async for part in stream]
            return together, alone, parts

    together, alone, parts = asyncio.run(ask())
    assert together[3].response == alone.response
    assert "".join(parts)


def test_num_predict_and_stop_bound_the_answer(client, chat_model):
    bounded = client.generate(model=chat_model, prompt="Count.", options=GREEDY | SHORT)
    assert bounded.eval_count <= 4
    assert bounded.eval_count == 4 or bounded.done_reason == "stop"
    whole = client.generate(model=chat_model, prompt="Count to five.", options=GREEDY)
    middle = whole.response[len(whole.response) // 2]
    cut = client.generate(
        model=chat_model, prompt="Count to five.", options=GREEDY | {"stop": [middle]}
    )
    assert cut.response == whole.response.partition(middle)[0]
    assert cut.done_reason == "stop"


def test_a_seed_repeats_its_answer(client, chat_model):
    hot = {"temperature": 2.0, "num_predict": 24}
    answers = [
        client.generate(
            model=chat_model, prompt="It is", raw=True, options=hot | {"seed": seed}
        ).response
        for seed in (1, 1, 2, 3, 4)
    ]
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1


def test_context_continues_a_conversation(client, chat_model):
    first = client.generate(model=chat_model, prompt="Hello.", options=GREEDY)
    assert first.context
    second = client.generate(
        model=chat_model, prompt="Go on.", context=first.context, options=GREEDY
    )
    assert second.prompt_eval_count > first.prompt_eval_count
    assert (
        list(second.context)[: len(first.context) // 2]
        == list(first.context)[: len(first.context) // 2]
    )


def test_raw_sends_the_prompt_as_it_is(client, chat_model):
    raw = client.generate(model=chat_model, prompt="Hello", raw=True, options=GREEDY)
    templated = client.generate(model=chat_model, prompt="Hello", options=GREEDY)
    assert raw.prompt_eval_count < templated.prompt_eval_count
    assert not raw.context


def test_json_mode_is_json(client, chat_model):
    answer = client.generate(
        model=chat_model, prompt="A person as JSON.", format="json",
        options={"temperature": 0, "num_predict": 200},
    )  # fmt: skip
    if answer.done_reason == "stop":
        assert isinstance(json.loads(answer.response), dict | list)
    else:
        assert answer.response.lstrip()[:1] in "{["


def test_a_schema_is_kept(client, chat_model):
    answer = client.chat(
        model=chat_model, messages=[turn("A person as JSON.")], format=PERSON,
        options={"temperature": 0, "num_predict": 200},
    )  # fmt: skip
    assert answer.message.content.lstrip().startswith("{")
    if answer.done_reason == "stop":
        person = json.loads(answer.message.content)
        assert isinstance(person["name"], str)
        assert isinstance(person["age"], int)


def test_logprobs_match_the_tokens(client, chat_model):
    answer = client.generate(
        model=chat_model, prompt="Hello.", logprobs=True, top_logprobs=3, options=GREEDY
    )
    assert len(answer.logprobs) == answer.eval_count
    for entry in answer.logprobs:
        assert entry.logprob <= 0
        values = [candidate.logprob for candidate in entry.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert entry.logprob == pytest.approx(values[0], abs=1e-4)


def test_a_prefix_hit_does_not_shrink_the_prompt_count(client, chat_model):
    counts = [
        client.generate(model=chat_model, prompt="Same prompt.", options=SHORT).prompt_eval_count
        for _ in range(2)
    ]
    assert counts[0] == counts[1]


def test_embeddings_are_normalised_and_agree(client, embedding_model):
    batch = client.embed(model=embedding_model, input=["one text", "another"])
    assert len(batch.embeddings) == 2
    assert batch.prompt_eval_count > 0
    for vector in batch.embeddings:
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-4)
    single = client.embed(model=embedding_model, input="one text").embeddings[0]
    legacy = client.embeddings(model=embedding_model, prompt="one text").embedding
    for other in (single, legacy):
        cosine = sum(a * b for a, b in zip(batch.embeddings[0], other, strict=True))
        assert cosine / math.hypot(*other) == pytest.approx(1, abs=1e-3)


def test_dimensions_cut_and_normalise(client, embedding_model):
    vector = client.embed(model=embedding_model, input="text", dimensions=8).embeddings[0]
    assert len(vector) == 8
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-4)


def test_nothing_to_embed_is_an_empty_list(client, embedding_model):
    assert client.embed(model=embedding_model, input=[]).embeddings == []


def test_list_and_show_describe_the_model(client, chat_model, embedding_model):
    names = [model.model for model in client.list().models]
    assert any(name.startswith(chat_model.partition(":")[0]) for name in names)
    shown = client.show(chat_model)
    assert "completion" in shown.capabilities
    assert shown.details.format == "gguf"
    architecture = shown.modelinfo["general.architecture"]
    assert shown.modelinfo[f"{architecture}.context_length"] > 0
    assert shown.modelfile
    assert "embedding" in client.show(embedding_model).capabilities


def test_load_shows_in_ps_and_unload_removes_it(client, chat_model):
    loaded = client.generate(model=chat_model, prompt="", keep_alive="10m")
    assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
    (row,) = [row for row in client.ps().models if row.name.startswith(chat_model.split(":")[0])]
    assert row.size > 0
    assert row.context_length > 0
    forever = client.chat(model=chat_model, messages=[], keep_alive=-1)
    assert forever.done_reason == "load"
    unloaded = client.generate(model=chat_model, prompt="", keep_alive=0)
    assert unloaded.done_reason == "unload"


def test_create_from_a_model_copy_and_delete(client, chat_model):
    steps = [
        step.status
        for step in client.create(
            "contract-made", from_=chat_model, system="Be brief.",
            parameters={"temperature": 0.25, "stop": ["END"]}, stream=True,
        )
    ]  # fmt: skip
    assert steps[-1] == "success"
    try:
        shown = client.show("contract-made")
        assert "0.25" in shown.parameters
        assert "Be brief." in shown.modelfile
        assert client.copy("contract-made", "contract-copy").status == "success"
        answer = client.generate(model="contract-copy", prompt="Hi", options=SHORT)
        assert answer.model == "contract-copy"
        assert client.delete("contract-copy").status == "success"
        with pytest.raises(ollama.ResponseError, match="not found"):
            client.show("contract-copy")
    finally:
        client.delete("contract-made")


def test_create_from_an_uploaded_file(client, http, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model at all")
    digest = client.create_blob(broken)
    assert digest == f"sha256:{sha256(broken.read_bytes()).hexdigest()}"
    assert http.head(f"/api/blobs/{digest}").status_code == 200
    with pytest.raises(ollama.ResponseError) as refused:
        client.create("contract-broken", files={"broken.gguf": digest})
    assert refused.value.status_code == 400


def test_a_blob_must_match_its_digest(http):
    answer = http.post(f"/api/blobs/sha256:{'0' * 64}", content=b"x")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("digest mismatch")


@pytest.mark.parametrize(
    ("call", "status", "text"),
    [
        (lambda c: c.generate(model="absent", prompt="x"), 404, "model 'absent' not found"),
        (
            lambda c: c.chat(model="absent", messages=[turn("x")]), 404,
            "model 'absent' not found",
        ),
        (
            lambda c: c.embed(model="absent", input="x"), 404,
            'model "absent" not found, try pulling it first',
        ),
        (lambda c: c.show("absent"), 404, "model 'absent:latest' not found"),
        (lambda c: c.delete("absent"), 404, "model 'absent' not found"),
        (lambda c: c.copy("absent", "b"), 404, 'model "absent" not found'),
    ],
)  # fmt: skip
def test_absent_models_are_told_in_each_routes_words(client, call, status, text):
    with pytest.raises(ollama.ResponseError) as refused:
        call(client)
    assert (refused.value.status_code, refused.value.error) == (status, text)


def test_what_a_model_cannot_do_is_a_400(client, chat_model, embedding_model):
    with pytest.raises(ollama.ResponseError) as refused:
        client.chat(model=embedding_model, messages=[turn("x")])
    assert refused.value.status_code == 400
    assert refused.value.error == f'"{embedding_model}" does not support chat'
    with pytest.raises(ollama.ResponseError) as refused:
        client.generate(model=embedding_model, prompt="x")
    assert refused.value.error == f'"{embedding_model}" does not support generate'
    if "thinking" not in client.show(chat_model).capabilities:
        with pytest.raises(ollama.ResponseError) as refused:
            client.chat(model=chat_model, messages=[turn("x")], think=True)
        assert refused.value.error == f'"{chat_model}" does not support thinking'


def test_wrong_options_are_refused(http, chat_model):
    body = {"model": chat_model, "prompt": "x", "options": {"num_ctx": "x"}}
    answer = http.post("/api/generate", json=body)
    assert answer.status_code == 500
    assert answer.json()["error"] == 'option "num_ctx" must be of type integer'


@pytest.mark.parametrize("output_format", [None, "json"])
@pytest.mark.parametrize(
    "extreme",
    [
        {"typical_p": -1}, {"typical_p": 0.5}, {"typical_p": 0.9, "top_k": 0},
        {"repeat_penalty": 0}, {"repeat_penalty": 1e300}, {"repeat_penalty": 0, "typical_p": 0.5},
        {"frequency_penalty": -1e300}, {"presence_penalty": 1e300}, {"top_p": -1}, {"min_p": 5},
        {"temperature": 1e300}, {"temperature": -1}, {"top_k": 10**12}, {"num_keep": 10**12},
        {"seed": 10**400}, {"seed": -(2**70)}, {"num_ctx": 10**12}, {"num_ctx": -1},
        {"num_ctx": 1}, {"repeat_last_n": 10**12}, {"num_thread": 10**6}, {"num_batch": -1},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_no_option_value_ends_a_runner(http, chat_model, extreme, output_format):
    body = {
        "model": chat_model, "prompt": "Hello.", "stream": False, "format": output_format,
        "options": {"num_predict": 6, **extreme},
    }  # fmt: skip
    answer = http.post("/api/generate", json=body)
    assert answer.status_code == 200, answer.text


def test_a_long_prompt_is_cut_or_refused(http, chat_model):
    body = {
        "model": chat_model, "prompt": "word " * 4000, "stream": False,
        "options": SHORT | {"num_ctx": 128},
    }  # fmt: skip
    assert http.post("/api/generate", json=body).status_code == 200
    answer = http.post("/api/generate", json=body | {"shift": False, "truncate": False})
    assert answer.status_code == 400
    assert "context length" in answer.json()["error"]


def test_a_client_that_leaves_frees_its_slot(http, client, chat_model):
    body = {"model": chat_model, "prompt": "Count.", "options": {"num_predict": 2000}}
    for _ in range(20):
        with http.stream("POST", "/api/generate", json=body) as stream:
            next(stream.iter_lines())
    answer = client.generate(model=chat_model, prompt="Hello.", options=SHORT)
    assert answer.done


def test_the_prompt_form_of_chat_streams_events(http, chat_model):
    body = {"model": chat_model, "prompt": "Hello.", "max_tokens": 6, "temperature": 0}
    answer = http.post("/api/chat", json=body)
    events = [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]
    assert events[-1]["token"] == "[DONE]"
    assert events[-1]["total_tokens"] > 0
    assert "".join(event["token"] for event in events[:-1])


def test_health_and_metrics_count_what_happened(http, client, chat_model):
    client.generate(model=chat_model, prompt="Hello.", options=SHORT)
    assert http.get("/health").json()["status"] == "healthy"
    assert "llamesh_http_requests_total" in http.get("/metrics").text
    assert http.get("/metrics?format=json").json()["models_loaded"] >= 1
