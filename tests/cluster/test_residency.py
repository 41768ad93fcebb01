"""Which runners live, for how long, and for whom: seen from outside."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.cluster.asking import CHAT, GREEDY, Asker, Json, asking, halted, known, known_body
from tests.models.live_node import LiveNode

OTHER = "tiny-llama"
SLOTS = 3


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[LiveNode]:
    """A node that keeps one model at a time, with three slots."""
    home = tmp_path_factory.mktemp("residency") / "home"
    environment = {"OLLAMA_MAX_LOADED_MODELS": "1", "OLLAMA_NUM_PARALLEL": str(SLOTS)}
    with LiveNode(home=home, models=model_store, environment=environment) as live:
        yield live


def brief(model: str, **more: Any) -> Json:
    return {"model": model, "prompt": "Hello.", "options": GREEDY | {"num_predict": 2}, **more}


def seconds_left(row: Json) -> float:
    return (datetime.fromisoformat(row["expires_at"]) - datetime.now(UTC)).total_seconds()


async def test_two_models_take_turns_in_one_place(node: LiveNode) -> None:
    most = 0
    done = trio.Event()
    served: list[str] = []

    async def ask(asker: Asker, model: str) -> None:
        for _ in range(2):
            await asker.generate(**brief(model))
            served.append(model)

    async def watch(asker: Asker) -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len([row for row in await asker.runners() if row["pid"]]))
            await trio.sleep(0.05)

    async with asking(node) as asker, trio.open_nursery() as watching:
        watching.start_soon(watch, asker)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for model in (CHAT, OTHER, CHAT, OTHER):
                    nursery.start_soon(ask, asker, model)
        done.set()
    assert sorted(served) == sorted([CHAT, OTHER] * 4)
    assert most == 1


async def test_a_busy_runner_is_waited_for_and_not_evicted(node: LiveNode) -> None:
    order: list[str] = []

    async def ask(asker: Asker, body: Json, path: str) -> None:
        order.append(await asker.text(path, body))

    async with asking(node) as asker, trio.open_nursery() as nursery:
        await asker.chat(**known_body("count-100"))
        pid = (await asker.runner())["pid"]
        evicted = asker.log_count("runner_evicted")
        with halted(pid):
            nursery.start_soon(ask, asker, known_body("count-100"), "/api/chat")
            await asker.until_busy(slots=1)
            nursery.start_soon(ask, asker, brief(OTHER), "/api/generate")
            await asker.until_true(lambda: asker.log_count("runner_evicted") > evicted)
            assert psutil.pid_exists(pid)
            assert (await asker.runner())["pid"] == pid
    assert order[0] == known("count-100")[1]
    assert len(order) == 2


async def test_keep_alive_is_seen_in_ps_and_kept(node: LiveNode) -> None:
    async with asking(node) as asker:
        await asker.generate(**brief(CHAT))
        assert 290 < seconds_left(await asker.runner()) <= 300
        await asker.generate(**brief(CHAT, keep_alive="90m"))
        assert 5390 < seconds_left(await asker.runner()) <= 5400
        await asker.generate(**brief(CHAT, keep_alive=-1))
        assert seconds_left(await asker.runner()) > 10 * 365 * 86_400
        pid = (await asker.runner())["pid"]
        await asker.generate(**brief(CHAT, keep_alive="300ms"))
        with trio.fail_after(10):
            await asker.until(lambda rows: rows == [])
        assert not psutil.pid_exists(pid)
        await asker.generate(**brief(CHAT, keep_alive=0))
        with trio.fail_after(10):
            await asker.until(lambda rows: rows == [])


async def test_unloading_waits_for_the_answer_in_progress(node: LiveNode) -> None:
    texts: list[str] = []

    async def ask(asker: Asker) -> None:
        texts.append(await asker.text("/api/chat", known_body("count-100")))

    async with asking(node) as asker, trio.open_nursery() as nursery:
        await asker.chat(**known_body("count-10"))
        with halted((await asker.runner())["pid"]):
            nursery.start_soon(ask, asker)
            await asker.until_busy(slots=1)
            unloaded = await asker.generate(model=CHAT, prompt="", keep_alive=0)
            assert unloaded["done_reason"] == "unload"
        await asker.until(lambda rows: rows == [])
    assert texts == [known("count-100")[1]]


async def test_slots_are_exactly_those_asked_for_and_contexts_reload_only_to_grow(
    node: LiveNode,
) -> None:
    async with asking(node) as asker:
        await asker.generate(model=OTHER, prompt="", options={"num_ctx": 1024})
        first = await asker.runner(OTHER)
        assert first["slots_total"] == SLOTS
        assert first["context_length"] == 1024
        answer = await asker.generate(**brief(OTHER, options=GREEDY | {"num_ctx": 256}))
        assert answer["load_duration"] < 0.3e9
        assert (await asker.runner(OTHER))["pid"] == first["pid"]
        await asker.generate(**brief(OTHER, options=GREEDY | {"num_ctx": 2048, "num_predict": 1}))
        grown = await asker.runner(OTHER)
        assert grown["pid"] != first["pid"]
        assert grown["context_length"] == 2048
        assert grown["slots_total"] == SLOTS


async def test_a_smaller_context_of_a_larger_runner_is_kept_to(node: LiveNode) -> None:
    """The request's own ``num_ctx`` counts, not what the runner happens to have."""
    long = "one two three " * 200
    async with asking(node) as asker:
        await asker.generate(model=OTHER, prompt="", options={"num_ctx": 2048})
        small = await asker.generate(
            model=OTHER, prompt=long, raw=True, options=GREEDY | {"num_ctx": 64, "num_predict": 1}
        )
        whole = await asker.generate(
            model=OTHER, prompt=long, raw=True, options=GREEDY | {"num_predict": 1}
        )
        assert small["prompt_eval_count"] < 64
        assert whole["prompt_eval_count"] > 200
