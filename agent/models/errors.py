"""What can go wrong with models on disk, as types. ``api/errors.py`` maps them to words."""

from __future__ import annotations

from dataclasses import dataclass


class ModelError(Exception):
    """Base of every error the models package raises on purpose."""


@dataclass
class InvalidName(ModelError):
    """A model name that breaks the naming rules."""

    name: str

    def __str__(self) -> str:
        return f'name "{self.name}" is invalid'


@dataclass
class ModelNotFound(ModelError):
    """No manifest under that name. ``name`` is as the client wrote it."""

    name: str

    def __str__(self) -> str:
        return f"model '{self.name}' not found"


@dataclass
class BlobNotFound(ModelError):
    digest: str

    def __str__(self) -> str:
        return f'blob "{self.digest}" not found'


class InvalidDigest(ModelError):
    """A digest that is not ``sha256:`` and 64 hex digits."""


@dataclass
class DigestMismatch(ModelError):
    expected: str
    actual: str

    def __str__(self) -> str:
        return f'digest mismatch, expected "{self.expected}", got "{self.actual}"'


class InvalidGguf(ModelError):
    """A file that is not a readable GGUF; the message says where and why."""


class InvalidModelfile(ModelError):
    """A Modelfile that cannot be parsed; the message names the line."""


class CreateRejected(ModelError):
    """A create request that cannot be carried out; the caller's fault."""


class CreateFailed(ModelError):
    """A create request that failed on our side."""


class DiskFull(ModelError):
    """Not enough free space; the message says how much is needed and how much is free."""


class StoreNotWritable(ModelError):
    """The store refused a change, for example because it is read-only; the message says why."""


class UnusableModel(ModelError):
    """A model in the store that this node cannot serve; the message says why."""


class UntranslatableDialect(UnusableModel):
    """A file in Ollama's own GGUF dialect that header edits cannot turn into llama.cpp's; the
    message names an equivalent model to pull."""
