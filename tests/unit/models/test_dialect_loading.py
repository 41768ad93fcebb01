"""llama.cpp itself refuses the dialect and loads the translation."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from agent.models.dialect import translate
from agent.models.gguf import parse_bytes
from tests.unit.models.ggufs import Value, floats, write_gguf
from tests.unit.models.test_dialect import applied


@pytest.fixture(autouse=True)
def backend() -> None:
    llama_cpp.llama_backend_init()


def loads(path: Path) -> bool:
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if model is None:
        return False
    llama_cpp.llama_model_free(model)
    return True


def attention_blocks(width: int) -> dict[str, np.ndarray]:
    shapes = {
        "token_embd.weight": (32, width),
        "output_norm.weight": (width,),
        "output.weight": (32, width),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.attn_q.weight": (width, width),
        "blk.0.attn_k.weight": (width, width),
        "blk.0.attn_v.weight": (width, width),
        "blk.0.attn_output.weight": (width, width),
        "blk.0.ffn_norm.weight": (width,),
        "blk.0.ffn_gate.weight": (64, width),
        "blk.0.ffn_up.weight": (64, width),
        "blk.0.ffn_down.weight": (width, 64),
    }
    return {name: floats(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}


def keys(architecture: str, **extra: Value) -> dict[str, Value]:
    return {
        f"{architecture}.context_length": 64,
        f"{architecture}.embedding_length": 32,
        f"{architecture}.block_count": 1,
        f"{architecture}.feed_forward_length": 64,
        f"{architecture}.attention.head_count": 2,
        f"{architecture}.attention.head_count_kv": 2,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{architecture}.rope.freq_base": 10000.0,
        f"{architecture}.vocab_size": 32,
        "tokenizer.ggml.model": "no_vocab",
        **extra,
    }


def olmo3() -> tuple[dict[str, Value], dict[str, np.ndarray]]:
    tensors = attention_blocks(32)
    del tensors["blk.0.attn_norm.weight"], tensors["blk.0.ffn_norm.weight"]
    for name in ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"):
        tensors[f"blk.0.{name}.weight"] = floats(32)
    return keys("olmo3"), tensors


def qwen25vl() -> tuple[dict[str, Value], dict[str, np.ndarray]]:
    tensors = {"v.patch_embed.weight": floats(8, 8), **attention_blocks(32)}
    for name in ("attn_q", "attn_k", "attn_v"):
        tensors[f"blk.0.{name}.bias"] = floats(32)
    tensors["mm.0.weight"] = floats(3)
    return keys("qwen25vl", **{"qwen25vl.rope.mrope_section": [2, 3, 3]}), tensors


def mistral3() -> tuple[dict[str, Value], dict[str, np.ndarray]]:
    return keys("mistral3"), {"v.x.weight": floats(5), **attention_blocks(32)}


def gptoss() -> tuple[dict[str, Value], dict[str, np.ndarray]]:
    tensors = attention_blocks(32)
    for name in ("gate", "up", "down"):
        del tensors[f"blk.0.ffn_{name}.weight"]
        tensors[f"blk.0.ffn_{name}_exps.bias"] = floats(2, 32 if name == "down" else 64)
    tensors["blk.0.ffn_gate_exps.weight"] = floats(2, 64, 32)
    tensors["blk.0.ffn_up_exps.weight"] = floats(2, 64, 32)
    tensors["blk.0.ffn_down_exps.weight"] = floats(2, 32, 64)
    tensors["blk.0.ffn_gate_inp.weight"] = floats(2, 32)
    tensors["blk.0.ffn_gate_inp.bias"] = floats(2)
    tensors["blk.0.attn_out.weight"] = tensors.pop("blk.0.attn_output.weight")
    for name, width in (("q", 32), ("k", 32), ("v", 32), ("out", 32)):
        tensors[f"blk.0.attn_{name}.bias"] = floats(width)
    tensors["blk.0.attn_sinks"] = floats(2)
    more: dict[str, Value] = {
        "gptoss.expert_count": 2,
        "gptoss.expert_used_count": 1,
        "gptoss.attention.sliding_window": 16,
    }
    return keys("gptoss", **more), tensors


def gemma3() -> tuple[dict[str, Value], dict[str, np.ndarray]]:
    tensors = {"v.tower.weight": floats(6), **attention_blocks(32)}
    del tensors["output.weight"]
    for name, width in (
        ("attn_q_norm", 16),
        ("attn_k_norm", 16),
        ("post_attention_norm", 32),
        ("post_ffw_norm", 32),
    ):
        tensors[f"blk.0.{name}.weight"] = floats(width)
    values = keys("gemma3", **{"gemma3.attention.sliding_window": 16})
    del values["gemma3.attention.layer_norm_rms_epsilon"], values["gemma3.rope.freq_base"]
    return values, tensors


@pytest.mark.parametrize("build", [olmo3, qwen25vl, mistral3, gptoss, gemma3])
def test_a_translated_file_loads_where_the_original_does_not(build, tmp_path: Path) -> None:
    values, tensors = build()
    original = tmp_path / "dialect.gguf"
    data = write_gguf(original, build.__name__, values, tensors)
    translation = translate(parse_bytes(data))
    assert translation is not None
    translated = tmp_path / "translated.gguf"
    translated.write_bytes(applied(data, translation))
    assert loads(translated)
    assert not loads(original)
