"""Writing GGUF headers: values, and the table of tensors. Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agent.models.ggml_types import padded, tensor_bytes
from agent.models.gguf import MAGIC, VALUE_CODES, ValueType
from agent.models.installed import GgufScalar

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class EncodedValue:
    """A value as the file holds it, without its type number."""

    type: ValueType
    data: bytes


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written; its offset follows from the order."""

    name: str
    dimensions: tuple[int, ...]
    type: int


def encode_scalar(kind: ValueType, value: GgufScalar) -> EncodedValue:
    """A value that is no array; numbers must fit ``kind``."""
    if kind == ValueType.STRING:
        return EncodedValue(kind, _encode_string(str(value).encode()))
    return EncodedValue(kind, struct.pack(f"<{VALUE_CODES[kind]}", value))


def encode_numbers(element: ValueType, values: Sequence[int | float]) -> EncodedValue:
    head = _U32.pack(element) + _U64.pack(len(values))
    return EncodedValue(
        ValueType.ARRAY, head + struct.pack(f"<{len(values)}{VALUE_CODES[element]}", *values)
    )


def encode_strings(values: Sequence[bytes]) -> EncodedValue:
    head = _U32.pack(ValueType.STRING) + _U64.pack(len(values))
    return EncodedValue(ValueType.ARRAY, head + b"".join(map(_encode_string, values)))


def encode_header(
    values: Mapping[str, EncodedValue], tensors: Sequence[TensorSpec], alignment: int
) -> bytes:
    """A version 3 header, padded so that tensor data can follow at once.

    Tensor data must follow in the order given, each tensor padded to ``alignment``.
    """
    parts = [MAGIC, _U32.pack(3), _U64.pack(len(tensors)), _U64.pack(len(values))]
    for key, encoded in values.items():
        parts += (_encode_string(key.encode()), _U32.pack(encoded.type), encoded.data)
    offset = 0
    for tensor in tensors:
        parts += (_encode_string(tensor.name.encode()), _U32.pack(len(tensor.dimensions)))
        parts.extend(map(_U64.pack, tensor.dimensions))
        parts += (_U32.pack(tensor.type), _U64.pack(offset))
        size_bytes = tensor_bytes(tensor.name, tensor.dimensions, tensor.type)
        offset += padded(size_bytes, alignment)
    header = b"".join(parts)
    return header + bytes(padded(len(header), alignment) - len(header))


def _encode_string(data: bytes) -> bytes:
    return _U64.pack(len(data)) + data
