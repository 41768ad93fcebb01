"""The keyed draw: which candidate is taken at an answer position. Pure.

Sampling must give the same token wherever it runs, so it may not depend on a generator's state.
Each candidate gets Gumbel noise from a counter hash of (seed, position, token id) and the largest
noisy logit wins, which draws from the softmax of the logits (the Gumbel-max trick, Yellott 1977).
Keying by token id makes the draw independent of the order of near-tied candidates, which an
inverted cumulative distribution is not: a swap of two likely neighbours would move the outcome for
a large share of all seeds, here it moves nothing. The hash is SplitMix64's finaliser (Steele, Lea
and Flood 2014).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)
_TOKEN_STRIDE: Final = np.uint64(0xD1342543DE82EF95)
_S30: Final = np.uint64(30)
_S27: Final = np.uint64(27)
_S31: Final = np.uint64(31)
_S11: Final = np.uint64(11)
_HALF: Final = 0.5
_UNIT: Final = 2.0**-53


def mix(value: int) -> int:
    """SplitMix64's finaliser on one 64-bit integer."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def position_key(seed: int, position: int) -> int:
    """The 64-bit key of one answer position."""
    return mix(mix(seed) + (position + 1) * _GOLDEN)


def choose(key: int, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> int:
    """Index of the drawn candidate. ``logits`` are already divided by the temperature."""
    hashed = tokens.astype(np.uint64)
    hashed *= _TOKEN_STRIDE
    hashed += np.uint64(key)
    hashed ^= hashed >> _S30
    hashed *= _FIRST
    hashed ^= hashed >> _S27
    hashed *= _SECOND
    hashed ^= hashed >> _S31
    uniform = (hashed >> _S11).astype(np.float64)
    uniform += _HALF
    uniform *= _UNIT
    np.log(uniform, out=uniform)
    np.negative(uniform, out=uniform)
    np.log(uniform, out=uniform)
    return int((logits - uniform).argmax())
