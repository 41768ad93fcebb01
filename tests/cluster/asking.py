"""Asking a live node and looking at its runners, for trio tests."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from typing import Any, Final

import httpx
import trio

from agent import builtin
from tests.models.live_node import LiveNode

LIMIT_S: Final = 60.0
POLL_S: Final = 0.02
CHAT: Final = builtin.NAME
GREEDY: Final = {"temperature": 0}

Json = dict[str, Any]


@cache
def known_answers() -> Mapping[str, Json]:
    """The trained model's recorded greedy answers by name."""
    recorded = json.loads(builtin.ANSWERS_PATH.read_text(encoding="utf-8"))
    return {case["name"]: case for case in recorded["answers"]}


def known(name: str) -> tuple[list[Json], str]:
    """Messages and the greedy answer to them."""
    case = known_answers()[name]
    return case["messages"], case["answer"]


def known_body(name: str, **more: Any) -> Json:
    """A greedy chat request whose answer is ``known(name)``."""
    messages, _ = known(name)
    return {"model": CHAT, "messages": messages, "options": GREEDY, **more}


def text_of(lines: list[Json]) -> str:
    """The answer's text in whole or streamed objects of either route."""
    assert not any("error" in line for line in lines), lines[-1]
    return "".join(
        line["message"]["content"] if "message" in line else line["response"] for line in lines
    )


class Stream:
    """An answer being read line by line; ``seen`` keeps what was read."""

    def __init__(self, status: int, lines: trio.MemoryReceiveChannel[Json]) -> None:
        self.status = status
        self.seen: list[Json] = []
        self._lines = lines

    async def line(self) -> Json:
        self.seen.append(await self._lines.receive())
        return self.seen[-1]

    async def rest(self) -> list[Json]:
        """Read to the end; returns everything seen since the start."""
        async for line in self._lines:
            self.seen.append(line)
        return self.seen


class Asker:
    """HTTP towards one node. Every wait in here ends after ``LIMIT_S`` with an error."""

    def __init__(self, node: LiveNode, client: httpx.AsyncClient) -> None:
        self.node = node
        self.http = client

    async def post(self, path: str, body: Json) -> httpx.Response:
        return await self.http.post(path, json=body)

    async def ask(self, path: str, body: Json) -> Json:
        """A whole answer; fails with the error's text when there is none."""
        answer = await self.post(path, {"stream": False, **body})
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.json()

    async def chat(self, **body: Any) -> Json:
        return await self.ask("/api/chat", body)

    async def generate(self, **body: Any) -> Json:
        return await self.ask("/api/generate", body)

    async def text(self, path: str, body: Json) -> str:
        return text_of([await self.ask(path, body)])

    @asynccontextmanager
    async def stream(self, path: str, body: Json) -> AsyncGenerator[Stream]:
        async with self.http.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise AssertionError((response.status_code, response.text))
            sender, receiver = trio.open_memory_channel[Json](math.inf)

            async def read() -> None:
                # In a task of its own that waits nowhere else, since httpx's iterators may only
                # be left by their end or by cancellation.
                with sender:
                    async for line in response.aiter_lines():
                        sender.send_nowait(json.loads(line))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                yield Stream(response.status_code, receiver)
                nursery.cancel_scope.cancel()

    async def runners(self) -> list[Json]:
        return (await self.http.get("/api/ps")).json()["models"]

    async def runner(self, model: str = CHAT) -> Json:
        """The one live runner of ``model``."""
        name = model if ":" in model else f"{model}:latest"
        (row,) = [row for row in await self.runners() if row["name"] == name]
        return row

    async def until_true(self, wanted: Callable[[], Any]) -> None:
        """Wait for something that only looking can tell, such as a line of the log."""
        with trio.fail_after(LIMIT_S):
            while not wanted():  # noqa: ASYNC110
                await trio.sleep(POLL_S)

    async def until(self, wanted: Callable[[list[Json]], Any]) -> list[Json]:
        """Look at ``/api/ps`` until ``wanted`` is true of its rows; returns them."""
        rows: list[Json] = []
        with trio.move_on_after(LIMIT_S):
            while True:
                rows = await self.runners()
                if wanted(rows):
                    return rows
                await trio.sleep(POLL_S)
        raise AssertionError(f"not seen within {LIMIT_S} s, last were {rows}")

    async def until_busy(self, slots: int = 1, waiting: int = 0) -> Json:
        """Wait until exactly so many slots are taken and requests wait, on the only runner."""

        def taken(rows: list[Json]) -> bool:
            return len(rows) == 1 and (
                rows[0]["slots_total"] - rows[0]["slots_available"],
                rows[0]["waiting"],
            ) == (slots, waiting)

        return (await self.until(taken))[0]

    def log_count(self, words: str) -> int:
        """How often ``words`` stand in the node's log so far."""
        return self.node.log_path.read_text(errors="replace").count(words)

    async def figure(self, name: str) -> float:
        """The sum over one Prometheus metric's samples."""
        text = (await self.http.get("/metrics", headers={"accept": "text/plain"})).text
        lines = [line for line in text.splitlines() if line.startswith((name + " ", name + "{"))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@asynccontextmanager
async def asking(node: LiveNode) -> AsyncGenerator[Asker]:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(
        base_url=node.url, timeout=LIMIT_S, trust_env=False, limits=limits
    ) as client:
        yield Asker(node, client)


@contextmanager
def halted(pid: int) -> Generator[None]:
    """A process that does nothing inside, and goes on afterwards unless it has ended."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
