"""What a node costs that nobody uses, and how soon it answers. Bounds are thrice the goals."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.models.live_node import LiveNode

SLACK = 3
RESIDENT_GOAL_BYTES = 150_000_000
CPU_GOAL = 0.02
ANSWER_GOAL_S = 2.0
WATCHED_S = 3.0


def seconds_to_first_answer(node: LiveNode) -> float:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    started_s = time.perf_counter()
    node.start()
    while time.perf_counter() - started_s < node.ready_limit_s:
        with suppress(urllib.error.URLError), opener.open(f"{node.url}/", timeout=2) as answer:
            assert answer.read() == b"Ollama is running"
            return time.perf_counter() - started_s
        time.sleep(0.01)
    raise AssertionError(node.log_tail())


def test_an_idle_node_is_small_quiet_and_soon_there(
    tmp_path: Path, model_store: Path, record_property: Callable[[str, object], None]
) -> None:
    node = LiveNode(home=tmp_path / "home", models=model_store)
    try:
        answer_s = seconds_to_first_answer(node)
        node.wait_ready()
        process = psutil.Process(node.pid)
        assert process.children(recursive=True) == []
        before = process.cpu_times()
        # The measurement itself: CPU time over a stretch in which nothing is asked.
        time.sleep(WATCHED_S)
        after = process.cpu_times()
        cpu = (after.user + after.system - before.user - before.system) / WATCHED_S
        resident_bytes = process.memory_info().rss
    finally:
        node.stop()
    record_property("answer_s", answer_s)
    record_property("cpu", cpu)
    record_property("resident_bytes", resident_bytes)
    print(f"first answer {answer_s:.2f} s, idle {resident_bytes / 1e6:.0f} MB, {cpu:.2%} CPU")
    assert answer_s < ANSWER_GOAL_S * SLACK
    assert resident_bytes < RESIDENT_GOAL_BYTES
    assert cpu < CPU_GOAL * SLACK


@pytest.mark.parametrize("path", ["/", "/api/version", "/healthz"])
def test_a_fresh_node_answers_simple_questions_without_a_runner(node: LiveNode, path: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{node.url}{path}", timeout=5) as answer:
        assert answer.status == 200
