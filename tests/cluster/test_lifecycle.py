"""A real node's start and stop: one per home, drained by SIGTERM, and no orphans ever."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.models.library import ModelLibrary
from tests.models.live_node import LiveNode
from tests.models.ollama_store import add_model

ROOT = Path(__file__).resolve().parents[2]
MODEL = "tiny-llama"
LIMIT_S = 30.0
ENDLESS = {"type": "array", "items": {"enum": ["alpha", "beta"]}, "minItems": 10_000}
"""Keeps a model at work until its limit, whatever it would rather say."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, model_library: ModelLibrary) -> Path:
    store = tmp_path_factory.mktemp("lifecycle-store")
    add_model(store, MODEL, model_library.llama)
    return store


@contextmanager
def stream(node: LiveNode, tokens: int) -> Generator[http.client.HTTPResponse]:
    """A generation whose first line has been read, so its runner is at work."""
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=LIMIT_S)
    body: dict[str, object] = {
        "model": MODEL,
        "prompt": "a",
        "options": {"num_predict": tokens, "seed": 1, "num_ctx": 4096},
        "format": ENDLESS,
    }
    if tokens < 0:
        # Random weights end their answer sooner or later; the grammar does not let them.
        body["format"] = {"type": "array", "items": {"type": "integer"}, "minItems": 20_000}
    try:
        connection.request("POST", "/api/generate", json.dumps(body))
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert json.loads(response.readline())["done"] is False
        yield response
    finally:
        connection.close()


def runners_of(node: LiveNode) -> list[psutil.Process]:
    children = psutil.Process(node.pid).children(recursive=True)
    assert children, "the node has no runner"
    return children


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=LIMIT_S)
    assert alive == []


def wait_for_log(node: LiveNode, words: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while words not in node.log_tail():
        assert time.monotonic() < deadline, node.log_tail()
        time.sleep(0.02)


def serve_process(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``llamesh serve`` that is expected to end by itself."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("OLLAMA_", "LLAMESH_"))}
    return subprocess.run(
        [sys.executable, "-m", "agent", "serve", "--home", str(home), *arguments],
        capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=ROOT, env=environ,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_node_stops_with_status_0(
    tmp_path: Path, store: Path, number: signal.Signals
) -> None:
    with LiveNode(home=tmp_path / "home", models=store) as node:
        assert node.stop(number) == 0


def test_sigterm_lets_a_stream_finish_and_admits_nothing_more(tmp_path: Path, store: Path) -> None:
    with LiveNode(home=tmp_path / "home", models=store) as node:
        with stream(node, tokens=600) as response:
            runners = runners_of(node)
            os.kill(node.pid, signal.SIGTERM)
            wait_for_log(node, "node_draining")
            refusals = (AssertionError, OSError, http.client.HTTPException)
            with pytest.raises(refusals), stream(node, tokens=1):
                pytest.fail("a draining node admitted a request")
            lines = [json.loads(line) for line in response]
        assert lines[-1]["done"] is True
        assert lines[-1]["eval_count"] == 600
        assert node.process is not None
        assert node.process.wait(LIMIT_S) == 0
        assert_gone(runners)


def test_streams_over_the_grace_period_are_ended(tmp_path: Path, store: Path) -> None:
    arguments = ("--grace-period-s", "0.2")
    with LiveNode(home=tmp_path / "home", models=store, arguments=arguments) as node:
        with stream(node, tokens=-1):
            runners = runners_of(node)
            assert node.stop() == 0
        assert_gone(runners)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_exits_at_once(tmp_path: Path, store: Path, number: signal.Signals) -> None:
    with LiveNode(home=tmp_path / "home", models=store) as node, stream(node, tokens=-1):
        runners = runners_of(node)
        os.kill(node.pid, number)
        wait_for_log(node, "node_draining")
        assert node.stop(number) == 128 + number
        assert_gone(runners)


def test_a_killed_node_leaves_no_orphan_and_starts_again(tmp_path: Path, store: Path) -> None:
    home = tmp_path / "home"
    with LiveNode(home=home, models=store) as node, stream(node, tokens=-1):
        runners = runners_of(node)
        assert node.stop(signal.SIGKILL) == -signal.SIGKILL
        with LiveNode(home=home, models=store) as second:
            assert_gone(runners)
            with stream(second, tokens=2) as response, suppress(http.client.IncompleteRead):
                assert b'"done":true' in response.read()


def test_a_runner_that_hangs_does_not_outlive_its_killed_node(tmp_path: Path, store: Path) -> None:
    home = tmp_path / "home"
    with LiveNode(home=home, models=store) as node, stream(node, tokens=-1):
        runners = runners_of(node)
        for runner in runners:
            runner.suspend()
        assert node.stop(signal.SIGKILL) == -signal.SIGKILL
        assert_gone(runners)
        assert list((home / "runners").iterdir()) != [], "nothing tells the next node of them"
        with LiveNode(home=home, models=store):
            assert list((home / "runners").iterdir()) == []


def test_a_second_agent_on_the_same_home_is_refused_with_the_firsts_pid(
    tmp_path: Path, store: Path
) -> None:
    with LiveNode(home=tmp_path / "home", models=store) as node:
        refused = serve_process(node.home, "--port", "0")
        assert refused.returncode == 1
        assert f"pid {node.pid};" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_taken_port_is_told_with_its_holder(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        refused = serve_process(tmp_path, "--port", str(holder.getsockname()[1]))
    assert refused.returncode == 1
    assert f"(pid {os.getpid()})" in refused.stderr
    assert "OLLAMA_HOST" in refused.stderr


def test_variables_without_effect_are_logged_once_at_start(tmp_path: Path, store: Path) -> None:
    environment = {"OLLAMA_NOHISTORY": "1", "OLLAMA_LLM_LIBRARY": "cpu"}
    with LiveNode(home=tmp_path / "home", models=store, environment=environment) as node:
        lines = [line for line in node.log_tail().splitlines() if "without_effect" in line]
    assert len(lines) == 1
    assert "OLLAMA_LLM_LIBRARY, OLLAMA_NOHISTORY" in lines[0]
