"""Ollama's model options: names, types, defaults and precedence. Pure.

Precedence is defaults < the model's PARAMETERs < the request's options; ``stop`` is replaced,
not appended. Unknown names are not an error: callers report them, as Ollama does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

from agent.inference.errors import InvalidOption

OptionValue = str | int | float | bool | None | Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Resolved options of one request. Units are tokens unless the name says otherwise."""

    # Loading: a change may need another runner.
    num_ctx: int = 0
    """Context length; 0 means automatic."""
    num_batch: int = 512
    num_gpu: int = -1
    """Layers on GPUs; -1 means as many as fit."""
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int = 0
    """CPU threads; 0 means the agent decides."""

    # Per request.
    num_keep: int = 4
    seed: int = -1
    """-1 draws one seed at the entry node."""
    num_predict: int = -1
    """Negative means until stop, bounded by ten times the context."""
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    """0 switches penalties off, -1 means the whole context."""
    temperature: float = 0.8
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()


DEFAULT_OPTIONS: Final = Options()

CONTEXT_MINIMUM: Final = 4
"""Smaller context lengths are raised to this, as Ollama does."""
INTEGER_LIMIT: Final = (1 << 31) - 1
"""Integers are kept within what llama.cpp takes; nothing needs more. Seeds have 64 bits."""
FLOAT_LIMIT: Final = 3.4028234663852886e38
"""The largest finite 32-bit float, the type llama.cpp computes with."""

_INTEGERS: Final = frozenset(
    {
        "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep",
        "seed", "num_predict", "top_k", "repeat_last_n",
    }
)  # fmt: skip
_FLOATS: Final = frozenset(
    {
        "top_p", "min_p", "typical_p", "temperature",
        "repeat_penalty", "presence_penalty", "frequency_penalty",
    }
)  # fmt: skip
_BOOLEANS: Final = frozenset({"use_mmap"})
OPTION_NAMES: Final = frozenset(field.name for field in fields(Options))


def unknown_options(options: Mapping[str, OptionValue]) -> tuple[str, ...]:
    """Names that no option has, in the order given."""
    return tuple(name for name in options if name not in OPTION_NAMES)


def apply_options(base: Options, overrides: Mapping[str, OptionValue]) -> Options:
    """``base`` with every known, non-null override put on top. Numbers beyond what llama.cpp
    can hold become the nearest it can.

    Raises InvalidOption with Ollama's words for a value of the wrong JSON type.
    """
    changes: dict[str, object] = {
        name: _checked(name, value)
        for name, value in overrides.items()
        if name in OPTION_NAMES and value is not None
    }
    return replace(base, **changes) if changes else base


def _checked(name: str, value: OptionValue) -> object:
    if name in _INTEGERS:
        return _integer(name, value)
    if name in _FLOATS:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise InvalidOption(f'option "{name}" must be of type float32')
        return float(min(max(value, -FLOAT_LIMIT), FLOAT_LIMIT))
    if name in _BOOLEANS:
        if not isinstance(value, bool):
            raise InvalidOption(f'option "{name}" must be of type boolean')
        return value
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidOption(f'option "{name}" must be of type array')
    stops: list[str] = []
    for item in value:
        if not isinstance(item, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidOption(f'option "{name}" must be of an array of strings')
        stops.append(item)
    return tuple(stops)


def _integer(name: str, value: OptionValue) -> int:
    # JSON has one number type: 2.0 is an integer to Ollama, and so it is here.
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or (isinstance(value, float) and not value.is_integer())
    ):
        raise InvalidOption(f'option "{name}" must be of type integer')
    number = int(value)
    if name == "seed":
        return number
    number = min(max(number, -INTEGER_LIMIT), INTEGER_LIMIT)
    return max(number, CONTEXT_MINIMUM) if name == "num_ctx" and number > 0 else number
