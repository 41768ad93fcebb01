"""Hundreds of broken files against a live agent: each refusal is a clear error, none kills it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from itertools import islice
from pathlib import Path

import httpx
import pytest

from tests.conftest import NodeFactory
from tests.hostile.mutations import hostile_files, write_sound_file

ANSWER_LIMIT_S = 60.0
SEED = 7


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_hostile_file_kills_or_hangs_the_agent(start_node: NodeFactory, tmp_path: Path) -> None:
    node = start_node()
    sound = write_sound_file(tmp_path / "sound.gguf").read_bytes()
    outcomes: Counter[str] = Counter()
    load_errors: list[str] = []
    with httpx.Client(base_url=node.url, timeout=ANSWER_LIMIT_S, trust_env=False) as client:
        files = islice(hostile_files(sound, SEED), 0, None, stride())
        for number, file in enumerate(files):
            outcome = attempt(client, f"hostile-{number}", file.data)
            outcomes[outcome] += 1
            if outcome == "refused at load":
                load_errors.append(file.name)
            assert node.process is not None
            assert node.process.poll() is None, f"{file.name} ended the agent"
        assert sum(outcomes.values()) >= 200
        assert outcomes["refused at create"] > 50
        assert load_errors, "files that only llama.cpp refuses must be among them"
        # The agent is as good as new: a sound file still loads and answers.
        assert attempt(client, "sound", sound) == "answered"


def stride() -> int:
    """Every second file by default, all of them in a soak."""
    return 1 if os.environ.get("LLAMESH_HOSTILE") == "all" else 2


def attempt(client: httpx.Client, name: str, data: bytes) -> str:
    """Install, ask, remove; returns how far the file came."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    stored = client.post(f"/api/blobs/{digest}", content=data)
    assert stored.status_code in (200, 201), stored.text
    created = client.post(
        "/api/create", json={"model": name, "files": {"m.gguf": digest}, "stream": False}
    )
    if created.status_code != 200 or "error" in created.json():
        assert_clear(created)
        return "refused at create"
    try:
        answer = client.post(
            "/api/generate",
            json={
                "model": name,
                "prompt": "The quick",
                "raw": True,
                "stream": False,
                "keep_alive": 0,
                "options": {"num_predict": 4, "num_ctx": 128},
            },
        )
        if answer.status_code == 200:
            return "answered"
        assert_clear(answer)
        return "refused at load"
    finally:
        client.request("DELETE", "/api/delete", json={"model": name})


def assert_clear(answer: httpx.Response) -> None:
    """An error in words, of the client's or the file's making; never a bare 500 of ours."""
    assert answer.status_code in (400, 404, 500, 503), answer.text
    error = answer.json()["error"]
    assert isinstance(error, str)
    assert len(error) > 10
    assert "Traceback" not in error
    assert "internal server error" not in error.lower(), error
