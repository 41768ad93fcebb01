"""What planning and rendering need of a GGUF header, extracted once. Pure."""

from __future__ import annotations

from typing import Final, Literal

from agent.models.errors import InvalidGguf
from agent.models.ggml_types import FILE_TYPES
from agent.models.gguf import GgufHeader
from agent.models.installed import GgufSummary

BLOCK_LIMIT: Final = 4096
"""More blocks than any model has; a header that claims billions would take the loader down."""
HEAD_LIMIT: Final = 65_536

Pooling = Literal["none", "mean", "cls", "last", "rank", "unspecified"]
_POOLING: Final[dict[int, Pooling]] = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
_INPUT_PREFIXES: Final = (
    "token_embd", "per_layer_token_embd", "position_embd", "token_types", "conv1d",
)  # fmt: skip
_OUTPUT_PREFIXES: Final = ("output", "cls", "dense_2", "dense_3")


def summarise(header: GgufHeader, file_bytes: int) -> GgufSummary:
    """The summary of a header. Raises InvalidGguf for figures no model can have."""
    architecture = header.architecture
    if not architecture:
        raise InvalidGguf("the key 'general.architecture' is missing")
    blocks = _count(header, f"{architecture}.block_count", BLOCK_LIMIT)
    embedding = _count(header, f"{architecture}.embedding_length", 1 << 24)
    heads = _heads(header, f"{architecture}.attention.head_count")
    head_count = max(heads, default=0)
    head_size = embedding // head_count if head_count else 0
    key_length = _count(header, f"{architecture}.attention.key_length", 1 << 20)
    value_length = _count(header, f"{architecture}.attention.value_length", 1 << 20)
    layer_bytes = [0] * blocks
    input_bytes = output_bytes = other_bytes = 0
    for tensor in header.tensors:
        block = _block(tensor.name)
        if block is not None and block < blocks:
            layer_bytes[block] += tensor.size_bytes
        elif tensor.name.startswith(_INPUT_PREFIXES):
            input_bytes += tensor.size_bytes
        elif tensor.name.startswith(_OUTPUT_PREFIXES):
            output_bytes += tensor.size_bytes
        else:
            other_bytes += tensor.size_bytes
    embedding_table = header.tensor("token_embd.weight")
    if embedding_table is not None and header.tensor("output.weight") is None:
        output_bytes += embedding_table.size_bytes
    return GgufSummary(
        architecture=architecture,
        context_length=_count(header, f"{architecture}.context_length", 1 << 40),
        embedding_length=embedding,
        block_count=blocks,
        head_count=head_count,
        head_count_kv=_key_value_heads(header, architecture, blocks, heads),
        key_length=key_length or head_size,
        value_length=value_length or head_size,
        vocabulary=_vocabulary(header, architecture),
        parameter_count=sum(tensor.elements for tensor in header.tensors),
        file_type=FILE_TYPES.get(_count(header, "general.file_type", 1 << 31, -1), "unknown"),
        pooling=_pooling(header, architecture),
        chat_template=header.text("tokenizer.chat_template"),
        sliding_window=_count(header, f"{architecture}.attention.sliding_window", 1 << 40),
        expert_count=_count(header, f"{architecture}.expert_count", 1 << 20),
        layer_bytes=tuple(layer_bytes),
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        other_bytes=other_bytes,
        file_bytes=file_bytes,
    )


def parameter_size(count: int) -> str:
    """``7.6B``, ``494.03M``-like sizes as Ollama prints them."""
    for scale, letter, decimals in ((10**12, "T", 1), (10**9, "B", 1), (10**6, "M", 2)):
        if count >= scale:
            return f"{count / scale:.{decimals}f}{letter}"
    if count >= 1000:
        return f"{count / 1000:.0f}K"
    return str(count)


def _count(header: GgufHeader, key: str, limit: int, default: int = 0) -> int:
    value = header.integer(key)
    if value is None:
        return default
    if not 0 <= value <= limit:
        raise InvalidGguf(f"key '{key}' is {value}, outside 0 to {limit}")
    return value


def _heads(header: GgufHeader, key: str) -> tuple[int, ...]:
    """A head count as one number or one per layer."""
    numbers = header.numbers(key)
    if numbers is None:
        value = _count(header, key, HEAD_LIMIT)
        return (value,) if value else ()
    if len(numbers) > BLOCK_LIMIT or any(not 0 <= number <= HEAD_LIMIT for number in numbers):
        raise InvalidGguf(f"key '{key}' has values that no model has")
    return tuple(int(number) for number in numbers)


def _key_value_heads(
    header: GgufHeader, architecture: str, blocks: int, heads: tuple[int, ...]
) -> tuple[int, ...]:
    counts = _heads(header, f"{architecture}.attention.head_count_kv") or heads
    if len(counts) == 1:
        counts = counts * blocks
    counts = (*counts, *([0] * blocks))[:blocks]
    interval = _count(header, f"{architecture}.full_attention_interval", 1 << 20)
    if interval > 1:
        return tuple(
            count if (layer + 1) % interval == 0 else 0 for layer, count in enumerate(counts)
        )
    return counts


def _vocabulary(header: GgufHeader, architecture: str) -> int:
    tokens = header.array_length("tokenizer.ggml.tokens")
    if tokens is not None:
        return tokens
    table = header.tensor("token_embd.weight")
    if table is not None and len(table.dimensions) >= 2:
        return table.dimensions[1]
    return _count(header, f"{architecture}.vocab_size", 1 << 31)


def _pooling(header: GgufHeader, architecture: str) -> Pooling:
    value = header.integer(f"{architecture}.pooling_type")
    return "unspecified" if value is None else _POOLING.get(value, "unspecified")


def _block(name: str) -> int | None:
    """The N of ``blk.N.rest``."""
    if not name.startswith("blk."):
        return None
    digits, dot, _ = name[4:].partition(".")
    return (
        int(digits) if dot and digits.isascii() and digits.isdigit() and len(digits) < 6 else None
    )
