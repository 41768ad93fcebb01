"""The ``details`` object of a model, shared by tags, ps and show. Pure."""

from __future__ import annotations

from typing import Final

from agent.models.installed import InstalledModel

_UNITS: Final = ("B", "KB", "MB", "GB", "TB")
_STEP: Final = 1000


def model_details(model: InstalledModel) -> dict[str, object]:
    """Format, family and size of a model."""
    return {
        "parent_model": model.parent_model,
        "format": "gguf",
        "family": model.family,
        "families": list(model.families),
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
        "context_length": model.header.context_length,
        "embedding_length": model.header.embedding_length,
    }


def human_size(size_bytes: int) -> str:
    """A decimal size for people: ``3.8GB``, ``45MB``, ``812B``."""
    value = float(size_bytes)
    unit = 0
    while value >= _STEP and unit < len(_UNITS) - 1:
        value /= _STEP
        unit += 1
    text = f"{value:.1f}" if 0 < value < 10 and unit else f"{value:.0f}"
    return f"{text.removesuffix('.0')}{_UNITS[unit]}"
