"""GGUF headers, versions 2 and 3, little-endian: a bounded parser. Pure.

A header comes from a stranger, so every count, length and offset is checked against a limit and
against the file before it is used; whatever does not hold raises InvalidGguf, which names the
place and the reason. Arrays are skipped without decoding (a vocabulary of 150,000 tokens takes
some tens of milliseconds) and decoded only when asked for. Format: ggml's GGUF specification.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import repeat
from typing import Final

from agent.models.errors import InvalidGguf
from agent.models.ggml_types import padded, tensor_bytes
from agent.models.installed import GgufScalar

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32

HEADER_LIMIT_BYTES: Final = 128 * 1024 * 1024
KEY_LIMIT: Final = 65_536
KEY_LENGTH_LIMIT: Final = 65_535
TENSOR_LIMIT: Final = 131_072
TENSOR_NAME_LIMIT: Final = 255
STRING_LIMIT_BYTES: Final = 16 * 1024 * 1024
ARRAY_LIMIT: Final = 16 * 1024 * 1024
DIMENSION_LIMIT: Final = 4
ALIGNMENT_LIMIT: Final = 1 << 20
_FIRST_READ_BYTES: Final = 1 << 20
_STRING_BLOCK: Final = 512

ReadAt = Callable[[int, int], bytes]
"""``read_at(offset, length)`` returns up to ``length`` bytes, fewer only at the end of the file."""


class ValueType(IntEnum):
    """Types of a key's value, by their number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


VALUE_CODES: Final[dict[ValueType, str]] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "B",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
_SCALARS: Final = {kind: struct.Struct(f"<{code}") for kind, code in VALUE_CODES.items()}
_U64: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array that was skipped: where its elements lie in the header's bytes."""

    element: ValueType
    count: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class GgufValue:
    """One key's value; ``start`` and ``end`` delimit it in the header's bytes, without its type."""

    type: ValueType
    value: GgufScalar | GgufArray
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: ``offset`` counts from the start of the file, dimensions innermost first."""

    name: str
    dimensions: tuple[int, ...]
    type: int
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.dimensions)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """Everything before the tensor data."""

    version: int
    alignment: int
    values: Mapping[str, GgufValue]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    file_bytes: int
    data: bytes
    """The header itself, for arrays and for copying values as they are."""

    @property
    def architecture(self) -> str:
        """``general.architecture``, or an empty string."""
        return self.text("general.architecture") or ""

    def text(self, key: str) -> str | None:
        """A string value; None when absent or of another type."""
        found = self.values.get(key)
        return found.value if found is not None and isinstance(found.value, str) else None

    def integer(self, key: str) -> int | None:
        """An integer value; None when absent or of another type."""
        found = self.values.get(key)
        if found is None or isinstance(found.value, bool) or not isinstance(found.value, int):
            return None
        return found.value

    def array_length(self, key: str) -> int | None:
        """Elements of an array; None when absent or no array."""
        found = self.values.get(key)
        return found.value.count if found and isinstance(found.value, GgufArray) else None

    def numbers(self, key: str) -> tuple[int | float, ...] | None:
        """A decoded array of numbers or booleans; None when absent or something else."""
        found = self.values.get(key)
        if found is None or not isinstance(found.value, GgufArray):
            return None
        array = found.value
        if array.element == ValueType.STRING:
            return None
        return struct.unpack_from(
            f"<{array.count}{VALUE_CODES[array.element]}", self.data, array.start
        )

    def strings(self, key: str, limit: int | None = None) -> tuple[bytes, ...] | None:
        """The first ``limit`` strings of an array, undecoded; None when absent or no strings."""
        found = self.values.get(key)
        if found is None or not isinstance(found.value, GgufArray):
            return None
        array = found.value
        if array.element != ValueType.STRING:
            return None
        result: list[bytes] = []
        position = array.start
        for _ in range(array.count if limit is None else min(limit, array.count)):
            (length,) = _U64.unpack_from(self.data, position)
            position += 8
            result.append(self.data[position : position + length])
            position += length
        return tuple(result)

    def tensor(self, name: str) -> GgufTensor | None:
        return next((tensor for tensor in self.tensors if tensor.name == name), None)


def parse_header(read_at: ReadAt, file_bytes: int) -> GgufHeader:
    """Read a header from a file of ``file_bytes`` bytes.

    Raises InvalidGguf with the place and the reason when the file is not a GGUF that could be
    loaded: wrong magic, version or byte order, any limit exceeded, anything outside the file.
    """
    cursor = _Cursor(read_at, file_bytes)
    if cursor.take(4, "the magic number") != MAGIC:
        raise InvalidGguf("not a GGUF file: the first four bytes are not 'GGUF'")
    version = cursor.u32("the version")
    if version not in VERSIONS:
        if version & 0xFFFF == 0:
            raise InvalidGguf("big-endian GGUF files are not supported")
        raise InvalidGguf(f"GGUF version {version} is not supported, only 2 and 3")
    tensor_count = cursor.bounded(TENSOR_LIMIT, "the number of tensors")
    key_count = cursor.bounded(KEY_LIMIT, "the number of keys")
    values: dict[str, GgufValue] = {}
    for index in range(key_count):
        key = cursor.string(KEY_LENGTH_LIMIT, f"key {index}")
        if key in values:
            raise InvalidGguf(f"key '{key}' appears twice")
        values[key] = _value(cursor, key)
    alignment = _alignment(values)
    infos = [_tensor_info(cursor, index, alignment) for index in range(tensor_count)]
    data_offset = padded(cursor.position, alignment)
    tensors: list[GgufTensor] = []
    names: set[str] = set()
    for name, dimensions, type_id, offset, size_bytes in infos:
        if name in names:
            raise InvalidGguf(f"tensor '{name}' appears twice")
        names.add(name)
        end = data_offset + offset + size_bytes
        if end > file_bytes:
            raise InvalidGguf(
                f"tensor '{name}' ends at byte {end}, beyond the file's {file_bytes} bytes"
            )
        tensors.append(GgufTensor(name, dimensions, type_id, data_offset + offset, size_bytes))
    return GgufHeader(
        version=version,
        alignment=alignment,
        values=values,
        tensors=tuple(tensors),
        data_offset=data_offset,
        file_bytes=file_bytes,
        data=cursor.consumed(),
    )


def parse_bytes(data: bytes | memoryview, file_bytes: int | None = None) -> GgufHeader:
    """``parse_header`` over bytes in memory, which may be just the start of a longer file."""
    view = memoryview(data)
    return parse_header(
        lambda offset, length: bytes(view[offset : offset + length]),
        len(view) if file_bytes is None else file_bytes,
    )


class _Cursor:
    """A position in a header that is read on demand, in growing steps."""

    __slots__ = ("_data", "_file_bytes", "_read_at", "position")

    def __init__(self, read_at: ReadAt, file_bytes: int) -> None:
        self._read_at = read_at
        self._file_bytes = file_bytes
        self._data = b""
        self.position = 0

    def consumed(self) -> bytes:
        return self._data[: self.position]

    def need(self, length: int, what: str) -> None:
        """Make the next ``length`` bytes available."""
        wanted = self.position + length
        have = len(self._data)
        if wanted <= have:
            return
        if wanted > self._file_bytes:
            raise InvalidGguf(
                f"the file ends at byte {self._file_bytes}, inside {what} at byte {self.position}"
            )
        if wanted > HEADER_LIMIT_BYTES:
            raise InvalidGguf(f"the header exceeds {HEADER_LIMIT_BYTES} bytes in {what}")
        target = min(max(wanted, 2 * have, _FIRST_READ_BYTES), self._file_bytes, HEADER_LIMIT_BYTES)
        self._data += self._read_at(have, target - have)
        if len(self._data) < wanted:
            raise InvalidGguf(f"the file ends at byte {len(self._data)}, inside {what}")

    def take(self, length: int, what: str) -> bytes:
        self.need(length, what)
        start = self.position
        self.position += length
        return self._data[start : self.position]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def bounded(self, limit: int, what: str) -> int:
        value = self.u64(what)
        if value > limit:
            raise InvalidGguf(f"{what} is {value}, more than the limit of {limit}")
        return value

    def string(self, limit: int, what: str) -> str:
        length = self.bounded(limit, f"the length of {what}")
        return self.take(length, what).decode("utf-8", "replace")

    def skip_strings(self, count: int, what: str) -> None:
        """Pass over ``count`` strings, in blocks: vocabularies are long, the inner loop tight."""
        unpack = _U64.unpack_from
        remaining = count
        while remaining:
            block = min(remaining, _STRING_BLOCK)
            data, position = self._data, self.position
            try:
                for _ in repeat(None, block):
                    position += 8 + unpack(data, position)[0]
            except (struct.error, OverflowError):
                position = len(data) + 1
            if position <= len(data):
                self.position = position
            else:
                # The block reaches beyond what was read, or lies about a length.
                for _ in range(block):
                    length = self.bounded(STRING_LIMIT_BYTES, f"the length of a string in {what}")
                    self.need(length, what)
                    self.position += length
            remaining -= block


def _value(cursor: _Cursor, key: str) -> GgufValue:
    type_id = cursor.u32(f"the type of key '{key}'")
    try:
        kind = ValueType(type_id)
    except ValueError:
        raise InvalidGguf(f"key '{key}' has the unknown type {type_id}") from None
    start = cursor.position
    what = f"the value of key '{key}'"
    value: GgufScalar | GgufArray
    if kind == ValueType.STRING:
        value = cursor.string(STRING_LIMIT_BYTES, what)
    elif kind == ValueType.ARRAY:
        value = _array(cursor, key, what)
    else:
        scalar = _SCALARS[kind]
        (number,) = scalar.unpack(cursor.take(scalar.size, what))
        value = number
        if kind == ValueType.BOOL:
            if number not in (0, 1):
                raise InvalidGguf(f"key '{key}' is a boolean with the value {number}")
            value = bool(number)
    return GgufValue(kind, value, start, cursor.position)


def _array(cursor: _Cursor, key: str, what: str) -> GgufArray:
    type_id = cursor.u32(f"the element type of key '{key}'")
    try:
        element = ValueType(type_id)
    except ValueError:
        raise InvalidGguf(f"key '{key}' has the unknown element type {type_id}") from None
    if element == ValueType.ARRAY:
        raise InvalidGguf(f"key '{key}' is an array of arrays")
    count = cursor.bounded(ARRAY_LIMIT, f"the number of elements of key '{key}'")
    start = cursor.position
    if element == ValueType.STRING:
        cursor.skip_strings(count, what)
    else:
        length = count * _SCALARS[element].size
        cursor.need(length, what)
        cursor.position += length
    return GgufArray(element, count, start, cursor.position)


def _alignment(values: Mapping[str, GgufValue]) -> int:
    found = values.get("general.alignment")
    if found is None:
        return DEFAULT_ALIGNMENT
    value = found.value
    if found.type != ValueType.UINT32 or not isinstance(value, int):
        raise InvalidGguf("general.alignment is not an unsigned 32-bit number")
    if not 0 < value <= ALIGNMENT_LIMIT or value & (value - 1):
        raise InvalidGguf(f"general.alignment is {value}, not a power of two in range")
    return value


def _tensor_info(
    cursor: _Cursor, index: int, alignment: int
) -> tuple[str, tuple[int, ...], int, int, int]:
    name = cursor.string(TENSOR_NAME_LIMIT, f"the name of tensor {index}")
    what = f"the description of tensor '{name}'"
    count = cursor.u32(what)
    if count > DIMENSION_LIMIT:
        raise InvalidGguf(f"tensor '{name}' has {count} dimensions, at most 4 are possible")
    dimensions = tuple(cursor.u64(what) for _ in range(count))
    if any(not 0 < dimension < 1 << 40 for dimension in dimensions):
        raise InvalidGguf(f"tensor '{name}' has the impossible shape {list(dimensions)}")
    type_id = cursor.u32(what)
    offset = cursor.u64(what)
    if offset % alignment:
        raise InvalidGguf(f"tensor '{name}' starts at {offset}, not a multiple of {alignment}")
    return name, dimensions, type_id, offset, tensor_bytes(name, dimensions, type_id)
