"""Bodies in every spelling Go's decoder takes."""

from __future__ import annotations

import json
import threading
from typing import Any

import msgspec
import trio
from hypothesis import given
from hypothesis import strategies as st

from api.errors import ApiError
from api.exchange import Exchange
from api.json_body import BodyReader
from api.ollama.bodies import ChatBody, GenerateBody


def exchange() -> Exchange:
    async def nothing(*_):
        raise AssertionError("no input or output here")

    scope: Any = {
        "type": "http", "method": "POST", "path": "/x", "query_string": b"", "client": None,
        "state": {},
    }  # fmt: skip
    return Exchange(scope, nothing, nothing, request_id="r", answer_headers=[], headers={})


def ignored(target: Exchange) -> list[str]:
    return [
        name
        for key, value in target.answer_headers
        if key == b"x-llamesh-ignored"
        for name in value.decode().split(", ")
    ]


bodies = st.fixed_dictionaries(
    {},
    optional={
        "model": st.text(max_size=10),
        "prompt": st.text(max_size=10),
        "stream": st.booleans(),
        "raw": st.booleans(),
        "context": st.lists(st.integers(0, 2**31), max_size=4),
        "options": st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=3),
        "top_logprobs": st.integers(-5, 30),
        "_debug_render_only": st.booleans(),
    },
)


@given(bodies, st.randoms(use_true_random=False))
def test_spelling_nulls_and_unknown_keys_change_nothing(body, random):
    spelled = {}
    for key, value in body.items():
        case = "".join(random.choice((letter.upper(), letter.lower())) for letter in key)
        spelled[case] = value
    spelled |= {"system": None, "Surprise": 1}
    reader = BodyReader(GenerateBody)
    target = exchange()
    assert reader.decode(json.dumps(spelled).encode(), target) == msgspec.convert(
        body, GenerateBody
    )
    assert ignored(target) == ["Surprise"]


@given(st.binary(max_size=60))
def test_any_bytes_are_a_body_or_a_400(data):
    target = exchange()
    try:
        outcome = BodyReader(ChatBody).decode(data, target)
    except ApiError as error:
        outcome = error.status
    assert outcome == 400 or isinstance(outcome, ChatBody)


def test_nested_unknown_keys_are_named_with_their_place():
    target = exchange()
    data = b'{"messages":[{"role":"a","x":1},{"Tool_Calls":[{"function":{"y":1}}]}]}'
    body = BodyReader(ChatBody).decode(data, target)
    assert [message.role for message in body.messages or ()] == ["a", ""]
    assert ignored(target) == ["messages.x", "messages.tool_calls.function.y"]


async def test_other_requests_go_on_while_a_large_body_is_read(node, client, monkeypatch):
    at_work = trio.Event()
    go_on = threading.Event()
    token = trio.lowlevel.current_trio_token()
    decode = BodyReader.decode

    def slowly(reader, data, exchange):
        if len(data) > 1 << 20:
            token.run_sync_soon(at_work.set)
            assert go_on.wait(10)
        return decode(reader, data, exchange)

    monkeypatch.setattr(BodyReader, "decode", slowly)
    answers = []

    async def ask():
        body = {"model": "chat", "prompt": "x" * (1 << 20), "stream": False}
        answers.append(await client.post("/api/generate", json=body))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await at_work.wait()
            assert (await client.get("/api/version")).status_code == 200
            go_on.set()
    assert answers[0].status_code == 200
    assert node.inference.requests[0].prompt.text == "x" * (1 << 20)
