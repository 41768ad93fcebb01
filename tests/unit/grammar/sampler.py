"""llama.cpp's own grammar sampler over a tiny byte-level vocabulary, for tests."""

from __future__ import annotations

import codecs
import ctypes
import random
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import llama_cpp.llama_cpp as llama
import numpy as np

MERGED = ('{"', '":', '": ', '", "', '"}', '"]', "[]", "{}", "},", "true", "null", "12", "ab")


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in a byte-level vocabulary."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(shifted)) for byte in range(256)]


def write_vocabulary(path: Path) -> list[bytes]:
    """Write a vocabulary-only model; returns the bytes of each token, the last one ends."""
    letters = _byte_letters()
    pieces = [bytes([byte]) for byte in range(256)] + [text.encode() for text in MERGED]
    tokens = ["".join(letters[byte] for byte in piece) for piece in pieces]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens) + 1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, "<|end|>"])
    normal = [gguf.TokenType.NORMAL] * len(tokens)
    writer.add_token_types([*normal, gguf.TokenType.CONTROL])
    writer.add_token_merges([f"{letters[ord('a')]} {letters[ord('b')]}"])
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens))
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [*pieces, b""]


@llama.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Drops the log lines of loading."""


class GrammarRefused(Exception):
    """llama.cpp did not take the grammar."""


class Vocabulary:
    """A loaded vocabulary and walks through grammars over it."""

    def __init__(self, path: Path) -> None:
        self.pieces = write_vocabulary(path)
        self.end = len(self.pieces) - 1
        llama.llama_log_set(_silent, ctypes.c_void_p(0))
        llama.llama_backend_init()
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = True
        self._model: Any = llama.llama_model_load_from_file(str(path).encode(), parameters)
        assert self._model, "the test vocabulary did not load"
        self._vocab: Any = llama.llama_model_get_vocab(self._model)
        self._data = np.zeros(len(self.pieces), dtype=[("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self._array: Any = llama.llama_token_data_array(
            data=self._data.ctypes.data_as(ctypes.POINTER(llama.llama_token_data)),
            size=len(self.pieces),
            selected=-1,
            sorted=False,
        )
        self._pointer: Any = ctypes.pointer(self._array)

    def close(self) -> None:
        llama.llama_model_free(self._model)

    @contextmanager
    def _sampler(self, grammar: str) -> Generator[Any]:
        sampler = llama.llama_sampler_init_grammar(self._vocab, grammar.encode(), b"root")
        if not sampler:  # a NULL pointer is falsy, but it is not None
            raise GrammarRefused(grammar[:2000])
        try:
            yield sampler
        finally:
            llama.llama_sampler_free(sampler)

    def check(self, grammar: str) -> None:
        """Raises GrammarRefused when llama.cpp's parser does."""
        with self._sampler(grammar):
            pass

    def _allowed(self, sampler: Any) -> np.ndarray:
        self._data["id"] = np.arange(len(self.pieces))
        self._data["logit"] = 0.0
        self._array.size = len(self.pieces)
        self._array.selected = -1
        self._array.sorted = False
        llama.llama_sampler_apply(sampler, self._pointer)
        return np.flatnonzero(np.isfinite(self._data["logit"]))

    def accepts(self, grammar: str, text: str) -> bool:
        """Whether the grammar matches exactly this text, fed byte by byte."""
        with self._sampler(grammar) as sampler:
            for byte in text.encode():
                self._data[0] = (byte, 0.0, 0.0)
                self._array.size = 1
                llama.llama_sampler_apply(sampler, self._pointer)
                if not np.isfinite(self._data["logit"][0]):
                    return False
                llama.llama_sampler_accept(sampler, byte)
            return self.end in self._allowed(sampler)

    def walk(self, grammar: str, rng: random.Random, limit: int = 400) -> str | None:
        """A random text of the grammar; None when it does not end within the limit.

        Bytes that are no UTF-8 are never chosen: llama.cpp cannot tell an overlong encoding
        from the character it stands for. Beginnings and repetitions lose to endings with time.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        text = ""
        closing = [self.pieces.index(piece) for piece in (b"]", b"}", b'"', b"0", b"l", b"n")]
        with self._sampler(grammar) as sampler:
            for step in range(limit):
                allowed = [int(token) for token in self._allowed(sampler)]
                assert allowed, f"a dead end after {text!r}"
                eager = rng.random() < step / 60
                if self.end in allowed and (eager or len(allowed) == 1 or rng.random() < 0.5):
                    return text + decoder.decode(b"", final=True)
                candidates = [token for token in closing if token in allowed] if eager else []
                candidates = candidates or [token for token in allowed if token != self.end]
                rng.shuffle(candidates)
                for token in candidates:
                    state = decoder.getstate()
                    try:
                        text += decoder.decode(self.pieces[token])
                    except UnicodeDecodeError:
                        decoder.setstate(state)
                        continue
                    llama.llama_sampler_accept(sampler, token)
                    break
                else:
                    return None
        return None
