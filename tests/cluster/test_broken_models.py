"""Files that are damaged, gone or too large: told in words, and the node goes on."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from agent import builtin
from tests.cluster.asking import CHAT, GREEDY, Asker, Json, asking, known, known_body
from tests.models.library import ModelLibrary
from tests.models.live_node import LiveNode
from tests.models.llama import TINY_LLAMA, write_llama
from tests.models.ollama_store import add_model

CONTEXT = 1_500_000_000
"""Tokens of a context that no machine holds: a thousand bytes each."""
BRIEF = GREEDY | {"num_predict": 2}


@pytest.fixture
def store(tmp_path: Path, model_library: ModelLibrary) -> Path:
    store = tmp_path / "store"
    add_model(store, CHAT, builtin.MODEL_PATH)
    add_model(store, "victim", model_library.llama)
    endless = replace(TINY_LLAMA, context=CONTEXT)
    path = tmp_path / "endless.gguf"
    write_llama(path, model_library.tokenizer, endless, name="endless", deviation=0.08)
    add_model(store, "endless", path)
    add_model(store, "fitted", model_library.embedding, adapter=model_library.adapter)
    return store


@pytest.fixture
def node(tmp_path: Path, store: Path) -> Iterator[LiveNode]:
    with LiveNode(home=tmp_path / "home", models=store) as live:
        yield live


def weights_of(store: Path, model: str) -> Path:
    manifest = store / "manifests/registry.ollama.ai/library" / model / "latest"
    layer = json.loads(manifest.read_text())["layers"][0]
    return store / "blobs" / layer["digest"].replace(":", "-")


async def assert_alive(asker: Asker) -> None:
    assert await asker.text("/api/chat", known_body("count-10")) == known("count-10")[1]
    assert asker.log_count("Traceback") == 0, asker.node.log_tail()


async def refusal(asker: Asker, body: Json, path: str = "/api/generate") -> tuple[int, str]:
    """Status and text; the same whether a stream was asked for or not."""
    whole = await asker.post(path, body | {"stream": False})
    streamed = await asker.post(path, body)
    assert streamed.status_code == whole.status_code, (whole.text, streamed.text)
    assert streamed.json()["error"] == whole.json()["error"]
    return whole.status_code, whole.json()["error"]


async def test_a_truncated_file_is_refused_and_named(node: LiveNode, store: Path) -> None:
    weights = weights_of(store, "victim")
    body = {"model": "victim", "prompt": "Hi", "options": BRIEF}
    async with asking(node) as asker:
        os.truncate(weights, weights.stat().st_size // 2)
        status, text = await refusal(asker, body)
        assert status == 500
        assert text.startswith("a file of model 'victim' is damaged: ")
        assert "beyond the file's" in text
        assert (await asker.http.get("/api/tags")).status_code == 200
        await assert_alive(asker)


async def test_a_file_truncated_under_its_runner_ends_neither_agent_nor_others(
    node: LiveNode, store: Path
) -> None:
    body = {"model": "victim", "prompt": "Hi", "options": BRIEF}
    async with asking(node) as asker:
        await asker.generate(**body)
        os.truncate(weights_of(store, "victim"), 4096)
        await asker.post("/api/generate", body)
        await assert_alive(asker)


async def test_a_deleted_file_is_told_and_found_again(node: LiveNode, store: Path) -> None:
    weights = weights_of(store, "victim")
    body = {"model": "victim", "prompt": "Hi", "options": BRIEF}
    async with asking(node) as asker:
        hidden = weights.with_name("elsewhere")
        weights.rename(hidden)
        status, text = await refusal(asker, body)
        digest = weights.name.replace("-", ":")
        assert (status, text) == (404, f'blob "{digest}" not found')
        names = [row["name"] for row in (await asker.http.get("/api/tags")).json()["models"]]
        assert f"{CHAT}:latest" in names
        await assert_alive(asker)
        hidden.rename(weights)
        assert (await asker.generate(**body))["done"]


async def test_a_failing_load_is_told_with_its_reason(node: LiveNode) -> None:
    async with asking(node) as asker:
        status, text = await refusal(asker, {"model": "fitted", "input": "Hi"}, "/api/embed")
        assert status == 500
        assert text.startswith("llama-server process has terminated: ")
        assert "adapter" in text
        assert (await asker.http.get("/api/ps")).json()["models"] == []
        await assert_alive(asker)


async def test_a_runner_killed_while_it_loads_is_an_error_and_the_next_load_works(
    node: LiveNode,
) -> None:
    body = {"model": "victim", "prompt": "Hi", "stream": False, "options": BRIEF}
    answers: list[Json] = []

    async def ask(asker: Asker) -> None:
        answer = await asker.post("/api/generate", body)
        answers.append({"status": answer.status_code, **answer.json()})

    async with asking(node) as asker:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, asker)
            rows = await asker.until(lambda rows: rows and rows[0]["pid"])
            os.kill(rows[0]["pid"], signal.SIGKILL)
        assert answers[0]["status"] == 500
        assert answers[0]["error"].startswith("llama-server process has terminated: ")
        assert "SIGKILL" in answers[0]["error"]
        assert (await asker.generate(**body))["done"]


async def test_a_context_that_cannot_fit_is_refused_with_need_and_have(node: LiveNode) -> None:
    body = {"model": "endless", "prompt": "Hi", "options": BRIEF | {"num_ctx": CONTEXT}}
    async with asking(node) as asker:
        status, text = await refusal(asker, body)
        assert status == 500
        need, have = re.findall(r"([0-9.]+) GiB", text)[:2]
        assert float(need) > float(have) > 0, text
        assert "endless:latest does not fit" in text
        small = body | {"options": BRIEF | {"num_ctx": 512}}
        assert (await asker.generate(**small))["done"]
        await assert_alive(asker)
