"""The model that ships with llamesh: a million parameters, known answers, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Final

NAME: Final = "llamesh-tiny"
"""Model name under which a node offers it."""
MODEL_PATH: Final = Path(__file__).with_name("llamesh-tiny.gguf")
ANSWERS_PATH: Final = Path(__file__).with_name("llamesh-tiny.json")
"""Digest and greedy answers, as the training script recorded them."""
SHA256: Final = "6fba5f6c9e50da5ccd98af845c9473fa1b0f9fd54493f4dfc5737da8c44278b4"
