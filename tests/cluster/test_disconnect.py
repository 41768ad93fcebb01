"""Clients that leave: their slot, their place in the queue and their load are given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.cluster.asking import CHAT, GREEDY, Asker, Json, asking, halted, known, known_body
from tests.models.live_node import LiveNode

QUICK_S = 5.0
"""Far below what the abandoned answers would take, far above what giving up takes."""
ENDLESS: Json = {
    "model": CHAT,
    "prompt": "Count to one hundred.",
    "format": {"type": "array", "items": {"enum": ["alpha", "beta"]}, "minItems": 10_000},
    "options": GREEDY | {"num_predict": -1},
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[LiveNode]:
    """A node that answers one request at a time."""
    home = tmp_path_factory.mktemp("disconnect") / "home"
    environment = {"OLLAMA_NUM_PARALLEL": "1"}
    with LiveNode(home=home, models=model_store, environment=environment) as live:
        yield live


async def test_leaving_in_mid_stream_lets_the_next_in_line_in(node: LiveNode) -> None:
    async with asking(node) as asker, trio.open_nursery() as nursery:
        answers: list[str] = []

        async def wait_in_line() -> None:
            answers.append(await asker.text("/api/chat", known_body("count-10")))

        async with asker.stream("/api/generate", ENDLESS) as stream:
            await stream.line()
            nursery.start_soon(wait_in_line)
            await asker.until_busy(slots=1, waiting=1)
            assert answers == []
        with trio.fail_after(QUICK_S):
            await asker.until_true(lambda: answers)
            await asker.until_busy(slots=0)
        assert answers == [known("count-10")[1]]


async def test_leaving_the_line_frees_its_place(node: LiveNode) -> None:
    async with asking(node) as asker, asker.stream("/api/generate", ENDLESS) as stream:
        await stream.line()
        with trio.CancelScope() as waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(asker.post, "/api/generate", ENDLESS)
                await asker.until_busy(slots=1, waiting=1)
                waiting.cancel()
        with trio.fail_after(QUICK_S):
            await asker.until_busy(slots=1, waiting=0)


async def leave_when(asker: Asker, body: Json, wanted: Callable[[list[Json]], Any]) -> None:
    """Send a request and drop its connection once ``wanted`` is true of ``/api/ps``."""
    with trio.CancelScope() as sending:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asker.post, "/api/generate", body)
            await asker.until(wanted)
            sending.cancel()


async def test_leaving_during_the_prompt_ends_its_evaluation(node: LiveNode) -> None:
    body = {
        "model": CHAT, "prompt": "one two three " * 600, "raw": True, "stream": False,
        "options": GREEDY | {"num_predict": -1, "num_batch": 32},
    }  # fmt: skip
    async with asking(node) as asker:
        await asker.chat(**known_body("count-10"))
        cancelled = asker.log_count("outcome=cancelled")
        computed = await asker.figure("llamesh_completion_tokens_total")
        with halted((await asker.runner())["pid"]):
            await leave_when(asker, body, lambda rows: rows and rows[0]["slots_available"] == 0)
        with trio.fail_after(QUICK_S):
            await asker.until_busy(slots=0)
            await asker.until_true(lambda: asker.log_count("outcome=cancelled") > cancelled)
        assert await asker.figure("llamesh_completion_tokens_total") == computed
        assert await asker.text("/api/chat", known_body("count-10")) == known("count-10")[1]


async def test_leaving_during_a_load_gives_the_load_up(node: LiveNode) -> None:
    body = {"model": "tiny-llama", "prompt": "Hi", "options": {"num_predict": 1}}
    async with asking(node) as asker:
        await asker.generate(model=CHAT, prompt="", keep_alive=0)
        await asker.until(lambda rows: rows == [])
        row: Json = {}
        with trio.CancelScope() as sending:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(asker.post, "/api/generate", body)
                (row,) = await asker.until(lambda rows: rows and rows[0]["pid"])
                with halted(row["pid"]):
                    assert (await asker.runners())[0]["state"] == "loading"
                    sending.cancel()
        with trio.fail_after(QUICK_S):
            await asker.until(lambda rows: rows == [])
        assert not psutil.pid_exists(row["pid"])
        assert (await asker.generate(**body))["done"]
