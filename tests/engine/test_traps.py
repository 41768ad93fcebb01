"""Traps of llama.cpp that were measured once and must not come back."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from agent.inference.engine.draw import choose, position_key
from agent.inference.engine.sampling import SequenceSampler
from agent.inference.llama import library, logs
from agent.inference.llama.batch import Batch
from agent.inference.llama.context import Context
from agent.inference.llama.model import Model
from agent.inference.llama.sampler import ChainSampler, Grammar
from agent.inference.protocol import Sampling
from tests.conftest import NodeFactory

TOGETHER_LIMIT_S = 30.0
"""With spinning barriers two runners on shared cores take seconds for each token."""


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> Iterator[tuple[Model, Context]]:
    library.load_all_backends()
    logs.capture()
    model = Model(
        str(tiny_llama),
        gpu_layers=0,
        main_gpu=0,
        split_mode="layer",
        tensor_split=(),
        use_mmap=True,
        on_progress=lambda _: True,
    )
    context = Context(
        model,
        cells=64,
        slots=1,
        batch=32,
        micro_batch=32,
        threads=1,
        flash_attention="auto",
        kv_type="f16",
        kv_unified=True,
    )
    batch = Batch(8)
    batch.add_token(5, 0, 0)
    assert context.decode(batch) == 0
    yield model, context
    context.close()
    model.close()


def test_a_grammar_walks_the_vocabulary_only_after_a_rejection(
    loaded: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = loaded
    walks: list[int] = []
    mask = Grammar.mask

    def counted(self: Grammar, candidates: int) -> None:
        walks.append(candidates)
        mask(self, candidates)

    monkeypatch.setattr(Grammar, "mask", counted)
    digits = model.vocabulary.tokenize("7", add_special=False, parse_special=False)
    chains = ChainSampler(model.vocabulary)
    sampler = SequenceSampler(
        Sampling(seed=1, temperature=0.7), model.vocabulary, chains, "root ::= [0-9]{40}"
    )
    logits = context.logits()[0]
    assert context.handle is not None
    for position in range(10):
        logits[:] = -10.0
        logits[digits[0]] = 10.0
        assert sampler.draw(context.handle, 0, logits, [1], position) == digits[0]
    assert walks == []
    logits[:] = -10.0
    logits[model.vocabulary.eos] = 10.0
    token = sampler.draw(context.handle, 0, logits, [1], 10)
    assert model.vocabulary.piece(token).isdigit()
    assert len(walks) == 1
    sampler.close()
    chains.close()


def test_penalties_touch_only_the_tokens_of_their_window(loaded: tuple[Model, Context]) -> None:
    model, context = loaded
    chains = ChainSampler(model.vocabulary)
    sampling = Sampling(
        seed=1, temperature=0.0, repeat_penalty=2.0, repeat_last_n=4, presence_penalty=0.5,
        frequency_penalty=0.25,
    )  # fmt: skip
    sampler = SequenceSampler(sampling, model.vocabulary, chains, "")
    logits = np.linspace(-3, 3, model.vocabulary.size, dtype=np.float32)
    before = logits.copy()
    assert context.handle is not None
    sampler.draw(context.handle, 0, logits, [9, 400, 10, 400, 400, 11], 0)
    changed = np.flatnonzero(logits != before)
    assert changed.tolist() == [10, 11, 400]
    positive = before[400] / 2.0 - (2 * 0.25 + 0.5)
    negative = before[10] * 2.0 - (0.25 + 0.5)
    assert logits[400] == pytest.approx(positive, abs=1e-5)
    assert logits[10] == pytest.approx(negative, abs=1e-5)
    chains.close()


def test_the_keyed_draw_follows_the_distribution_and_ignores_the_order() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    tokens = np.array([7, 300, 12, 90000], np.int32)
    counts = np.zeros(4)
    reverse = slice(None, None, -1)
    for position in range(4000):
        key = position_key(99, position)
        index = choose(key, tokens, logits)
        counts[index] += 1
        mirrored = choose(key, tokens[reverse], logits[reverse])
        assert tokens[reverse][mirrored] == tokens[index]
    assert np.abs(counts / 4000 - np.exp(logits)).max() < 0.03


def test_two_cpu_runners_share_the_cores_without_spinning(start_node: NodeFactory) -> None:
    node = start_node(environment={"LLAMESH_CPU_THREADS": "2", "LLAMESH_CPU_WAIT": "spin"})
    for model in ("tiny-llama", "tiny-llama:q8_0"):
        generate(node.url, model, 1)
    agent = psutil.Process(node.pid)
    runners = [
        child for child in agent.children() if "agent.inference.runner" in " ".join(child.cmdline())
    ]
    assert len(runners) == 2
    for runner in runners:
        assert runner.environ().get("GOMP_SPINCOUNT") == "1000", "it must be there before exec"
    threads = [
        threading.Thread(target=generate, args=(node.url, model, 80))
        for model in ("tiny-llama", "tiny-llama:q8_0")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TOGETHER_LIMIT_S)
        assert not thread.is_alive(), "two runners at once are slow beyond reason"


def generate(url: str, model: str, tokens: int) -> None:
    body = {
        "model": model,
        "prompt": "A cluster of peers",
        "stream": False,
        "options": {"num_predict": tokens, "temperature": 0},
    }
    request = urllib.request.Request(f"{url}/api/generate", json.dumps(body).encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=TOGETHER_LIMIT_S * 2) as answer:
        assert json.load(answer)["done"] is True
