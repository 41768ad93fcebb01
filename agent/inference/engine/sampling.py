"""From logits to one token of one sequence: penalties, grammar, draw, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agent.inference.engine.draw import choose, position_key
from agent.inference.llama.model import Vocabulary
from agent.inference.llama.sampler import ChainSampler, Grammar, Truncation
from agent.inference.protocol import LogprobRow, Sampling

LOGIT_LIMIT: Final = 1e30
"""Penalties move logits no further than this: infinities would make probabilities NaN."""


class GrammarDeadEnd(Exception):
    """The grammar allows no token of this vocabulary here."""


class SequenceSampler:
    """Draws the tokens of one sequence.

    Penalties and biases are written straight into the logits row of the few tokens they touch;
    llama.cpp's own penalty sampler walks the whole vocabulary (60 us a token at 32 k).
    """

    def __init__(
        self, sampling: Sampling, vocabulary: Vocabulary, chains: ChainSampler, grammar: str
    ) -> None:
        """Raises GrammarRejected."""
        self._vocabulary = vocabulary
        self._chains = chains
        self._seed = sampling.seed
        self._greedy = sampling.temperature <= 0
        self._truncation = Truncation(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p,
        )
        self._repeat = sampling.repeat_penalty
        self._frequency = sampling.frequency_penalty
        self._presence = sampling.presence_penalty
        self._last_n = sampling.repeat_last_n
        self._penalises = self._last_n != 0 and (
            self._repeat != 1.0 or self._frequency != 0.0 or self._presence != 0.0
        )
        self._bias: tuple[NDArray[np.int32], NDArray[np.float32]] | None = None
        bias = {
            token: value for token, value in sampling.logit_bias if 0 <= token < vocabulary.size
        }
        if sampling.ignore_eos:
            bias.update(dict.fromkeys(vocabulary.end_tokens, -np.inf))
        if bias:
            self._bias = (
                np.fromiter(bias.keys(), np.int32, len(bias)),
                np.fromiter(bias.values(), np.float32, len(bias)),
            )
        self._grammar = Grammar(vocabulary, grammar) if grammar else None

    def replay(self, tokens: Sequence[int]) -> bool:
        """Feed tokens that were drawn elsewhere. False if the grammar does not allow them."""
        if self._grammar is None:
            return True
        for token in tokens:
            if not self._grammar.allows(token):
                return False
            self._grammar.accept(token)
        return True

    def draw(
        self,
        context: int,
        row: int,
        logits: NDArray[np.float32],
        history: Sequence[int],
        position: int,
    ) -> int:
        """The token at answer ``position``. ``history`` is prompt plus answer so far; ``logits``
        is output ``row`` of the last decode and is modified.

        Raises GrammarDeadEnd.
        """
        if self._penalises:
            self._penalise(logits, history)
        if self._bias is not None:
            tokens, values = self._bias
            logits[tokens] += values
        if self._greedy:
            return self._greedily(logits)
        key = position_key(self._seed, position)

        def keyed(tokens: NDArray[np.int32], scaled: NDArray[np.float32]) -> int:
            return choose(key, tokens, scaled)

        token = self._chains.sample(context, row, self._truncation, keyed)
        if self._grammar is None:
            return token
        if not self._grammar.allows(token):
            masked = self._chains.sample_masked(logits, self._grammar, self._truncation, keyed)
            return self._accepted(masked)
        return self._accepted(token)

    def close(self) -> None:
        """Free the grammar."""
        if self._grammar is not None:
            self._grammar.close()
            self._grammar = None

    def _greedily(self, logits: NDArray[np.float32]) -> int:
        token = int(logits.argmax())
        if self._grammar is None:
            return token
        if not self._grammar.allows(token):
            return self._accepted(self._chains.best_masked(logits, self._grammar))
        return self._accepted(token)

    def _accepted(self, token: int | None) -> int:
        if token is None:
            raise GrammarDeadEnd
        if token not in self._vocabulary.end_tokens:
            assert self._grammar is not None
            self._grammar.accept(token)
        return token

    def _penalise(self, logits: NDArray[np.float32], history: Sequence[int]) -> None:
        recent = history if self._last_n < 0 else history[-self._last_n :]
        tokens, counts = np.unique(np.fromiter(recent, np.int32, len(recent)), return_counts=True)
        values = logits[tokens].astype(np.float64)
        if self._repeat != 1.0:
            # A penalty of zero is allowed and asks for repetition at any price.
            with np.errstate(divide="ignore"):
                values = np.where(values <= 0, values * self._repeat, values / self._repeat)
        values -= counts * self._frequency + self._presence
        logits[tokens] = np.clip(values, -LOGIT_LIMIT, LOGIT_LIMIT)


def log_probabilities(
    logits: NDArray[np.float32], token: int, alternatives: int, vocabulary: Vocabulary
) -> tuple[float, tuple[tuple[int, bytes, float], ...]]:
    """Natural log-probability of ``token`` and of the likeliest ``alternatives``, best first.

    Taken from the raw logits, before penalties and truncation, as llama-server reports them.
    """
    peak = float(logits.max())
    total = peak + float(np.log(np.exp(logits - peak, dtype=np.float64).sum()))
    top: tuple[tuple[int, bytes, float], ...] = ()
    if alternatives > 0:
        count = min(alternatives, logits.size)
        best = np.argpartition(logits, logits.size - count)[logits.size - count :]
        best = best[np.argsort(-logits[best], kind="stable")]
        top = tuple(
            (int(one), vocabulary.spell(int(one), special=True), float(logits[one]) - total)
            for one in best
        )
    return float(logits[token]) - total, top


def logprob_row(
    raw: NDArray[np.float32], token: int, alternatives: int, vocabulary: Vocabulary
) -> LogprobRow:
    """The protocol's row for one drawn token. ``raw`` are logits nothing has modified yet."""
    chosen, top = log_probabilities(raw, token, alternatives, vocabulary)
    return LogprobRow(
        chosen=(token, vocabulary.spell(token, special=True), chosen),
        top=top,
    )
