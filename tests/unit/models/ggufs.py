"""Small GGUF files, written by the reference package, for tests of the store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

Value = str | int | float | bool | Sequence[object]


def write_gguf(
    path: Path,
    architecture: str,
    values: Mapping[str, Value] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """Write a file with these keys and tensors; returns its bytes."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (values or {}).items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case str():
                writer.add_string(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case _:
                writer.add_array(key, list(value))
    for name, data in (tensors or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def floats(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def llama_values(**extra: Value) -> dict[str, Value]:
    return {
        "llama.context_length": 128,
        "llama.embedding_length": 16,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "general.file_type": 0,
        "general.name": "tiny",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "c", "d", "e", "f", "g", "h"],
        "tokenizer.ggml.token_type": [1] * 8,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
        **extra,
    }


def llama_tensors(blocks: int = 2) -> dict[str, np.ndarray]:
    tensors = {"token_embd.weight": floats(8, 16), "output_norm.weight": floats(16)}
    for block in range(blocks):
        tensors[f"blk.{block}.attn_q.weight"] = floats(16, 16, seed=block + 2)
        tensors[f"blk.{block}.ffn_up.weight"] = floats(16, 32, seed=block + 20)
    return tensors


def llama_file(path: Path, **extra: Value) -> bytes:
    return write_gguf(path, "llama", llama_values(**extra), llama_tensors())


def adapter_file(path: Path, architecture: str = "llama") -> bytes:
    return write_gguf(
        path,
        architecture,
        {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0},
        {"blk.0.attn_q.weight.lora_a": floats(4, 16), "blk.0.attn_q.weight.lora_b": floats(16, 4)},
    )


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
