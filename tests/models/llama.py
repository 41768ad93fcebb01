"""Models of the llama architecture, with given or random weights, and adapters for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFType, GGUFWriter, Keys

from tests.models.chat_template import CHATML
from tests.models.tensors import (
    FILE_TYPES,
    Array,
    Storage,
    add_matrix,
    add_vector,
    finish,
    normal,
)
from tests.models.tokenizer import END_OF_TEXT, TURN_END, BytePairTokenizer

NORM_EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """Sizes of a llama-architecture model. The embedding doubles as output head."""

    embedding: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    context: int = 4096
    rope_base: float = 10_000.0

    @property
    def head(self) -> int:
        return self.embedding // self.heads

    def matrices(self, vocabulary: int) -> Iterator[tuple[str, int, int]]:
        """Name, rows and columns of every weight matrix, in file order."""
        yield "token_embd.weight", vocabulary, self.embedding
        for layer in range(self.layers):
            block = f"blk.{layer}."
            yield block + "attn_q.weight", self.heads * self.head, self.embedding
            yield block + "attn_k.weight", self.kv_heads * self.head, self.embedding
            yield block + "attn_v.weight", self.kv_heads * self.head, self.embedding
            yield block + "attn_output.weight", self.embedding, self.heads * self.head
            yield block + "ffn_gate.weight", self.feed_forward, self.embedding
            yield block + "ffn_up.weight", self.feed_forward, self.embedding
            yield block + "ffn_down.weight", self.embedding, self.feed_forward

    def norms(self) -> Iterator[str]:
        """Names of the norm vectors, each ``embedding`` long."""
        for layer in range(self.layers):
            yield f"blk.{layer}.attn_norm.weight"
            yield f"blk.{layer}.ffn_norm.weight"
        yield "output_norm.weight"

    def parameters(self, vocabulary: int) -> int:
        matrices = sum(rows * columns for _, rows, columns in self.matrices(vocabulary))
        return matrices + sum(self.embedding for _ in self.norms())


TINY_LLAMA = LlamaShape(
    embedding=128, layers=4, heads=4, kv_heads=2, feed_forward=384, context=8192
)


def write_llama(
    path: Path,
    tokenizer: BytePairTokenizer,
    shape: LlamaShape,
    *,
    name: str,
    storage: Storage = "f16",
    weights: Mapping[str, Array] | None = None,
    seed: int = 1,
    deviation: float = 0.02,
    template: str | None = CHATML,
    unlikely: Sequence[str] = (),
) -> Path:
    """Write a loadable model. Without ``weights`` they are normal with ``deviation``, drawn
    from ``seed`` independently of ``storage``, so variants hold the same model. Tokens named in
    ``unlikely`` get an empty row: their logit is 0, far below the best of a random model."""
    writer = GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_vocab_size(len(tokenizer))
    writer.add_file_type(FILE_TYPES[storage])
    add_tokenizer(writer, tokenizer, template)
    generator = np.random.default_rng(seed)
    for tensor, rows, columns in shape.matrices(len(tokenizer)):
        values = normal(generator, rows, columns, deviation) if weights is None else weights[tensor]
        if weights is None and tensor == "token_embd.weight":
            values[[tokenizer.id_of(token) for token in unlikely]] = 0
        assert values.shape == (rows, columns), f"{tensor} has shape {values.shape}"
        add_matrix(writer, tensor, values, storage)
    for tensor in shape.norms():
        ones = np.ones(shape.embedding, np.float32)
        add_vector(writer, tensor, ones if weights is None else weights[tensor])
    return finish(writer, path)


def add_tokenizer(writer: GGUFWriter, tokenizer: BytePairTokenizer, template: str | None) -> None:
    """Vocabulary, special ids and chat template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    writer.add_token_merges([f"{left} {right}" for left, right in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.id_of(END_OF_TEXT))
    writer.add_eos_token_id(tokenizer.id_of(TURN_END))
    writer.add_eot_token_id(tokenizer.id_of(TURN_END))
    writer.add_pad_token_id(tokenizer.id_of(END_OF_TEXT))
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)


def write_adapter(
    path: Path, shape: LlamaShape, *, rank: int = 4, alpha: float = 8.0, seed: int = 9
) -> Path:
    """A LoRA adapter on every attention output, strong enough to change greedy answers."""
    generator = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama")
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    for layer in range(shape.layers):
        tensor = f"blk.{layer}.attn_output.weight"
        inner, outer = shape.heads * shape.head, shape.embedding
        add_matrix(writer, f"{tensor}.lora_a", normal(generator, rank, inner, 0.3), "f32")
        add_matrix(writer, f"{tensor}.lora_b", normal(generator, outer, rank, 0.3), "f32")
    return finish(writer, path)
