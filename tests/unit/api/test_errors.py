"""Every error line that clients match on, over real HTTP."""

from __future__ import annotations

import json

import pytest
import structlog
import trio.testing

from agent.inference.errors import (
    EmbeddingTooLong,
    InsufficientMemory,
    LoadFailed,
    LoadStalled,
    PromptTooLong,
    QueueFull,
    RunnerDied,
    RunnerRefused,
    UnsupportedCapability,
)
from agent.inference.request import TextDelta
from agent.models.errors import CreateFailed, CreateRejected, DiskFull, InvalidGguf

POST_ROUTES = (
    "generate", "chat", "embed", "embeddings", "show", "copy", "pull", "push", "create",
)  # fmt: skip
DIGEST = "sha256:" + "a" * 64
PROMPT_TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the "
    "prompt, adjust the context length in settings, or use a model with a longer context length"
)
RUNNER_DIED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an "
    "internal error, check ollama server logs for details"
)
BAD_OPTION = "INVALID_OPTION"
BOTH_SUFFIXES = "use either :local or :cloud, not both"
THINK_TYPE = 'think must be a boolean or string ("high", "medium", "low", "max", true, or false)'
THINK_WORD = 'invalid think value: "x" (must be "high", "medium", "low", "max", true, or false)'


@pytest.mark.parametrize("route", POST_ROUTES)
async def test_an_empty_body_is_missing(client, route):
    answer = await client.post(f"/api/{route}")
    assert (answer.status_code, answer.json()["error"]) == (400, "missing request body")


async def test_an_empty_delete_body_is_missing(client):
    answer = await client.request("DELETE", "/api/delete")
    assert (answer.status_code, answer.json()["error"]) == (400, "missing request body")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "unexpected EOF"),
        (b"x", "invalid character 'x'"),
        (b'{"model":}', "invalid character '}'"),
        (b'{"model":3,"source":3}', "json: cannot unmarshal"),
        (b'["chat"]', "json: cannot unmarshal"),
        (b'{"model":"chat"} x', "after top-level value"),
        (b"[" * 100_000, "json: exceeded max depth"),
    ],
)
@pytest.mark.parametrize("route", POST_ROUTES)
async def test_bad_json_is_told_with_its_place(client, route, body, text):
    answer = await client.post(f"/api/{route}", content=body)
    assert answer.status_code == 400
    assert text in answer.json()["error"]


CASES = [
    ("generate", {}, 404, "model '' not found"),
    ("generate", {"model": "nope", "prompt": "x"}, 404, "model 'nope' not found"),
    ("generate", {"model": "a b", "prompt": "x"}, 404, "model 'a b' not found"),
    ("generate", {"model": "nope"}, 404, "model 'nope' not found"),
    ("generate", {"model": "nope", "keep_alive": 0}, 404, "model 'nope' not found"),
    ("generate", {"model": "nope", "prompt": "x", "format": "x"}, 404, "model 'nope' not found"),
    ("chat", {}, 400, "model is required"),
    ("chat", {"model": "nope", "messages": [{}]}, 404, "model 'nope' not found"),
    ("chat", {"model": "nope", "prompt": "x"}, 404, "model 'nope' not found"),
    ("chat", {"model": "a b"}, 404, "model 'a b' not found"),
    (
        "embed", {"model": "x", "input": "y"}, 404,
        'model "x" not found, try pulling it first',
    ),
    ("embed", {"input": "y"}, 404, "model '' not found"),
    (
        "embeddings", {"model": "x", "prompt": "y"}, 404,
        'model "x" not found, try pulling it first',
    ),
    ("embeddings", {"prompt": "y"}, 400, "model is required"),
    ("show", {}, 400, "model is required"),
    ("show", {"model": "x"}, 404, "model 'x:latest' not found"),
    ("copy", {"source": "a b", "destination": "x"}, 400, 'source "a b" is invalid'),
    ("copy", {"source": "chat", "destination": "a b"}, 400, 'destination "a b" is invalid'),
    ("copy", {"source": "x", "destination": "y"}, 404, 'model "x" not found'),
    ("push", {}, 400, "model is required"),
    ("pull", {}, 400, "invalid model name"),
    ("pull", {"model": "a b"}, 400, "invalid model name"),
    ("generate", {"model": "m:cloud:local"}, 400, BOTH_SUFFIXES),
    ("chat", {"model": "m:20b-cloud:local"}, 400, BOTH_SUFFIXES),
    ("chat", {"model": "m:cloud"}, 403, "ollama cloud is disabled: remote model is unavailable"),
    (
        "generate", {"model": "m:20b-cloud"}, 403,
        "ollama cloud is disabled: remote model is unavailable",
    ),
    (
        "chat", {"model": "chat", "messages": [{}], "tools": [{"type": "function"}]}, 400,
        "registry.ollama.ai/library/chat:latest does not support tools",
    ),
    (
        "chat", {"model": "chat", "messages": [{"images": ["QQ=="]}]}, 400,
        "registry.ollama.ai/library/chat:latest does not support vision",
    ),
    (
        "generate", {"model": "chat", "prompt": "x", "images": ["QQ=="]}, 400,
        "registry.ollama.ai/library/chat:latest does not support vision",
    ),
    (
        "chat", {"model": "embedder", "messages": [{}], "tools": [{}]}, 400,
        '"embedder" does not support chat',
    ),
    (
        "generate", {"model": "chat", "prompt": "x", "think": True}, 400,
        '"chat" does not support thinking',
    ),
    (
        "chat", {"model": "chat", "messages": [{}], "think": "high"}, 400,
        '"chat" does not support thinking',
    ),
    ("chat", {"model": "chat", "messages": [{}], "think": 3}, 400, THINK_TYPE),
    ("chat", {"model": "chat", "messages": [{}], "think": []}, 400, THINK_TYPE),
    ("generate", {"model": "chat", "prompt": "x", "think": "x"}, 400, THINK_WORD),
    *(
        (
            "generate", {"model": "chat", "prompt": "x", "raw": True, field: value}, 400,
            "raw mode does not support template, system, or context",
        )
        for field, value in (("template", "t"), ("system", "s"), ("context", [1]))
    ),
    *(
        (
            route, {"model": "chat", "prompt": "x", "messages": [{}], "top_logprobs": value}, 400,
            "top_logprobs must be between 0 and 20",
        )
        for route in ("generate", "chat")
        for value in (-1, 21)
    ),
    *(
        (
            route, {"model": "chat", "prompt": "x", "options": {name: value}}, 500,
            f'option "{name}" must be of type {kind}',
        )
        for route in ("generate", "chat", "embed")
        for name, value, kind in (
            ("num_ctx", "x", "integer"),
            ("use_mmap", 1, "boolean"),
            ("temperature", "hot", "float32"),
            ("stop", "x", "array"),
        )
    ),
    (
        "generate", {"model": "chat", "prompt": "x", "format": "yaml"}, 500,
        'invalid format: "\\"yaml\\""; expected "json" or a valid JSON Schema object',
    ),
    (
        "chat", {"model": "chat", "messages": [{}], "format": 3}, 500,
        'invalid format: "3"; expected "json" or a valid JSON Schema object',
    ),
    ("embed", {"model": "embedder", "input": 3}, 400, "invalid input type"),
    ("embed", {"model": "embedder", "input": ["a", 3]}, 400, "invalid input type"),
    (
        "generate", {"model": "chat", "prompt": "x", "keep_alive": True}, 400,
        "Unsupported type: 'bool'",
    ),
    (
        "chat", {"model": "chat", "keep_alive": "5"}, 400,
        'time: missing unit in duration "5"',
    ),
    (
        "embed", {"model": "embedder", "keep_alive": "x"}, 400, 'time: invalid duration "x"',
    ),
    ("create", {}, 400, "invalid model name"),
    ("create", {"model": "a b", "from": "chat"}, 400, "invalid model name"),
    ("create", {"model": "new"}, 400, "neither 'from' or 'files' was specified"),
    ("create", {"model": "new", "files": {"a": "md5:1"}}, 400, "invalid digest format"),
    ("create", {"model": "new", "files": {"a": DIGEST}}, 400, f'blob "{DIGEST}" not found'),
    ("pull", {"model": "m:cloud"}, 403, "ollama cloud is disabled: remote model is unavailable"),
    (
        "create", {"model": "new", "from": "m:cloud"}, 403,
        "ollama cloud is disabled: remote model is unavailable",
    ),
    (
        "create", {"model": "m:cloud", "from": "chat"}, 400,
        'invalid model name: names in "cloud" mean hosted models',
    ),
    (
        "copy", {"source": "chat", "destination": "m:20b-cloud"}, 400,
        'destination "m:20b-cloud" is invalid: names in "cloud" mean hosted models',
    ),
    ("copy", {"source": "m:cloud", "destination": "y"}, 404, 'model "m:cloud" not found'),
    ("copy", {"source": "m:cloud:local", "destination": "y"}, 400, BOTH_SUFFIXES),
    ("create", {"model": "m:local:cloud", "from": "chat"}, 400, BOTH_SUFFIXES),
    ("experimental/web_search", {}, 403, "ollama cloud is disabled: web search is unavailable"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body", "status", "text"), CASES)
async def test_each_refusal_has_its_status_and_words(client, route, body, status, text):
    answer = await client.post(f"/api/{route}", json=body)
    assert (answer.status_code, answer.json()["error"]) == (status, text)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UnsupportedCapability("chat", "generate"), 400, '"chat" does not support generate'),
        (
            UnsupportedCapability("ns/chat:1b", "insert"), 400,
            "registry.ollama.ai/ns/chat:1b does not support insert",
        ),
        (
            QueueFull(512, 512, 3.2), 503,
            "server busy, please try again.  maximum pending requests exceeded",
        ),
        (PromptTooLong("9 > 8"), 400, PROMPT_TOO_LONG),
        (RunnerDied("signal 11"), 500, RUNNER_DIED),
        (
            LoadFailed("chat", "loading", "bad magic"), 500,
            "llama-server process has terminated: bad magic",
        ),
        (
            LoadStalled("chat", "loading", "no progress"), 500,
            "llama-server process has terminated: no progress",
        ),
        (InsufficientMemory("needs 5 GB, 2 GB free"), 500, "needs 5 GB, 2 GB free"),
        (RunnerRefused("too many"), 500, "too many"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_before_the_first_object_has_its_status(
    node, client, stream, error, status, text
):
    node.inference.error = error
    body = {"model": "chat", "prompt": "x", "stream": stream}
    answer = await client.post("/api/generate", json=body)
    assert (answer.status_code, answer.json()["error"]) == (status, text)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    if status == 503:
        assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (
            EmbeddingTooLong("the input length exceeds the context length"), 400,
            "the input length exceeds the context length",
        ),
        (
            EmbeddingTooLong("input after truncation exceeds maximum context length"), 400,
            "input after truncation exceeds maximum context length",
        ),
        (
            RunnerRefused("embedding contains NaN or Inf values"), 400,
            "embedding contains NaN or Inf values",
        ),
    ],
)  # fmt: skip
async def test_embedding_failures_are_the_callers(node, client, error, status, text):
    node.inference.error = error
    answer = await client.post("/api/embed", json={"model": "embedder", "input": "x"})
    assert (answer.status_code, answer.json()["error"]) == (status, text)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CreateRejected("only one adapter is currently supported"), 400),
        (CreateFailed("unsupported quantization type X"), 500),
        (InvalidGguf("supplied file was not in GGUF format"), 400),
        (DiskFull("needs 9 GB, 1 GB free"), 507),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_create_failures_keep_their_words(node, client, error, status, stream):
    node.catalog.create_error = error
    body = {"model": "new", "from": "chat", "stream": stream}
    answer = await client.post("/api/create", json=body)
    assert (answer.status_code, answer.json()["error"]) == (status, str(error))


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [("a b", 400, 'name "a b" is invalid'), ("nope", 404, "model 'nope' not found")],
)
@pytest.mark.parametrize("key", ["model", "name"])
async def test_delete_refusals(client, key, name, status, text):
    answer = await client.request("DELETE", "/api/delete", json={key: name})
    assert (answer.status_code, answer.json()["error"]) == (status, text)


async def test_blob_refusals(client):
    answer = await client.post("/api/blobs/sha256:12", content=b"x")
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid digest format")
    assert (await client.head("/api/blobs/sha256:12")).status_code == 400
    missing = await client.head(f"/api/blobs/{DIGEST}")
    assert (missing.status_code, missing.content) == (404, b"")
    answer = await client.post(f"/api/blobs/{DIGEST}", content=b"x")
    actual = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    expected = f'digest mismatch, expected "{DIGEST}", got "{actual}"'
    assert (answer.status_code, answer.json()["error"]) == (400, expected)


@pytest.mark.parametrize(
    ("route", "body", "word"),
    [
        ("pull", {"model": "llama3"}, "pull"),
        ("push", {"name": "me/llama3"}, "push"),
        ("chat", {"model": "gifted", "messages": [{}], "tools": [{}]}, "tools"),
        ("chat", {"model": "gifted", "messages": [{}], "think": True}, "think"),
        ("chat", {"model": "gifted", "messages": [{"images": ["QQ=="]}]}, "images"),
        ("generate", {"model": "gifted", "prompt": "x", "images": ["QQ=="]}, "images"),
        ("create", {"model": "new", "from": "chat", "quantize": "Q4_K_M"}, "quantize"),
    ],
)
async def test_what_is_not_there_yet_says_so(client, route, body, word):
    answer = await client.post(f"/api/{route}", json=body)
    assert answer.status_code == 501
    assert answer.json()["error"].startswith(word)


@pytest.mark.parametrize("think", [None, False])
@pytest.mark.parametrize("model", ["chat", "gifted"])
async def test_thinking_off_is_accepted_by_every_model(client, model, think):
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "think": think}
    assert (await client.post("/api/chat", json=body)).status_code == 200


async def test_the_flat_body_adds_to_ollamas(client):
    answer = await client.post(
        "/api/show", json={"model": "x"}, headers={"X-Request-ID": "trace-1"}
    )
    assert answer.json() == {
        "error": "model 'x:latest' not found",
        "code": "MODEL_NOT_FOUND",
        "message": "model 'x:latest' not found",
        "detail": "model 'x:latest' not found",
        "timestamp": "2026-09-21T14:13:20.123456789Z",
        "request_id": "trace-1",
    }


async def test_an_error_after_the_first_object_is_one_more_line(node, client):
    async def script(_):
        yield TextDelta("a")
        raise RunnerDied("gone")

    node.inference.script = script
    answer = await client.post("/api/generate", json={"model": "chat", "prompt": "x"})
    assert answer.status_code == 200
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[0]["response"] == "a"
    assert lines[1]["error"] == RUNNER_DIED
    assert len(lines) == 2


async def test_a_defect_tells_nothing_but_the_request_id(node, client):
    node.inference.error = ZeroDivisionError("secret")
    answer = await client.post("/api/generate", json={"model": "chat", "prompt": "x"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_an_unknown_path_is_a_plain_404(client):
    answer = await client.get("/api/nothing")
    assert (answer.status_code, answer.text) == (404, "404 page not found")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-request-id"].startswith("req_")


async def test_a_wrong_method_names_the_right_ones(client):
    answer = await client.get("/api/show")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    answer = await client.put(f"/api/blobs/{DIGEST}", content=b"")
    assert (answer.status_code, answer.headers["allow"]) == (405, "HEAD, POST")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nope", "prompt": "secret words"}, 404, "MODEL_NOT_FOUND"),
        ({"model": "chat", "prompt": "secret words", "think": True}, 400, "CAPABILITY_MISSING"),
        ({"model": "chat", "prompt": "secret words", "format": 3}, 500, "INVALID_FORMAT"),
        ({"model": "chat", "prompt": "secret words", "options": {"seed": "x"}}, 500, BAD_OPTION),
    ],
)  # fmt: skip
async def test_a_refusal_is_logged_once_with_its_reason_and_counted(
    node, client, body, status, code
):
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        answer = await client.post("/api/generate", json=body)
        await trio.testing.wait_all_tasks_blocked()
    assert answer.status_code == status
    told = [line for line in lines if line["log_level"] != "debug"]
    assert [line["event"] for line in told] == ["http_request"]
    assert told[0]["log_level"] == "info"
    assert told[0]["status"] == status
    assert told[0]["code"] == code
    assert told[0]["reason"] == answer.json()["error"]
    assert told[0]["request_id"] == answer.headers["x-request-id"]
    assert "secret words" not in str(lines)
    labels = {"route": "/api/generate", "code": code}
    registry = node.dependencies.metrics.registry
    assert registry.get_sample_value("llamesh_http_errors_total", labels) == 1


async def test_a_fault_of_the_node_is_a_warning(node, client):
    node.inference.error = RunnerDied("gone")
    with structlog.testing.capture_logs() as lines:
        await client.post("/api/generate", json={"model": "chat", "prompt": "x"})
        await trio.testing.wait_all_tasks_blocked()
    assert [line["log_level"] for line in lines if line["event"] == "http_request"] == ["warning"]


async def test_invented_methods_share_one_metric(node, client):
    for number in range(5):
        await client.request(f"MAKE{number}", "/nowhere")
    await trio.testing.wait_all_tasks_blocked()
    registry = node.dependencies.metrics.registry
    labels = {"route": "other", "method": "other", "status": "404"}
    assert registry.get_sample_value("llamesh_http_requests_total", labels) == 5
