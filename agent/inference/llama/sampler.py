"""C sampler chains that end in our own keyed draw, and grammars beside them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agent.inference.llama import library
from agent.inference.llama.model import Vocabulary

TOKEN_DATA: Final = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
CHAIN_LIMIT: Final = 64
"""Chains kept for distinct settings; the oldest goes first."""
HOPELESS: Final = 80.0
"""Candidates this far below the best logit are left out before typical sampling."""

Choose = Callable[[NDArray[np.int32], NDArray[np.float32]], int]


@dataclass(frozen=True, slots=True)
class Truncation:
    """What the C chain does before the draw, in llama.cpp's order."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float


class GrammarRejected(Exception):
    """llama.cpp could not parse a grammar."""


class Grammar:
    """State of one grammar. It stays outside the chain: one token is checked after sampling, and
    only a rejected one makes the whole vocabulary pass through (1.6 us against 8 ms)."""

    def __init__(self, vocabulary: Vocabulary, gbnf: str) -> None:
        """Raises GrammarRejected."""
        self._handle: int | None = library.sampler_init_grammar(
            vocabulary.handle, gbnf.encode(), b"root"
        )
        if not self._handle:
            raise GrammarRejected("the grammar was refused")
        self._one: NDArray[Any] = np.zeros(1, TOKEN_DATA)
        self._array = _token_array(self._one)
        self._array_address = ctypes.addressof(self._array)

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next."""
        self._one["id"] = token
        self._one["logit"] = 1.0
        self._array.size = 1
        self._array.selected = -1
        library.sampler_apply(self._handle, self._array_address)
        return bool(self._one["logit"][0] != -np.inf)

    def mask(self, candidates: int) -> None:
        """Set forbidden candidates of a token array (by address) to minus infinity."""
        library.sampler_apply(self._handle, candidates)

    def accept(self, token: int) -> None:
        """Advance. A token that ``allows`` refuses would end the process."""
        library.sampler_accept(self._handle, token)

    def close(self) -> None:
        """Free the state."""
        if self._handle:
            library.sampler_free(self._handle)
            self._handle = None


class ChainSampler:
    """Draws tokens through C chains that share one draw function. One thread only."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._chains: dict[Truncation, int] = {}
        self._choose: Choose | None = None
        self._failure: Exception | None = None
        self._apply = library.bindings.llama_sampler_i_apply(self._on_apply)
        self._name = library.bindings.llama_sampler_i_name(_draw_name)
        self._interface = library.SamplerInterface(name=self._name, apply=self._apply)
        self._apply_hopeful = library.bindings.llama_sampler_i_apply(_keep_hopeful)
        self._hopeful = library.SamplerInterface(name=self._name, apply=self._apply_hopeful)
        self._all_ids: NDArray[np.int32] = np.arange(vocabulary.size, dtype=np.int32)
        self._full: NDArray[Any] = np.zeros(vocabulary.size, TOKEN_DATA)
        self._full_array = _token_array(self._full)
        self._full_address = ctypes.addressof(self._full_array)

    def sample(self, context: int, row: int, truncation: Truncation, choose: Choose) -> int:
        """Draw from output ``row`` of the last decode."""
        chain = self._chain(truncation)
        self._choose = choose
        token: int = library.sampler_sample(chain, context, row)
        self._raise_failure()
        return token

    def sample_masked(
        self, logits: NDArray[np.float32], grammar: Grammar, truncation: Truncation, choose: Choose
    ) -> int | None:
        """Draw among what ``grammar`` allows; None if it allows nothing."""
        self._fill(logits)
        grammar.mask(self._full_address)
        allowed = self._full[np.isfinite(self._full["logit"])]
        if not allowed.size:
            return None
        # Only what is allowed stays, so that no sampler can bring a forbidden token back.
        self._full[: allowed.size] = allowed
        self._full_array.size = allowed.size
        self._choose = choose
        library.sampler_apply(self._chain(truncation), self._full_address)
        self._raise_failure()
        return int(self._full["id"][self._full_array.selected])

    def best_masked(self, logits: NDArray[np.float32], grammar: Grammar) -> int | None:
        """The likeliest token that ``grammar`` allows; None if it allows nothing."""
        self._fill(logits)
        grammar.mask(self._full_address)
        best = int(self._full["logit"].argmax())
        if not np.isfinite(self._full["logit"][best]):
            return None
        return int(self._full["id"][best])

    def close(self) -> None:
        """Free the chains."""
        for chain in self._chains.values():
            library.sampler_free(chain)
        self._chains.clear()

    def _fill(self, logits: NDArray[np.float32]) -> None:
        self._full["id"] = self._all_ids
        self._full["logit"] = logits
        self._full_array.size = logits.size
        self._full_array.selected = -1
        self._full_array.sorted = False

    def _chain(self, truncation: Truncation) -> int:
        # Without penalties and generators in it a chain has no state: all sequences share it.
        chain = self._chains.get(truncation)
        if chain is None:
            if len(self._chains) >= CHAIN_LIMIT:
                library.sampler_free(self._chains.pop(next(iter(self._chains))))
            chain = self._chains[truncation] = self._build(truncation)
        return chain

    def _build(self, truncation: Truncation) -> int:
        chain: int = library.sampler_chain_init(library.sampler_chain_default_params())
        if truncation.top_k > 0:
            library.sampler_chain_add(chain, library.sampler_init_top_k(truncation.top_k))
        if truncation.typical_p < 1:
            # llama.cpp takes the logarithm of every probability here: one that is zero makes
            # all scores NaN, and sorting those reads beyond the array.
            hopeful = library.sampler_init(ctypes.addressof(self._hopeful), None)
            library.sampler_chain_add(chain, hopeful)
            library.sampler_chain_add(chain, library.sampler_init_typical(truncation.typical_p, 1))
        if truncation.top_p < 1:
            library.sampler_chain_add(chain, library.sampler_init_top_p(truncation.top_p, 1))
        if truncation.min_p > 0:
            library.sampler_chain_add(chain, library.sampler_init_min_p(truncation.min_p, 1))
        library.sampler_chain_add(chain, library.sampler_init_temp(truncation.temperature))
        draw = library.sampler_init(ctypes.addressof(self._interface), None)
        library.sampler_chain_add(chain, draw)
        return chain

    def _on_apply(self, _sampler: object, candidates: Any) -> None:
        # An exception cannot cross C: the first candidate is taken and the error raised after.
        array = candidates.contents
        array.selected = 0
        try:
            assert self._choose is not None
            view = _candidates(array)
            array.selected = self._choose(view["id"], view["logit"])
        except Exception as error:
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure


def _keep_hopeful(_sampler: object, candidates: Any) -> None:
    array = candidates.contents
    view = _candidates(array)
    kept = view[view["logit"] > view["logit"].max() - HOPELESS]
    if 0 < kept.size < view.size:
        view[: kept.size] = kept
        array.size = kept.size
        array.selected = -1


def _candidates(array: Any) -> NDArray[Any]:
    """The candidates of a token array, writable, in place."""
    size = int(array.size)
    address = ctypes.cast(array.data, ctypes.c_void_p).value
    assert address is not None
    memory: Any = (ctypes.c_char * (size * TOKEN_DATA.itemsize)).from_address(address)
    return np.frombuffer(memory, TOKEN_DATA, size)


def _draw_name(_sampler: object) -> bytes:
    return b"keyed-draw"


def _token_array(data: NDArray[Any]) -> Any:
    return library.TokenDataArray(
        data=data.ctypes.data_as(library.bindings.llama_token_data_p),
        size=data.size,
        selected=-1,
        sorted=False,
    )
