"""A runner that dies or hangs under a request, as its client and its neighbours see it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import trio

from tests.cluster.asking import CHAT, GREEDY, Asker, Json, asking, halted, known, text_of
from tests.conftest import NodeFactory
from tests.models.live_node import LiveNode

RUNNER_DIED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an "
    "internal error, check ollama server logs for details"
)
ATTEMPTS = 5
STORY, STORY_TEXT = known("other-76")
NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 40, "maxItems": 40}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[LiveNode]:
    home = tmp_path_factory.mktemp("crash") / "home"
    with LiveNode(home=home, models=model_store) as live:
        yield live


async def answer_over_a_crash(asker: Asker, path: str, body: Json, *, after: int) -> list[Json]:
    """Kill the runner once ``after`` lines have come; returns the whole stream.

    A runner can have drawn the whole answer by the time its first lines are read, so an attempt
    that killed too late is repeated.
    """
    for _ in range(ATTEMPTS):
        await asker.ask(path, body)  # loaded, so that the pid is known beforehand
        first = await asker.runner(body["model"])
        lost = asker.log_count("runner_lost")
        async with asker.stream(path, body) as stream:
            for _ in range(after):
                assert (await stream.line())["done"] is False
            os.kill(first["pid"], signal.SIGKILL)
            lines = await stream.rest()
        if asker.log_count("runner_lost") > lost:
            return lines
    raise AssertionError(f"{ATTEMPTS} answers ended before the runner could be killed")


def assert_whole(lines: list[Json]) -> None:
    assert [line.get("error") for line in lines if "error" in line] == []
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


@pytest.mark.parametrize("after", [1, 12])
async def test_a_stream_goes_on_over_a_crash_and_gives_the_known_answer(
    node: LiveNode, after: int
) -> None:
    async with asking(node) as asker:
        body = body_of_story()
        whole = await asker.chat(**body)
        assert text_of([whole]) == STORY_TEXT
        lines = await answer_over_a_crash(asker, "/api/chat", body, after=after)
        assert_whole(lines)
        assert text_of(lines) == STORY_TEXT
        last = lines[-1]
        for figure in ("done_reason", "eval_count", "prompt_eval_count"):
            assert last[figure] == whole[figure]
        assert last["total_duration"] >= last["eval_duration"] > 0


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(
            {"options": {"temperature": 1.5, "seed": 11, "num_predict": 300}}, id="seeded"
        ),
        pytest.param({"options": GREEDY | {"num_predict": 400}, "format": NUMBERS}, id="schema"),
        pytest.param(
            {
                "options": {"temperature": 1.2, "seed": 3, "num_predict": 400, "top_p": 0.95},
                "format": NUMBERS,
            },
            id="seeded-schema",
        ),
    ],
)
async def test_what_was_asked_of_an_answer_holds_over_a_crash(node: LiveNode, more: Json) -> None:
    body = {"model": CHAT, "prompt": "Count to one hundred.", **more}
    async with asking(node) as asker:
        whole = await asker.generate(**body)
        lines = await answer_over_a_crash(asker, "/api/generate", body, after=4)
        assert_whole(lines)
        assert text_of(lines) == whole["response"]
        for figure in ("done_reason", "eval_count", "prompt_eval_count", "context"):
            assert lines[-1][figure] == whole[figure]


async def test_logprobs_have_neither_gap_nor_repeat_over_a_crash(node: LiveNode) -> None:
    body = {
        "model": CHAT, "messages": STORY, "options": GREEDY, "logprobs": True, "top_logprobs": 1,
    }  # fmt: skip
    async with asking(node) as asker:
        whole = await asker.chat(**body)
        lines = await answer_over_a_crash(asker, "/api/chat", body, after=3)
        assert_whole(lines)
        tokens = [entry["token"] for line in lines for entry in line.get("logprobs", ())]
        assert tokens == [entry["token"] for entry in whole["logprobs"]]


async def test_a_request_that_loses_two_runners_ends_with_an_error_line(node: LiveNode) -> None:
    long = {"type": "array", "items": {"type": "integer"}, "minItems": 500}
    body = {
        "model": CHAT, "prompt": "Count to one hundred.", "format": long,
        "options": GREEDY | {"num_predict": 1500},
    }  # fmt: skip
    async with asking(node) as asker:
        whole = await asker.generate(**body)
        assert whole["eval_count"] == 1500
        first = (await asker.runner())["pid"]
        async with asker.stream("/api/generate", body) as stream:
            await stream.line()
            os.kill(first, signal.SIGKILL)
            rows = await asker.until(
                lambda rows: any(
                    row["name"].startswith(CHAT)
                    and row["state"] == "ready"
                    and row["pid"] not in (0, first)
                    for row in rows
                )
            )
            second = next(row["pid"] for row in rows if row["name"].startswith(CHAT))
            os.kill(second, signal.SIGKILL)
            lines = await stream.rest()
        assert stream.status == 200
        assert lines[-1]["error"] == RUNNER_DIED
        assert not any(line.get("done") for line in lines)
        assert whole["response"].startswith(text_of(lines[:-1]))
        # The next request is as good as ever.
        assert text_of([await asker.chat(**body_of_story())]) == STORY_TEXT


async def test_all_streams_of_a_dying_runner_go_on(node: LiveNode) -> None:
    answers: dict[int, str] = {}
    started = trio.Event()

    async def read(asker: Asker, number: int) -> None:
        async with asker.stream("/api/chat", body_of_story()) as stream:
            await stream.line()
            started.set()
            answers[number] = text_of(await stream.rest())

    async with asking(node) as asker:
        await asker.chat(**body_of_story())
        first = (await asker.runner())["pid"]
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(read, asker, number)
            await started.wait()
            os.kill(first, signal.SIGKILL)
        assert (await asker.runner())["pid"] != first
    assert answers == dict.fromkeys(range(6), STORY_TEXT)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/api/chat", {"model": CHAT, "messages": STORY, "options": GREEDY}, id="chat"),
        pytest.param("/api/embed", {"model": "tiny-embedding", "input": ["a b", "c"]}, id="embed"),
    ],
)
async def test_a_runner_that_dies_before_its_first_word_is_not_noticed(
    node: LiveNode, path: str, body: Json
) -> None:
    volatile = {"created_at", "total_duration", "load_duration", "prompt_eval_duration"}
    answers: list[Json] = []

    async def ask(asker: Asker) -> None:
        answers.append(await asker.ask(path, body))

    async with asking(node) as asker:
        await ask(asker)
        first = await asker.runner(body["model"])
        async with trio.open_nursery() as nursery:
            with halted(first["pid"]):
                nursery.start_soon(ask, asker)
                await asker.until(
                    lambda rows: any(
                        row["pid"] == first["pid"] and row["slots_available"] < row["slots_total"]
                        for row in rows
                    )
                )
                os.kill(first["pid"], signal.SIGKILL)
        assert (await asker.runner(body["model"]))["pid"] != first["pid"]
    for answer in answers:
        for figure in (*volatile, "eval_duration"):
            answer.pop(figure, None)
    assert answers[0] == answers[1]


async def test_an_answer_whose_model_vanished_with_its_runner_ends_in_words(
    start_node: NodeFactory, private_store: Path
) -> None:
    node = start_node()
    blobs = private_store / "blobs"
    async with asking(node) as asker:
        await asker.chat(**body_of_story())
        first = (await asker.runner())["pid"]
        async with asker.stream("/api/generate", endless()) as stream:
            await stream.line()
            blobs.rename(blobs.with_name("elsewhere"))
            os.kill(first, signal.SIGKILL)
            lines = await stream.rest()
        assert lines[-1]["error"].startswith("llama-server process has terminated: ")
        assert "No such file" in lines[-1]["error"]
        blobs.with_name("elsewhere").rename(blobs)
        assert text_of([await asker.chat(**body_of_story())]) == STORY_TEXT


async def test_a_hung_runner_delays_no_other_model_and_ends_with_its_node(
    start_node: NodeFactory,
) -> None:
    node = start_node("--grace-period-s", "0.5")
    async with asking(node) as asker, trio.open_nursery() as nursery:
        await asker.chat(**body_of_story())
        hung = await asker.runner()
        os.kill(hung["pid"], signal.SIGSTOP)
        nursery.start_soon(send_in_vain, asker)
        await asker.until_busy()
        answer = await asker.generate(
            model="tiny-llama", prompt="Hello", options=GREEDY | {"num_predict": 3}
        )
        assert answer["done"]
        with trio.fail_after(20):
            assert await trio.to_thread.run_sync(node.stop) == 0
    assert not psutil.pid_exists(hung["pid"])


async def test_a_hung_runner_that_revives_finishes_its_answer(node: LiveNode) -> None:
    async with asking(node) as asker:
        await asker.chat(**body_of_story())
        async with asker.stream("/api/chat", body_of_story()) as stream:
            await stream.line()
            with halted((await asker.runner())["pid"]):
                other = await asker.generate(
                    model="tiny-llama", prompt="Hello", options=GREEDY | {"num_predict": 3}
                )
                assert other["done"]
            assert text_of(await stream.rest()) == STORY_TEXT


def endless() -> Json:
    return {
        "model": CHAT,
        "prompt": "Count to one hundred.",
        "format": {"type": "array", "items": {"enum": ["alpha", "beta"]}, "minItems": 10_000},
        "options": GREEDY | {"num_predict": -1},
    }


def body_of_story() -> Json:
    return {"model": CHAT, "messages": STORY, "options": GREEDY}


async def send_in_vain(asker: Asker) -> None:
    with suppress(httpx.HTTPError):
        await asker.post("/api/chat", body_of_story())
