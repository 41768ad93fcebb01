"""Byte-level BPE as GPT-2 defined it: training, encoding and the token lists GGUF wants.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2;
the pre-split is the one llama.cpp calls ``gpt-2``.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from gguf import TokenType

# The GPT-2 split, with ``re`` instead of Unicode property classes. ``_`` is a word character to
# Python but punctuation to GPT-2: leave it out of the last class and it silently disappears.
PRE_SPLIT: Final = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)"
    r"| ?[^\W\d_]+"
    r"| ?\d+"
    r"| ?(?:[^\s\w]|_)+"
    r"|\s+(?!\S)|\s+"
)

END_OF_TEXT: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
CONTROL_PIECES: Final = (END_OF_TEXT, TURN_START, TURN_END)
MARKUP_PIECES: Final = ("<tool_call>", "</tool_call>", "<think>", "</think>")
"""Written out in text, so USER_DEFINED rather than CONTROL."""

_MERGE_FLOOR: Final = 2
"""A pair seen fewer times than this is not worth a token."""


def byte_alphabet() -> tuple[str, ...]:
    """The printable character that stands for each byte value, index 0 to 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    stand_ins = {byte: chr(byte) for byte in printable}
    spare = 0x100
    for byte in range(256):
        if byte not in stand_ins:
            stand_ins[byte] = chr(spare)
            spare += 1
    return tuple(stand_ins[byte] for byte in range(256))


ALPHABET: Final = byte_alphabet()


def pre_split(text: str) -> list[str]:
    """Words as BPE sees them; joined, they are ``text`` again."""
    return PRE_SPLIT.findall(text)


def _symbols(word: str) -> tuple[str, ...]:
    return tuple(ALPHABET[byte] for byte in word.encode())


def _merge(symbols: Sequence[str], left: str, right: str) -> tuple[str, ...]:
    merged: list[str] = []
    index = 0
    while index < len(symbols):
        if symbols[index] == left and index + 1 < len(symbols) and symbols[index + 1] == right:
            merged.append(left + right)
            index += 2
        else:
            merged.append(symbols[index])
            index += 1
    return tuple(merged)


def learn_merges(text: str, limit: int) -> list[tuple[str, str]]:
    """Up to ``limit`` merges, most frequent pair first; ties go to the greater pair."""
    words = Counter(pre_split(text))
    spelled = {word: _symbols(word) for word in words}
    counts: Counter[tuple[str, str]] = Counter()
    users: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for word, symbols in spelled.items():
        for pair in itertools.pairwise(symbols):
            counts[pair] += words[word]
            users[pair].add(word)
    merges: list[tuple[str, str]] = []
    while len(merges) < limit and counts:
        pair, count = max(counts.items(), key=lambda item: (item[1], item[0]))
        if count < _MERGE_FLOOR:
            break
        merges.append(pair)
        for word in list(users[pair]):
            before = spelled[word]
            for old in itertools.pairwise(before):
                counts[old] -= words[word]
                users[old].discard(word)
                if counts[old] <= 0:
                    del counts[old]
            after = spelled[word] = _merge(before, *pair)
            for new in itertools.pairwise(after):
                counts[new] += words[word]
                users[new].add(word)
    return merges


@dataclass(frozen=True)
class BytePairTokenizer:
    """A finished vocabulary. Encoding agrees with llama.cpp's, special pieces parsed."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[tuple[str, str], ...]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)
    _ranks: dict[tuple[str, str], int] = field(init=False, repr=False, compare=False)
    _words: dict[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)
    _special: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        special = (*CONTROL_PIECES, *MARKUP_PIECES)
        pattern = re.compile("(" + "|".join(re.escape(piece) for piece in special) + ")")
        object.__setattr__(self, "_ids", {token: index for index, token in enumerate(self.tokens)})
        object.__setattr__(self, "_ranks", {pair: rank for rank, pair in enumerate(self.merges)})
        object.__setattr__(self, "_words", {})
        object.__setattr__(self, "_special", pattern)

    @classmethod
    def train(cls, text: str, size: int) -> BytePairTokenizer:
        """A vocabulary of exactly ``size`` tokens; what the text cannot fill stays UNUSED."""
        special = (*CONTROL_PIECES, *MARKUP_PIECES)
        room = size - len(ALPHABET) - len(special)
        assert room >= 0, f"a byte-level vocabulary has at least {size - room} tokens"
        return cls.from_merges(learn_merges(text, room), size)

    @classmethod
    def from_merges(cls, merges: Iterable[tuple[str, str]], size: int) -> BytePairTokenizer:
        """Alphabet, merges, special pieces, then UNUSED tokens up to ``size``."""
        kept = tuple(merges)
        # Two merges may spell the same token, and llama.cpp refuses a vocabulary with twins.
        tokens = list(dict.fromkeys([*sorted(ALPHABET), *(left + right for left, right in kept)]))
        types = [TokenType.NORMAL] * len(tokens)
        tokens += CONTROL_PIECES
        types += [TokenType.CONTROL] * len(CONTROL_PIECES)
        tokens += MARKUP_PIECES
        types += [TokenType.USER_DEFINED] * len(MARKUP_PIECES)
        while len(tokens) < size:
            tokens.append(f"<|unused{len(tokens)}|>")
            types.append(TokenType.UNUSED)
        return cls(tuple(tokens), tuple(int(kind) for kind in types), kept)

    def __len__(self) -> int:
        return len(self.tokens)

    def id_of(self, token: str) -> int:
        return self._ids[token]

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; special pieces in it become their own tokens."""
        ids: list[int] = []
        for part in self._special.split(text):
            if self._special.fullmatch(part):
                ids.append(self._ids[part])
                continue
            for word in pre_split(part):
                ids.extend(self._encode_word(word))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``, special pieces written out; broken UTF-8 becomes U+FFFD."""
        values = {character: byte for byte, character in enumerate(ALPHABET)}
        data = bytearray()
        for index in ids:
            token = self.tokens[index]
            if self.types[index] == TokenType.NORMAL:
                data += bytes(values[character] for character in token)
            else:
                data += token.encode()
        return data.decode(errors="replace")

    def _encode_word(self, word: str) -> tuple[int, ...]:
        known = self._words.get(word)
        if known is not None:
            return known
        symbols = _symbols(word)
        while len(symbols) > 1:
            pairs = itertools.pairwise(symbols)
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self.merges)))
            if best not in self._ranks:
                break
            symbols = _merge(symbols, *best)
        ids = tuple(self._ids[symbol] for symbol in symbols)
        self._words[word] = ids
        return ids


@dataclass(frozen=True)
class WordPieceVocabulary:
    """BERT's vocabulary in GGUF's dialect: word starts carry U+2581, continuations nothing."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]

    @classmethod
    def from_words(cls, words: Iterable[str]) -> WordPieceVocabulary:
        control = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        characters = [chr(code) for code in range(0x21, 0x7F)]
        starts = [f"\u2581{character}" for character in characters]
        whole = [f"\u2581{word}" for word in sorted({word.lower() for word in words})]
        normal = list(dict.fromkeys([*starts, *characters, *whole]))
        kinds = [TokenType.CONTROL] * len(control) + [TokenType.NORMAL] * len(normal)
        return cls((*control, *normal), tuple(int(kind) for kind in kinds))

    def __len__(self) -> int:
        return len(self.tokens)

    def id_of(self, token: str) -> int:
        return self.tokens.index(token)
