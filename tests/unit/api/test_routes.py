"""Routes, aliases and additions, over real HTTP."""

from __future__ import annotations

import json
from datetime import datetime
from hashlib import sha256

import httpx
import pytest
import structlog
import trio.testing

from agent.inference.request import (
    JsonFormat,
    KeepAlive,
    Message,
    RunningModel,
    SchemaFormat,
    TextDelta,
    TextPrompt,
)
from tests.unit.api.conftest import running_node
from tests.unit.api.scripted import DONE, NOW_NS


async def test_root_is_recognised_by_tools(client):
    answer = await client.get("/")
    assert (answer.status_code, answer.text) == (200, "Ollama is running")
    assert answer.headers["content-type"].startswith("text/plain")
    assert (await client.head("/")).status_code == 200


async def test_chat_wraps_text_in_a_message(client):
    body = {"model": "chat", "messages": [{"role": "User", "content": "hi"}]}
    answer = await client.post("/api/chat", json=body)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[0]["message"] == {"role": "assistant", "content": "Hel"}
    assert lines[-1]["message"] == {"role": "assistant", "content": ""}
    assert lines[-1]["done_reason"] == "stop"
    assert "context" not in lines[-1]


async def test_chat_hands_messages_inward(node, client):
    body = {
        "model": "chat",
        "messages": [
            {"role": "USER", "content": "hi"},
            {
                "role": "assistant",
                "tool_calls": [{"id": "call_1", "function": {"name": "f", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "content": "2", "tool_name": "f", "tool_call_id": "call_1"},
        ],
    }
    await client.post("/api/chat", json=body)
    messages = node.inference.requests[0].prompt.messages
    assert messages[0] == Message(role="user", content="hi")
    assert messages[1].tool_calls[0].arguments == {"a": 1}
    assert messages[2].tool_name == "f"


async def test_keys_match_without_case_and_null_is_absent(node, client):
    body = b"""{"MODEL":"chat","Prompt":"x","stream":null,"system":null,"Options":{"seed":3},
        "messages":[]}"""
    answer = await client.post("/api/generate", content=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["x-llamesh-ignored"] == "messages"
    assert node.inference.requests[0].options == {"seed": 3}
    body = b'{"model":"chat","messages":[{"ROLE":"user","Content":"a","content_type":"x"}]}'
    answer = await client.post("/api/chat", content=body)
    assert answer.headers["x-llamesh-ignored"] == "messages.content_type"
    assert node.inference.requests[1].prompt.messages == (Message(role="user", content="a"),)


async def test_ignored_keys_cannot_forge_headers(client):
    body = {"model": "chat", "prompt": "x", "a\r\nset-cookie: b, c": 1, "options": {"mirostat": 2}}
    answer = await client.post("/api/generate", json=body)
    assert answer.headers["x-llamesh-ignored"] == "a__set-cookie:_b__c, options.mirostat"
    assert "set-cookie" not in answer.headers


async def test_broken_utf8_is_replaced_not_refused(node, client):
    await client.post("/api/generate", content=b'{"model":"chat","prompt":"a\xffb"}')
    assert node.inference.requests[0].prompt.text == "a\ufffdb"


async def test_generate_hands_every_field_inward(node, client):
    body = {
        "model": "chat",
        "prompt": "x",
        "suffix": "y",
        "system": "s",
        "template": "t",
        "context": [1, 2],
        "keep_alive": "10m",
        "options": {"temperature": 0},
        "format": {"type": "object"},
        "truncate": False,
        "shift": False,
        "logprobs": True,
        "top_logprobs": 2,
    }
    await client.post("/api/generate", json=body)
    request = node.inference.requests[0]
    assert request.prompt == TextPrompt(
        text="x", suffix="y", system="s", template="t", context=(1, 2)
    )
    assert request.keep_alive == KeepAlive(600)
    assert request.format == SchemaFormat({"type": "object"})
    assert (request.truncate, request.shift) == (False, False)
    assert (request.logprobs, request.top_logprobs) == (True, 2)


@pytest.mark.parametrize(("value", "expected"), [("json", JsonFormat()), ("", None), (None, None)])
async def test_formats(node, client, value, expected):
    body = {"model": "chat", "prompt": "x", "format": value}
    await client.post("/api/generate", json=body)
    assert node.inference.requests[0].format == expected


async def test_logprobs_carry_bytes_and_alternatives(client):
    body = {
        "model": "chat", "prompt": "x", "logprobs": True, "top_logprobs": 1, "stream": False,
    }  # fmt: skip
    logprobs = (await client.post("/api/generate", json=body)).json()["logprobs"]
    assert logprobs[0] == {
        "token": "Hel",
        "logprob": -0.25,
        "bytes": [72, 101, 108],
        "top_logprobs": [{"token": "\ufffd", "logprob": -1.0, "bytes": [255]}],
    }
    assert len(logprobs) == 2
    body["stream"] = True
    lines = (await client.post("/api/generate", json=body)).text.splitlines()
    assert [len(json.loads(line).get("logprobs", ())) for line in lines] == [1, 1, 0]


@pytest.mark.parametrize(
    ("route", "field", "value"),
    [
        ("generate", "response", ""),
        ("chat", "message", {"role": "assistant", "content": ""}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_to_say_loads_and_keep_alive_0_unloads(
    node, client, route, field, value, stream
):
    created = "2026-09-21T14:13:20.123456789Z"
    body = {"model": "chat", "stream": stream, "keep_alive": 30}
    answer = await client.post(f"/api/{route}", json=body)
    assert answer.headers["content-type"].startswith("application/json")
    expected = {"model": "chat", "created_at": created, field: value, "done": True}
    assert answer.json() == expected | {"done_reason": "load"}
    assert node.inference.loads == [("chat", {}, KeepAlive(30))]
    answer = await client.post(f"/api/{route}", json=body | {"keep_alive": "0s"})
    assert answer.json() == expected | {"done_reason": "unload"}
    assert node.inference.unloads == ["chat"]


async def test_debug_render_shows_the_prompt_alone(node, client):
    body = {"model": "chat", "prompt": "x", "_debug_render_only": True}
    answer = await client.post("/api/generate", json=body)
    info = {"rendered_template": "<x>", "image_count": 0}
    assert answer.json()["_debug_info"] == info
    assert node.inference.requests == []


async def test_the_prompt_form_of_chat_answers_with_events(node, client):
    body = {
        "model": "chat", "prompt": "hi", "system": "s", "temperature": 0.5, "top_p": 0.5,
        "max_tokens": 9,
    }  # fmt: skip
    answer = await client.post("/api/chat", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]
    assert [event["token"] for event in events] == ["Hel", "lo <&> ü", "[DONE]"]
    assert all(event["latency_ms"] >= 0 for event in events)
    last = events[-1]
    assert (last["latency_ms"], last["total_tokens"], last["completion_tokens"]) == (0, 9, 2)
    request = node.inference.requests[0]
    assert request.options == {"temperature": 0.5, "top_p": 0.5, "num_predict": 9}
    assert [message.role for message in request.prompt.messages] == ["system", "user"]


async def test_the_prompt_form_unstreamed_is_a_chat_object_with_the_response(client):
    body = {"model": "chat", "prompt": "hi", "stream": False}
    answer = (await client.post("/api/chat", json=body)).json()
    assert answer["message"]["content"] == answer["response"] == "Hello <&> ü"


async def test_a_broken_prompt_form_ends_with_an_error_event(node, client):
    async def script(_):
        yield TextDelta("a")
        raise ZeroDivisionError

    node.inference.script = script
    answer = await client.post("/api/chat", json={"model": "chat", "prompt": "hi"})
    assert json.loads(answer.text.split("\n\n")[1].removeprefix("data: "))["code"] == "INTERNAL"


async def test_messages_win_over_a_prompt(node, client):
    body = {"model": "chat", "prompt": "hi", "messages": [{"role": "user", "content": "a"}]}
    answer = await client.post("/api/chat", json=body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["x-llamesh-ignored"] == "prompt"


@pytest.mark.parametrize("key", ["input", "prompt"])
async def test_embed_takes_one_text_or_many(node, client, key):
    one = (await client.post("/api/embed", json={"model": "embedder", key: "a"})).json()
    assert one == {
        "model": "embedder",
        "embeddings": [[1.0, 0.0, 0.0, 0.0]],
        "total_duration": 9,
        "prompt_eval_count": 3,
    }
    body = {"model": "embedder", key: ["a", ""], "dimensions": 2, "truncate": False}
    many = (await client.post("/api/embed", json=body)).json()
    assert many["embeddings"] == [[1.0, 0.0], [1.0, 0.0]]
    assert node.inference.embeds[1].inputs == ("a", "")
    assert node.inference.embeds[1].truncate is False


async def test_many_vectors_arrive_whole(client):
    body = {"model": "embedder", "input": ["a"] * 100}
    answer = await client.post("/api/embed", json=body)
    assert answer.json()["embeddings"] == [[1.0, 0.0, 0.0, 0.0]] * 100


@pytest.mark.parametrize("value", [[], "", None])
async def test_nothing_to_embed_only_loads(node, client, value):
    answer = await client.post("/api/embed", json={"model": "embedder", "input": value})
    assert answer.json() == {"model": "embedder", "embeddings": []}
    answer = await client.post("/api/embeddings", json={"model": "embedder", "prompt": value or ""})
    assert answer.json()["embedding"] == []
    assert len(node.inference.loads) == 2


@pytest.mark.parametrize("key", ["input", "prompt"])
async def test_embeddings_answers_under_both_keys(client, key):
    answer = (await client.post("/api/embeddings", json={"model": "embedder", key: "a"})).json()
    assert answer == {
        "embedding": [1.0, 0.0, 0.0, 0.0], "embeddings": [[1.0, 0.0, 0.0, 0.0]],
    }  # fmt: skip


async def test_tags_are_newest_first_with_the_documented_additions(client):
    models = (await client.get("/api/tags")).json()["models"]
    assert [model["name"] for model in models] == [
        "gifted:latest", "embedder:latest", "chat:latest",
    ]  # fmt: skip
    row = models[2]
    assert row["model"] == "chat:latest"
    assert len(row["digest"]) == 64
    assert row["details"]["quantization_level"] == "F16"
    assert row["capabilities"] == ["completion"]
    assert (row["status"], row["size_human"]) == ("available", "3.8GB")
    assert (row["nodes"], row["replicas"]) == (["node-a"], 1)


async def test_ps_shows_runners_and_forever(node, client):
    node.inference.runners = (
        RunningModel(
            runner_id="r1", name="chat:latest", digest="d", size_bytes=10, vram_bytes=4,
            context_length=2048, expires_at_s=None, device="cpu", slots_total=4, slots_busy=1,
            waiting=0, pid=5, state="ready",
        ),
    )  # fmt: skip
    (row,) = (await client.get("/api/ps")).json()["models"]
    assert row["expires_at"].startswith(("2318", "2319"))
    assert (row["size"], row["size_vram"], row["context_length"]) == (10, 4, 2048)
    assert (row["node"], row["slots_total"], row["slots_available"]) == ("node-a", 4, 3)
    assert row["details"]["family"] == "llama"


async def test_a_model_that_is_being_unloaded_has_expired(node, client):
    node.inference.runners = (
        RunningModel(
            runner_id="r1", name="chat:latest", digest="d", size_bytes=10, vram_bytes=4,
            context_length=2048, expires_at_s=None, device="cpu", slots_total=4, slots_busy=0,
            waiting=0, pid=5, state="stopping",
        ),
    )  # fmt: skip
    (row,) = (await client.get("/api/ps")).json()["models"]
    assert datetime.fromisoformat(row["expires_at"]).timestamp() == pytest.approx(NOW_NS / 1e9)


async def test_ignored_keys_are_in_the_log_line_of_the_request(client):
    body = {"model": "chat", "prompt": "x", "extra": 1, "options": {"mirostat": 1}}
    with structlog.testing.capture_logs() as lines:
        answer = await client.post("/api/generate", json=body)
        await trio.testing.wait_all_tasks_blocked()
    assert answer.headers["x-llamesh-ignored"] == "extra, options.mirostat"
    assert [line["ignored"] for line in lines] == [["extra", "options.mirostat"]]


async def test_show_leaves_out_what_is_empty(client):
    answer = (await client.post("/api/show", json={"name": "chat"})).json()
    assert answer["modelfile"].startswith("FROM")
    assert answer["model_info"]["llama.context_length"] == 2048
    assert answer["capabilities"] == ["completion"]
    assert not {"tensors", "projector_info", "messages", "renderer"} & set(answer)
    verbose = (await client.post("/api/show", json={"model": "chat", "verbose": True})).json()
    assert verbose["tensors"] == [{"name": "output.weight", "type": "F16", "shape": [64, 512]}]


async def test_copilot_gets_the_name_it_asked_for(client):
    answer = await client.post(
        "/api/show", json={"model": "chat"}, headers={"User-Agent": "GitHubCopilotChat/1.0"}
    )
    assert answer.json()["model_info"]["general.basename"] == "chat"


async def test_create_streams_progress_or_answers_with_the_last(node, client):
    answer = await client.post("/api/create", json={"model": "new", "from": "chat"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    statuses = [json.loads(line) for line in answer.text.splitlines()]
    assert statuses[1] == {
        "status": "creating new layer", "digest": "sha256:ab", "total": 4, "completed": 4,
    }  # fmt: skip
    assert statuses[-1] == {"status": "success"}
    body = {"name": "two", "modelfile": "FROM chat", "stream": False}
    answer = await client.post("/api/create", json=body)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"status": "success"}
    assert node.catalog.created[1].from_ == "chat"


async def test_create_hands_every_field_inward(node, client):
    data = b"GGUF"
    digest = f"sha256:{sha256(data).hexdigest()}"
    assert (await client.head(f"/api/blobs/{digest}")).status_code == 404
    assert (await client.post(f"/api/blobs/{digest}", content=data)).status_code == 201
    assert (await client.post(f"/api/blobs/{digest}", content=data)).status_code == 200
    assert (await client.head(f"/api/blobs/{digest}")).status_code == 200
    body = {
        "model": "new", "files": {"a.gguf": digest}, "adapters": {}, "template": "t",
        "license": ["x"], "system": "", "parameters": {"stop": ["a"]},
        "messages": [{"role": "user", "content": "a"}],
    }  # fmt: skip
    await client.post("/api/create", json=body)
    request = node.catalog.created[0]
    assert request.licenses == ("x",)
    assert (request.template, request.system) == ("t", "")
    assert request.parameters == {"stop": ["a"]}
    assert request.messages == (Message(role="user", content="a"),)


async def test_copy_and_delete_answer_with_nothing(client):
    answer = await client.post("/api/copy", json={"source": "chat", "destination": "b"})
    assert (answer.status_code, answer.content) == (200, b"")
    answer = await client.request("DELETE", "/api/delete", json={"name": "b"})
    assert (answer.status_code, answer.content) == (200, b"")


async def test_the_hosted_service_is_off(client):
    assert (await client.get("/api/status")).json()["cloud"]["disabled"] is True
    assert (await client.post("/api/me")).status_code == 403
    assert (await client.post("/api/signout")).status_code == 403
    assert (await client.request("DELETE", "/api/user/keys/abc")).status_code == 403
    empty = await client.post("/api/experimental/web_search")
    assert empty.json()["error"] == "missing request body"
    recommended = await client.get("/api/experimental/model-recommendations")
    assert recommended.json() == {"recommendations": []}


@pytest.mark.parametrize("path", ["/api/version", "/api/v1/version"])
async def test_version_is_ollamas_with_the_product_beside_it(client, path):
    answer = (await client.get(path)).json()
    assert answer["version"] == "0.32.15"
    assert answer["agent_version"] == "0.1.0"
    assert {"build_date", "git_commit", "go_version", "python_version"} <= set(answer)
    assert (await client.head(path)).status_code == 200


async def test_all_health_paths_agree(client):
    bodies = [
        (await client.get(path)).json() for path in ("/health", "/api/health", "/api/v1/health")
    ]
    assert bodies[0] == bodies[1] == bodies[2]
    body = bodies[0]
    assert body["status"] == "healthy"
    assert body["services"] == {
        "p2p": False, "p2p_peers": 0, "consensus": False, "consensus_leader": False,
        "scheduler": True, "available_nodes": 1,
    }  # fmt: skip
    assert body["workers"] == {"total": 0, "idle": 0, "busy": 0}
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).json() == {"status": "serving"}


async def test_metrics_are_prometheus_unless_json_is_asked_for(client):
    await client.get("/")
    for headers in ({}, {"Accept": "*/*"}, {"Accept": "text/plain;version=0.0.4"}):
        answer = await client.get("/metrics", headers=headers)
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'llamesh_http_requests_total{method="GET",route="/",status="200"} 1.0' in answer.text
        assert "llamesh_process_cpu_seconds_total" in answer.text
    by_accept = await client.get("/metrics", headers={"Accept": "application/json"})
    by_query = await client.get("/metrics?format=json")
    alias = await client.get("/api/distributed/metrics")
    for answer in (by_accept, by_query, alias):
        body = answer.json()
        assert body["nodes_online"] == 1
        assert 0 <= body["cpu_usage"] <= 1
        assert 0 < body["memory_usage"] <= 1
    assert (await client.get("/metrics?format=xml")).status_code == 400


async def test_a_request_id_is_taken_over_only_if_sane(client):
    taken = await client.get("/", headers={"X-Request-ID": "trace-1.a"})
    assert taken.headers["x-request-id"] == "trace-1.a"
    for bad in ("a b", "x" * 129, '"'):
        answer = await client.get("/", headers={"X-Request-ID": bad})
        assert answer.headers["x-request-id"].startswith("req_")


async def test_allowed_origins_get_their_headers_and_others_a_403(client):
    for origin in ("http://localhost:3000", "https://127.0.0.1", "app://obsidian.md"):
        answer = await client.get("/", headers={"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        preflight = await client.options("/api/chat", headers={"Origin": origin})
        assert preflight.status_code == 204
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "Authorization" in preflight.headers["access-control-allow-headers"]
    for origin in ("http://evil.example", "http://localhost:1.evil.example", "null"):
        answer = await client.get("/", headers={"Origin": origin})
        assert (answer.status_code, answer.content) == (403, b"")


async def test_a_rebound_name_is_refused_on_loopback(client):
    for host in ("evil.example", "evil.example:11434", "8.8.8.8"):
        answer = await client.get("/", headers={"Host": host})
        assert (answer.status_code, answer.content) == (403, b"")
    for host in ("localhost", "127.0.0.1:1", "[::1]:5", "a.localhost", "box.local", "192.168.1.5"):
        assert (await client.get("/", headers={"Host": host})).status_code == 200


async def test_configured_origins_are_allowed():
    origins = ("https://ui.example", "chrome-extension://*")
    async with running_node(origins=origins) as node, httpx.AsyncClient(base_url=node.url) as http:
        for origin in ("https://ui.example", "chrome-extension://abc"):
            answer = await http.get("/", headers={"Origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin


async def test_an_empty_delta_writes_no_line(node, client):
    async def script(_):
        yield TextDelta("", (5,))
        yield DONE

    node.inference.script = script
    answer = await client.post("/api/generate", json={"model": "chat", "prompt": "x"})
    assert len(answer.text.splitlines()) == 1


async def test_options_without_an_origin_grants_nothing(client):
    answer = await client.options("/api/tags")
    assert answer.status_code == 204
    assert "access-control-allow-origin" not in answer.headers


async def test_parameters_without_effect_are_named(client):
    body = {"model": "new", "from": "chat", "parameters": {"mirostat": 1, "top_k": 5}}
    answer = await client.post("/api/create", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-llamesh-ignored"] == "parameters.mirostat"


async def test_health_claims_nothing_that_does_not_exist(client):
    body = (await client.get("/health")).json()
    assert body["status"] == "healthy"
    assert body["model_store_answers"] is True
    assert "database_connected" not in body
