"""The set of small models that tests share, each generated on first use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from gguf import PoolingType

from tests.models.bert import TINY_BERT, write_bert
from tests.models.llama import TINY_LLAMA, write_adapter, write_llama
from tests.models.tensors import Storage
from tests.models.tokenizer import BytePairTokenizer, WordPieceVocabulary

TEXT: Final = (
    "The quick brown fox jumps over the lazy dog. A cluster of peers serves one model to many "
    "users. Every request goes to a replica that is loaded and least busy. Tokens are streamed "
    "as they are made, and nobody waits for a machine that has gone. "
    '{"name": "get_weather", "arguments": {"city": "Paris"}} '
    "The answer is: yes, no, maybe. snake_case __init__ 0 1 2 3 4 5 6 7 8 9 10 "
    "¡Hola! Grüße, 你好, こんにちは 😀 🚀\n"
) * 4
"""Enough repetition for merges; holds the characters that tokenizers get wrong."""

VOCABULARY: Final = 512
DEVIATION: Final = 0.08
"""Random weights this large make greedy answers of the tiny model vary with the prompt."""


@dataclass(frozen=True)
class ModelLibrary:
    """Generates models into ``folder``. Deterministic: the same names hold the same bytes."""

    folder: Path

    @cached_property
    def tokenizer(self) -> BytePairTokenizer:
        return BytePairTokenizer.train(TEXT, VOCABULARY)

    @cached_property
    def words(self) -> WordPieceVocabulary:
        return WordPieceVocabulary.from_words(
            word for word in (part.strip('.,:{}"!') for part in TEXT.split()) if word.isascii()
        )

    @cached_property
    def llama(self) -> Path:
        """Random llama, f16, chat template, 8 k context."""
        return self._llama("tiny-llama", "f16")

    @cached_property
    def llama_q8(self) -> Path:
        """The same weights in Q8_0."""
        return self._llama("tiny-llama-q8_0", "q8_0")

    @cached_property
    def adapter(self) -> Path:
        """A LoRA adapter for ``llama``."""
        return write_adapter(self.folder / "tiny-adapter.gguf", TINY_LLAMA)

    @cached_property
    def embedding(self) -> Path:
        """Mean-pooled encoder of 64 dimensions and 512 positions."""
        return self._bert("tiny-embedding", PoolingType.MEAN)

    @cached_property
    def reranker(self) -> Path:
        """Encoder whose pooling scores its input with one number."""
        return self._bert("tiny-reranker", PoolingType.RANK)

    def _llama(self, name: str, storage: Storage) -> Path:
        path = self.folder / f"{name}.gguf"
        return write_llama(
            path, self.tokenizer, TINY_LLAMA, name=name, storage=storage, deviation=DEVIATION
        )

    def _bert(self, name: str, pooling: PoolingType) -> Path:
        path = self.folder / f"{name}.gguf"
        return write_bert(path, self.words, TINY_BERT, name=name, pooling=pooling)
