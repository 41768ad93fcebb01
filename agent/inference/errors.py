"""Everything that can go wrong between a request and its last token, as types.

The API package maps each class to its protocol's status and words in one place
(``api/errors.py``); nothing here knows about HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass


class InferenceError(Exception):
    """Base of every error the inference layer raises on purpose."""


class InvalidRequest(InferenceError):
    """The request itself cannot be served; the message names the field and the fix."""


class InvalidOption(InferenceError):
    """A model option has the wrong JSON type or an impossible value."""


class InvalidFormat(InferenceError):
    """``format`` is neither "json" nor a JSON Schema that can be enforced."""


@dataclass
class UnsupportedCapability(InferenceError):
    """The model cannot do what was asked (``tools``, ``insert``, ``vision``, ...)."""

    model: str
    capability: str

    def __str__(self) -> str:
        return f'"{self.model}" does not support {self.capability}'


class NotAvailable(InferenceError):
    """Asked-for behaviour that this release does not have; the message says which and why."""


class NodeStopping(InferenceError):
    """The node stops before the request could be served, or finished."""


class PromptTooLong(InferenceError):
    """The prompt does not fit the context and the request forbids cutting it."""


class EmbeddingTooLong(InferenceError):
    """An embedding input does not fit and ``truncate`` is off, or nothing of it would remain."""


@dataclass
class QueueFull(InferenceError):
    """The admission queue is at its limit."""

    waiting: int
    limit: int
    retry_after_s: float

    def __str__(self) -> str:
        return f"the queue is full: {self.waiting} of {self.limit} requests are waiting"


class InsufficientMemory(InferenceError):
    """No device can hold the model; the message says what is needed and what is free."""


@dataclass
class LoadFailed(InferenceError):
    """A runner could not load its model."""

    model: str
    phase: str
    reason: str

    def __str__(self) -> str:
        return f"loading {self.model} failed while {self.phase}: {self.reason}"


class LoadStalled(LoadFailed):
    """A load made no progress for longer than the load timeout."""


class RunnerDied(InferenceError):
    """The runner process ended while it was serving this request."""


class RunnerRefused(InferenceError):
    """The runner answered one call with an error and lives on."""


class ClientTooSlow(InferenceError):
    """The consumer of a stream did not read for so long that its buffer reached the limit."""
