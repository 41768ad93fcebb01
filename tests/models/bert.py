"""Encoder models of the BERT architecture: sentence embeddings and rerankers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGUFWriter, PoolingType

from tests.models.tensors import FILE_TYPES, Storage, add_matrix, add_vector, finish, normal
from tests.models.tokenizer import WordPieceVocabulary

_SEGMENTS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BertShape:
    """Sizes of an encoder. ``context`` is the number of learned positions."""

    embedding: int
    layers: int
    heads: int
    feed_forward: int
    context: int = 512


TINY_BERT = BertShape(embedding=64, layers=2, heads=4, feed_forward=128)


def write_bert(
    path: Path,
    vocabulary: WordPieceVocabulary,
    shape: BertShape,
    *,
    name: str,
    pooling: PoolingType = PoolingType.MEAN,
    storage: Storage = "f16",
    seed: int = 3,
) -> Path:
    """Write an encoder with random weights. RANK pooling adds the head that scores a pair."""
    generator = np.random.default_rng(seed)
    writer = GGUFWriter(path, "bert")
    writer.add_name(name)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_vocab_size(len(vocabulary))
    writer.add_file_type(FILE_TYPES[storage])
    _add_vocabulary(writer, vocabulary)
    if pooling is PoolingType.RANK:
        writer.add_classifier_output_labels(["score"])

    def matrix(tensor: str, rows: int, columns: int, kind: Storage = storage) -> None:
        add_matrix(writer, tensor, normal(generator, rows, columns, 0.05), kind)

    def bias(tensor: str, length: int) -> None:
        add_vector(writer, tensor, normal(generator, 1, length, 0.05)[0])

    def norm(tensor: str) -> None:
        add_vector(writer, f"{tensor}.weight", np.ones(shape.embedding, np.float32))
        bias(f"{tensor}.bias", shape.embedding)

    width, inner = shape.embedding, shape.feed_forward
    matrix("token_embd.weight", len(vocabulary), width)
    matrix("position_embd.weight", shape.context, width, "f32")
    matrix("token_types.weight", _SEGMENTS, width, "f32")
    norm("token_embd_norm")
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        for tensor, rows, columns in (
            ("attn_q", width, width),
            ("attn_k", width, width),
            ("attn_v", width, width),
            ("attn_output", width, width),
            ("ffn_up", inner, width),
            ("ffn_down", width, inner),
        ):
            matrix(f"{block}{tensor}.weight", rows, columns)
            bias(f"{block}{tensor}.bias", rows)
        norm(f"{block}attn_output_norm")
        norm(f"{block}layer_output_norm")
    if pooling is PoolingType.RANK:
        matrix("cls.weight", width, width)
        bias("cls.bias", width)
        matrix("cls.output.weight", 1, width)
        bias("cls.output.bias", 1)
    return finish(writer, path)


def _add_vocabulary(writer: GGUFWriter, vocabulary: WordPieceVocabulary) -> None:
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_type_count(_SEGMENTS)
    writer.add_bos_token_id(vocabulary.id_of("[CLS]"))
    writer.add_sep_token_id(vocabulary.id_of("[SEP]"))
    writer.add_eos_token_id(vocabulary.id_of("[SEP]"))
    writer.add_unk_token_id(vocabulary.id_of("[UNK]"))
    writer.add_pad_token_id(vocabulary.id_of("[PAD]"))
    writer.add_mask_token_id(vocabulary.id_of("[MASK]"))
