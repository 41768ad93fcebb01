"""``/api/generate`` over real HTTP."""

from __future__ import annotations

import json


async def test_a_stream_is_one_object_per_line_and_ends_with_the_figures(client):
    answer = await client.post("/api/generate", json={"model": "chat", "prompt": "hi"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    created = "2026-09-21T14:13:20.123456789Z"
    assert lines == [
        {"model": "chat", "created_at": created, "response": "Hel", "done": False},
        {"model": "chat", "created_at": created, "response": "lo <&> ü", "done": False},
        {
            "model": "chat",
            "created_at": created,
            "response": "",
            "done": True,
            "done_reason": "stop",
            "context": [1, 2, 3],
            "total_duration": 50,
            "load_duration": 10,
            "prompt_eval_count": 7,
            "prompt_eval_duration": 20,
            "eval_count": 2,
            "eval_duration": 15,
        },
    ]


async def test_an_unstreamed_answer_is_one_object(client):
    answer = await client.post(
        "/api/generate", json={"model": "chat", "prompt": "hi", "stream": False}
    )
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.json()["response"] == "Hello <&> ü"
    assert answer.json()["done_reason"] == "stop"
