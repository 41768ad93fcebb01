"""A node's life: ready, draining, stopped, with the runners last."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from agent.node import STOP_MARGIN_S, Lifecycle, Node
from agent.settings import Settings

SETTINGS = Settings(home=Path("/h"), models=Path("/m"), node_name="n", grace_period_s=5.0)


class Parts:
    """An API whose streams end after ``drain_s``, and what happened in which order."""

    def __init__(self, drain_s: float) -> None:
        self.drain_s = drain_s
        self.events: list[str] = []

    @asynccontextmanager
    async def runners(self) -> AsyncGenerator[None]:
        self.events.append("runners started")
        try:
            yield
        finally:
            self.events.append("runners stopped")

    async def serve_api(self, node: Node, *, task_status: trio.TaskStatus[str]) -> None:
        assert node.lifecycle.state() == "starting"
        task_status.started("http://127.0.0.1:1")
        try:
            await node.lifecycle.stopping.wait()
            assert node.lifecycle.state() == "draining"
            await trio.sleep(self.drain_s)
            self.events.append("streams finished")
        except trio.Cancelled:
            self.events.append("streams cancelled")
            raise

    def node(self) -> Node:
        return Node(settings=SETTINGS, runners=self.runners(), serve_api=self.serve_api)


@pytest.mark.parametrize(
    ("drain_s", "took_s", "end"),
    [
        (0.0, 0.0, "streams finished"),
        (4.0, 4.0, "streams finished"),
        (100.0, 5.0 + STOP_MARGIN_S, "streams cancelled"),
    ],
)
async def test_streams_finish_within_the_grace_period_and_runners_stop_last(
    autojump_clock: trio.testing.MockClock, drain_s: float, took_s: float, end: str
) -> None:
    parts = Parts(drain_s)
    node = parts.node()
    async with trio.open_nursery() as nursery:
        assert await nursery.start(node.serve) == "http://127.0.0.1:1"
        assert node.lifecycle.state() == "serving"
        await trio.sleep(1000)
        began = trio.current_time()
        node.lifecycle.begin_stop()
    assert trio.current_time() - began == pytest.approx(took_s)
    assert parts.events[0] == "runners started"
    # Only what would outlast the grace period loses its runner.
    last = ["runners stopped", end] if end == "streams cancelled" else [end, "runners stopped"]
    assert parts.events[1:] == last


async def test_an_api_that_fails_stops_the_runners_too() -> None:
    parts = Parts(0)

    async def broken(node: Node, *, task_status: trio.TaskStatus[str]) -> None:
        task_status.started("http://127.0.0.1:1")
        raise RuntimeError("listener gone")

    node = Node(settings=SETTINGS, runners=parts.runners(), serve_api=broken)
    with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
        await node.serve()
    assert parts.events[-1] == "runners stopped"


async def test_a_stop_before_readiness_is_kept() -> None:
    lifecycle = Lifecycle()
    lifecycle.begin_stop()
    lifecycle.begin_serving()
    assert lifecycle.state() == "draining"
