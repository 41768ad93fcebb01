"""Options as clients write them: wrong types are refused, numbers of any size are survived."""

from __future__ import annotations

import math

import pytest

from agent.inference.errors import InvalidOption
from agent.inference.options import (
    CONTEXT_MINIMUM,
    DEFAULT_OPTIONS,
    FLOAT_LIMIT,
    INTEGER_LIMIT,
    apply_options,
)


def applied(**overrides):
    return apply_options(DEFAULT_OPTIONS, overrides)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("num_ctx", "5", "integer"),
        ("num_ctx", 1.5, "integer"),
        ("num_ctx", True, "integer"),
        ("seed", math.inf, "integer"),
        ("seed", math.nan, "integer"),
        ("temperature", "hot", "float32"),
        ("temperature", False, "float32"),
        ("temperature", math.nan, "float32"),
        ("use_mmap", 1, "boolean"),
        ("stop", "x", "array"),
        ("stop", [1], "an array of strings"),
    ],
)
def test_a_wrong_type_is_told_in_ollamas_words(name, value, kind):
    with pytest.raises(InvalidOption, match=f'option "{name}" must be of (type )?{kind}'):
        applied(**{name: value})


def test_a_whole_float_is_an_integer():
    assert applied(num_predict=2.0).num_predict == 2


@pytest.mark.parametrize("name", ["num_predict", "num_batch", "top_k", "repeat_last_n", "num_keep"])
@pytest.mark.parametrize("value", [10**12, 10**400, 1e300])
def test_huge_integers_become_the_largest_that_llama_cpp_takes(name, value):
    assert getattr(applied(**{name: value}), name) == INTEGER_LIMIT
    assert getattr(applied(**{name: -value}), name) == -INTEGER_LIMIT


@pytest.mark.parametrize("name", ["temperature", "repeat_penalty", "presence_penalty"])
@pytest.mark.parametrize("value", [1e300, 10**400, math.inf])
def test_huge_floats_become_the_largest_that_llama_cpp_takes(name, value):
    assert getattr(applied(**{name: value}), name) == FLOAT_LIMIT
    assert getattr(applied(**{name: -value}), name) == -FLOAT_LIMIT


def test_seeds_keep_every_bit():
    assert applied(seed=2**63 + 1).seed == 2**63 + 1
    assert applied(seed=-5).seed == -5


@pytest.mark.parametrize(("asked", "given"), [(1, CONTEXT_MINIMUM), (4, 4), (0, 0), (9, 9)])
def test_a_context_has_a_smallest_length(asked, given):
    assert applied(num_ctx=asked).num_ctx == given


def test_null_and_unknown_options_change_nothing():
    assert applied(temperature=None, nonsense=5) == DEFAULT_OPTIONS
