"""The official client, sync and async, against the application."""

from __future__ import annotations

import asyncio
from functools import partial

import ollama
import pytest
import trio

from agent.inference.errors import RunnerDied
from agent.inference.request import TextDelta


async def in_thread(function):
    return await trio.to_thread.run_sync(function)


async def test_the_sync_client_streams_and_collects(node):
    def calls():
        with ollama.Client(host=node.url) as client:
            whole = client.generate(model="chat", prompt="x")
            parts = [
                part.response for part in client.generate(model="chat", prompt="x", stream=True)
            ]
            message = {"role": "user", "content": "x"}
            chat = client.chat(model="chat", messages=[message])
            talk = [
                part.message.content
                for part in client.chat(model="chat", messages=[message], stream=True)
            ]
            return whole, parts, chat, talk, client.list(), client.ps(), client.show("chat")

    whole, parts, chat, talk, listed, ps, shown = await in_thread(calls)
    assert whole.response == chat.message.content == "Hello <&> ü"
    assert parts == talk == ["Hel", "lo <&> ü", ""]
    assert (whole.done, whole.done_reason, list(whole.context)) == (True, "stop", [1, 2, 3])
    assert len(listed.models) == 3
    assert ps.models == []
    assert shown.capabilities == ["completion"]


async def test_the_async_client_streams_and_collects(node):
    async def calls():
        async with ollama.AsyncClient(host=node.url) as client:
            stream = await client.generate(model="chat", prompt="x", stream=True)
            parts = [part.response async for part in stream]
            many = await asyncio.gather(
                *(client.generate(model="chat", prompt=str(number)) for number in range(20))
            )
            vectors = await client.embed(model="embedder", input=["a", "b"])
            return parts, many, vectors

    parts, many, vectors = await in_thread(partial(asyncio.run, calls()))
    assert parts == ["Hel", "lo <&> ü", ""]
    assert {answer.response for answer in many} == {"Hello <&> ü"}
    assert len(vectors.embeddings) == 2


async def test_the_client_changes_models(node):
    def calls():
        with ollama.Client(host=node.url) as client:
            steps = [step.status for step in client.create("new", from_="chat", stream=True)]
            client.copy("new", "newer")
            client.delete("newer")
            return steps, [model.model for model in client.list().models]

    steps, names = await in_thread(calls)
    assert steps[-1] == "success"
    assert "new:latest" in names
    assert "newer:latest" not in names


async def test_the_client_raises_the_servers_words(node):
    def calls():
        with ollama.Client(host=node.url) as client:
            with pytest.raises(ollama.ResponseError) as early:
                client.generate(model="nope", prompt="x")
            with pytest.raises(ollama.ResponseError) as late:
                list(client.generate(model="chat", prompt="x", stream=True))
            return early.value, late.value

    async def script(_):
        yield TextDelta("a")
        raise RunnerDied

    node.inference.script = script
    early, late = await in_thread(calls)
    assert (early.status_code, early.error) == (404, "model 'nope' not found")
    assert late.error.startswith("model runner has unexpectedly stopped")
