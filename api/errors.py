"""Every error an outside caller can see: typed exception to status, code and words, in one table.

The words of the Ollama family are the ones its clients match on. Routes that word the same
exception differently have an entry under their own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import msgspec

from agent.inference.chat.errors import TemplateError
from agent.inference.errors import (
    ClientTooSlow,
    EmbeddingTooLong,
    InferenceError,
    InsufficientMemory,
    InvalidFormat,
    InvalidOption,
    InvalidRequest,
    LoadFailed,
    NodeStopping,
    NotAvailable,
    PromptTooLong,
    QueueFull,
    RunnerDied,
    RunnerRefused,
    UnsupportedCapability,
)
from agent.models.errors import (
    BlobNotFound,
    CreateFailed,
    CreateRejected,
    DigestMismatch,
    DiskFull,
    InvalidDigest,
    InvalidGguf,
    InvalidModelfile,
    InvalidName,
    ModelError,
    ModelNotFound,
)
from agent.models.names import parse_name
from api.times import rfc3339_utc

Operation = Literal[
    "generate", "chat", "embed", "embeddings", "show", "tags", "ps", "create", "blob", "copy",
    "delete", "pull", "push", "cloud", "node",
]  # fmt: skip

JSON_TYPE: Final = b"application/json; charset=utf-8"


@dataclass
class ApiError(Exception):
    """A request the HTTP layer itself refuses."""

    status: int
    code: str
    text: str

    def __str__(self) -> str:
        return self.text


def bad_request(text: str, code: str = "INVALID_REQUEST") -> ApiError:
    return ApiError(400, code, text)


def missing_body() -> ApiError:
    return bad_request("missing request body")


def model_required() -> ApiError:
    return bad_request("model is required")


def invalid_model_name() -> ApiError:
    return bad_request("invalid model name", "INVALID_NAME")


def body_too_large(limit_bytes: int) -> ApiError:
    return ApiError(
        413,
        "BODY_TOO_LARGE",
        f"the request body is larger than {limit_bytes} bytes; body_limit_bytes sets the limit",
    )


def body_too_slow(timeout_s: float) -> ApiError:
    return ApiError(408, "BODY_TIMEOUT", f"no more of the body came within {timeout_s:g} seconds")


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """One error as it goes out; ``retry_after_s`` becomes a header."""

    status: int
    code: str
    text: str
    retry_after_s: float | None = None

    @property
    def fault(self) -> bool:
        """Whether something is wrong with the node, rather than with the request or its time."""
        return self.status >= 500 and self.code not in _NO_FAULT

    def body(self, *, request_id: str, now_ns: int) -> bytes:
        """The flat error body, Ollama's ``error`` first; no newline at the end."""
        return msgspec.json.encode(
            {
                "error": self.text,
                "code": self.code,
                "message": self.text,
                "detail": self.text,
                "timestamp": rfc3339_utc(now_ns),
                "request_id": request_id,
            }
        )


_NO_FAULT: Final = frozenset(
    {"INVALID_OPTION", "INVALID_FORMAT", "NOT_AVAILABLE", "QUEUE_FULL", "DRAINING"}
)
DRAIN_RETRY_S: Final = 5.0
"""When a client that met a stopping node may try again."""
_UNQUOTED_CAPABILITIES: Final = frozenset({"tools", "insert", "vision"})
_RUNNER_DIED: Final = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an "
    "internal error, check ollama server logs for details"
)
_PROMPT_TOO_LONG: Final = (
    "the prompt is longer than the context length currently available to the model; shorten the "
    "prompt, adjust the context length in settings, or use a model with a longer context length"
)
_QUEUE_FULL: Final = "server busy, please try again.  maximum pending requests exceeded"


def _capability(error: UnsupportedCapability) -> str:
    if error.capability not in _UNQUOTED_CAPABILITIES:
        return f'"{error.model}" does not support {error.capability}'
    try:
        name = parse_name(error.model)
    except InvalidName:
        return f"{error.model} does not support {error.capability}"
    return f"{name.full} does not support {error.capability}"


def _shortest(name: str) -> str:
    try:
        return parse_name(name).short
    except InvalidName:
        return name


def _not_found_quoted(error: ModelNotFound) -> str:
    if not error.name:
        return "model '' not found"
    return f'model "{error.name}" not found, try pulling it first'


@dataclass(frozen=True, slots=True)
class _Row:
    error: type[Exception]
    status: int
    code: str
    text: Callable[[Any], str] = str
    operation: Operation | None = None


# The first row that fits wins: routes with their own words come before the general rows, and a
# subclass comes before its base.
_TABLE: Final = (
    _Row(ModelNotFound, 404, "MODEL_NOT_FOUND", _not_found_quoted, "embed"),
    _Row(ModelNotFound, 404, "MODEL_NOT_FOUND", _not_found_quoted, "embeddings"),
    _Row(
        ModelNotFound, 404, "MODEL_NOT_FOUND",
        lambda error: f"model '{_shortest(error.name)}' not found", "show",
    ),
    _Row(
        ModelNotFound, 404, "MODEL_NOT_FOUND",
        lambda error: f'model "{error.name}" not found', "copy",
    ),
    _Row(ModelNotFound, 404, "MODEL_NOT_FOUND"),
    _Row(
        InvalidName, 404, "MODEL_NOT_FOUND",
        lambda error: f"model '{error.name}' not found", "generate",
    ),
    _Row(
        InvalidName, 404, "MODEL_NOT_FOUND",
        lambda error: f"model '{error.name}' not found", "chat",
    ),
    _Row(InvalidName, 404, "MODEL_NOT_FOUND", _not_found_quoted, "embed"),
    _Row(InvalidName, 404, "MODEL_NOT_FOUND", _not_found_quoted, "embeddings"),
    _Row(
        InvalidName, 404, "MODEL_NOT_FOUND",
        lambda error: f"model '{error.name}' not found", "show",
    ),
    _Row(InvalidName, 400, "INVALID_NAME", lambda _: "invalid model name", "create"),
    _Row(InvalidName, 400, "INVALID_NAME"),
    _Row(BlobNotFound, 400, "BLOB_NOT_FOUND", str, "create"),
    _Row(BlobNotFound, 404, "BLOB_NOT_FOUND"),
    _Row(InvalidDigest, 400, "INVALID_DIGEST", lambda _: "invalid digest format"),
    _Row(DigestMismatch, 400, "DIGEST_MISMATCH"),
    _Row(InvalidGguf, 400, "INVALID_GGUF", str, "create"),
    _Row(InvalidGguf, 500, "INVALID_GGUF"),
    _Row(InvalidModelfile, 400, "INVALID_MODELFILE"),
    _Row(CreateRejected, 400, "CREATE_REJECTED"),
    _Row(CreateFailed, 500, "CREATE_FAILED"),
    _Row(DiskFull, 507, "DISK_FULL"),
    _Row(UnsupportedCapability, 400, "CAPABILITY_MISSING", _capability),
    _Row(EmbeddingTooLong, 400, "INPUT_TOO_LONG"),
    _Row(PromptTooLong, 400, "PROMPT_TOO_LONG", lambda _: _PROMPT_TOO_LONG),
    _Row(InvalidOption, 500, "INVALID_OPTION"),
    _Row(InvalidFormat, 500, "INVALID_FORMAT"),
    _Row(TemplateError, 400, "INVALID_TEMPLATE", lambda error: f"template error: {error}"),
    _Row(InvalidRequest, 400, "INVALID_REQUEST"),
    _Row(NodeStopping, 503, "DRAINING"),
    _Row(NotAvailable, 501, "NOT_AVAILABLE"),
    _Row(QueueFull, 503, "QUEUE_FULL", lambda _: _QUEUE_FULL),
    _Row(InsufficientMemory, 500, "INSUFFICIENT_MEMORY"),
    _Row(
        LoadFailed, 500, "LOAD_FAILED",
        lambda error: f"llama-server process has terminated: {error.reason}",
    ),
    _Row(RunnerDied, 500, "RUNNER_DIED", lambda _: _RUNNER_DIED),
    _Row(RunnerRefused, 400, "RUNNER_REFUSED", str, "embed"),
    _Row(RunnerRefused, 400, "RUNNER_REFUSED", str, "embeddings"),
    _Row(RunnerRefused, 500, "RUNNER_REFUSED"),
    _Row(ClientTooSlow, 500, "CLIENT_TOO_SLOW", lambda _: "the client did not read its answer"),
    _Row(InferenceError, 500, "INFERENCE_ERROR"),
    _Row(ModelError, 500, "MODEL_ERROR"),
)  # fmt: skip

_INTERNAL: Final = ErrorAnswer(
    500, "INTERNAL", "internal error; the log has it under this request id"
)


def describe(error: BaseException, operation: Operation) -> ErrorAnswer | None:
    """How ``error`` is told to callers of ``operation``; None for a defect of ours.

    A group is told as its first known member.
    """
    for leaf in _leaves(error):
        if isinstance(leaf, ApiError):
            return ErrorAnswer(leaf.status, leaf.code, leaf.text)
        for row in _TABLE:
            if isinstance(leaf, row.error) and row.operation in (None, operation):
                return ErrorAnswer(row.status, row.code, row.text(leaf), _retry_after_s(leaf))
    return None


def _retry_after_s(error: BaseException) -> float | None:
    match error:
        case QueueFull():
            return error.retry_after_s
        case NodeStopping():
            return DRAIN_RETRY_S
        case _:
            return None


def draining() -> ErrorAnswer:
    """What a caller hears of a node that finishes its streams before it stops."""
    return ErrorAnswer(
        503, "DRAINING", "the node is stopping and admits no new requests", DRAIN_RETRY_S
    )


def internal_error() -> ErrorAnswer:
    """What a caller hears of a defect: nothing but where to look."""
    return _INTERNAL


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(member)
    else:
        yield error
