"""The live-node fixture starts a real node, offers the generated models and stops cleanly."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from agent import builtin
from tests.conftest import NodeFactory
from tests.models.live_node import LiveNode, NodeFailed
from tests.models.ollama_store import add_blob, add_model


def call(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_live_node_gives_the_trained_models_known_answers(
    node: LiveNode, chat_model: str
) -> None:
    cases = json.loads(builtin.ANSWERS_PATH.read_text(encoding="utf-8"))["answers"]
    wanted = {case["name"]: case for case in cases}
    for name in ("capital-france-ask", "count-100"):
        case = wanted[name]
        body = {
            "model": chat_model,
            "messages": case["messages"],
            "stream": False,
            "options": {"temperature": 0},
        }
        assert call(f"{node.url}/api/chat", body)["message"]["content"] == case["answer"]


def test_a_live_node_lists_every_model_of_its_store(
    node_url: str, chat_model: str, embedding_model: str
) -> None:
    names = {model["name"] for model in call(f"{node_url}/api/tags")["models"]}
    assert names >= {
        f"{chat_model}:latest",
        f"{embedding_model}:latest",
        "tiny-llama:latest",
        "tiny-llama:q8_0",
        "tiny-llama:adapted",
        "tiny-reranker:latest",
    }


def test_a_node_of_ones_own_stops_with_status_zero(start_node: NodeFactory) -> None:
    live = start_node()
    assert live.stop() == 0


def test_a_node_that_dies_at_the_start_shows_its_log(tmp_path: Path, model_store: Path) -> None:
    live = LiveNode(home=tmp_path / "home", models=model_store, arguments=("--no-such-flag",))
    with pytest.raises(NodeFailed, match="no-such-flag"), live:
        pass


def test_a_killed_node_is_gone(start_node: NodeFactory) -> None:
    live = start_node()
    assert live.stop(signal.SIGKILL) == -signal.SIGKILL


def test_a_store_names_blobs_by_their_digest(tmp_path: Path) -> None:
    digest, size = add_blob(tmp_path, b"hello")
    assert digest == "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert (tmp_path / "blobs" / digest.replace(":", "-")).read_bytes() == b"hello"
    assert size == 5
    manifest = json.loads(add_model(tmp_path, "some:tag", b"weights", system="Hi").read_text())
    kinds = [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]]
    assert kinds == ["model", "system"]
