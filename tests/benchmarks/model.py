"""The benchmark model: random weights at the sizes and vocabulary of a small real one."""

from __future__ import annotations

import functools
import itertools
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.models.llama import LlamaShape, write_llama
from tests.models.tokenizer import CONTROL_PIECES, MARKUP_PIECES, BytePairTokenizer
from tests.models.training.corpus import FILLER

VOCABULARY: Final = 32_000
SHAPE: Final = LlamaShape(
    embedding=1024, layers=20, heads=16, kv_heads=4, feed_forward=2816, context=32_768
)
"""258 M parameters, 275 MB in Q8_0: big enough that a step is mostly matrix work."""
NAME: Final = "bench-258m"
_SPACE: Final = "\u0120"
"""The byte-level stand-in of a space."""


def synthetic_merges(count: int) -> list[tuple[str, str]]:
    """Merges that make one token of each prompt word and spell all others in a few letters.

    A vocabulary learned from text would need text; for speed only its size and the number of
    tokens of a prompt matter.
    """
    spelled: dict[str, tuple[str, str]] = {}
    for left, right in _merges():
        spelled.setdefault(left + right, (left, right))
        if len(spelled) == count:
            break
    return list(spelled.values())


def _merges() -> Iterator[tuple[str, str]]:
    letters = string.ascii_lowercase
    # Longer beginnings after shorter ones, so that a word grows from its space to its end.
    beginnings = {_SPACE + word[:end] for word in words() for end in range(1, len(word) + 1)}
    for beginning in sorted(beginnings, key=lambda text: (len(text), text)):
        yield beginning[:-1], beginning[-1]
    pairs = [first + second for first, second in itertools.product(letters, letters)]
    yield from itertools.product(letters, letters)
    yield from ((_SPACE, letter) for letter in letters)
    yield from itertools.product((_SPACE + letter for letter in letters), pairs)
    yield from itertools.product(pairs, pairs)


@functools.cache
def bench_tokenizer() -> BytePairTokenizer:
    """32,000 tokens, made in a moment."""
    room = VOCABULARY - 256 - len(CONTROL_PIECES) - len(MARKUP_PIECES)
    return BytePairTokenizer.from_merges(synthetic_merges(room), VOCABULARY)


def ensure_model(folder: Path, *, layers: int = SHAPE.layers) -> Path:
    """The model file, generated on first use (half a minute)."""
    path = folder / f"{NAME}-{layers}-q8_0.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        shape = LlamaShape(
            embedding=SHAPE.embedding,
            layers=layers,
            heads=SHAPE.heads,
            kv_heads=SHAPE.kv_heads,
            feed_forward=SHAPE.feed_forward,
            context=SHAPE.context,
        )
        # An answer that ended early would make rounds incomparable: no end token is drawn.
        write_llama(
            partial,
            bench_tokenizer(),
            shape,
            name=NAME,
            storage="q8_0",
            unlikely=(*CONTROL_PIECES, *MARKUP_PIECES),
        )
        partial.rename(path)
    return path


def words() -> list[str]:
    """The words that prompts are drawn from."""
    return sorted({word.strip(".,").lower() for sentence in FILLER for word in sentence.split()})


def draw_prompt(rng: random.Random, length: int) -> str:
    """``length`` words; nearly certainly unlike every other draw from its first word on."""
    return " ".join(rng.choices(words(), k=length))


def draw_prefix(rng: random.Random, tokens: int) -> str:
    """Words that make at least ``tokens`` tokens, and hardly more."""
    tokenizer = bench_tokenizer()
    text = draw_prompt(rng, tokens // 2)
    while len(tokenizer.encode(text)) < tokens:
        text += " " + draw_prompt(rng, 4)
    return text
