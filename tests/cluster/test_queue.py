"""More requests than a node wants to hold: refused in words, and nobody else is harmed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from tests.cluster.asking import CHAT, GREEDY, Asker, Json, asking, halted, known, known_body
from tests.models.live_node import LiveNode

BUSY = "server busy, please try again.  maximum pending requests exceeded"
PLACES = 3


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[LiveNode]:
    home = tmp_path_factory.mktemp("queue") / "home"
    environment = {"OLLAMA_NUM_PARALLEL": "1", "OLLAMA_MAX_QUEUE": str(PLACES)}
    with LiveNode(home=home, models=model_store, environment=environment) as live:
        yield live


def assert_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503
    assert answer.json()["error"] == BUSY
    assert 1 <= int(answer.headers["retry-after"]) <= 60


async def refused_everywhere(asker: Asker) -> None:
    chat = known_body("count-10")
    for path, body in (
        ("/api/chat", chat),
        ("/api/chat", chat | {"stream": False}),
        ("/api/generate", {"model": CHAT, "prompt": "Hi"}),
        ("/api/generate", {"model": "tiny-llama", "prompt": "", "options": GREEDY}),
        ("/api/embed", {"model": CHAT, "input": "Hi"}),
    ):
        assert_refused(await asker.post(path, body))


async def test_a_full_queue_refuses_and_all_who_were_let_in_are_served(node: LiveNode) -> None:
    answers: list[str] = []

    async def ask(asker: Asker, **more: Json) -> None:
        answers.append(await asker.text("/api/chat", known_body("count-20", **more)))

    async with asking(node) as asker:
        await asker.chat(**known_body("count-20"))
        async with trio.open_nursery() as nursery:
            with halted((await asker.runner())["pid"]):
                nursery.start_soon(ask, asker)
                await asker.until_busy(slots=1, waiting=0)
                for place in range(PLACES):
                    nursery.start_soon(ask, asker)
                    await asker.until_busy(slots=1, waiting=place + 1)
                await refused_everywhere(asker)
        assert answers == [known("count-20")[1]] * (1 + PLACES)
        assert await asker.figure("llamesh_queue_waiting") == 0
        await asker.chat(**known_body("count-20"))


async def test_the_queue_counts_those_who_wait_for_a_load(node: LiveNode) -> None:
    answers: list[str] = []

    async def ask(asker: Asker) -> None:
        answers.append(await asker.text("/api/chat", known_body("count-10")))

    async with asking(node) as asker:
        await asker.generate(model=CHAT, prompt="", keep_alive=0)
        await asker.until(lambda rows: rows == [])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, asker)
            (row,) = await asker.until(lambda rows: rows and rows[0]["pid"])
            with halted(row["pid"]):
                for place in range(1, PLACES):
                    nursery.start_soon(ask, asker)
                    await asker.until(lambda rows, place=place: rows[0]["waiting"] == place + 1)
                await refused_everywhere(asker)
        assert answers == [known("count-10")[1]] * PLACES
