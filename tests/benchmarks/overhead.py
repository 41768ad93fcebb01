"""What the agent itself costs: per request, at rest, and at the start."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Final

import psutil

from tests.benchmarks.model import draw_prompt
from tests.benchmarks.sides import Load, Node, Runner, Setting, warm
from tests.benchmarks.statistics import middle
from tests.benchmarks.streams import post, run_streams
from tests.models.live_node import LiveNode

REQUESTS_PER_ROUND: Final = 20
IDLE_SETTLE_S: Final = 2.0
IDLE_S: Final = 10.0


def added_ms(node: Node, runner: Runner, *, rounds: int, seed: int) -> dict[str, tuple[float, ...]]:
    """Milliseconds of a request for one token, node and runner in turn.

    With a tiny model the forward pass is a fraction of a millisecond, so the difference is
    HTTP, JSON, templates, routing and the frames.
    """
    rng = random.Random(seed)
    taken: dict[str, list[float]] = {node.name: [], runner.name: []}
    for side in (node, runner):
        warm(side, rng, 1)
    for _ in range(rounds):
        for side in (node, runner):
            samples: list[float] = []
            for _ in range(REQUESTS_PER_ROUND):
                load = Load((draw_prompt(rng, 8),), 1, rng.randrange(1 << 30))
                samples.append(side.run(load).wall_s * 1e3)
            taken[side.name].append(middle(samples))
    return {name: tuple(values) for name, values in taken.items()}


def idle(live: LiveNode) -> dict[str, float]:
    """Memory and CPU of an agent that has no runner and nothing to do."""
    time.sleep(IDLE_SETTLE_S)
    process = psutil.Process(live.pid)
    before, started = process.cpu_times(), time.perf_counter()
    time.sleep(IDLE_S)
    after, elapsed = process.cpu_times(), time.perf_counter() - started
    busy = after.user + after.system - before.user - before.system
    return {
        "resident_mb": process.memory_info().rss / 1e6,
        "cpu_percent": 100 * busy / elapsed,
    }


def start_s(folder: Path, store: Path, model: str, *, rounds: int) -> dict[str, tuple[float, ...]]:
    """Seconds from start until the API answers and until a first token is there."""
    answers: list[float] = []
    tokens: list[float] = []
    for number in range(rounds + 1):
        live = LiveNode(home=folder / f"start-{number}", models=store)
        started = time.perf_counter()
        with live:
            ready = time.perf_counter() - started
            body = {"model": model, "prompt": "Hello", "options": {"num_predict": 1}}
            run_streams(live.port, [post(live.port, "/api/generate", body)], b'"response":"')
            token = time.perf_counter() - started
        if number:  # the first one fills the page cache
            answers.append(ready)
            tokens.append(token)
    return {"first HTTP answer": tuple(answers), "first token": tuple(tokens)}


def tiny_setting(model: Path, threads: int) -> Setting:
    return Setting(model=model, threads=threads, slots=1, context=512)
