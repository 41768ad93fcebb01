"""Where things lie in a well-formed GGUF, found by a reader of our own for tests alone.

Layout (little-endian): magic, version u32, tensor count u64, key count u64; per key a string
(u64 length, bytes), a type u32 and a value; per tensor a string, dimension count u32, dimensions
u64, type u32, offset u64; padding; data.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

COUNTS_AT: Final = 8
HEADER_BYTES: Final = 24
DEFAULT_ALIGNMENT: Final = 32

STRING: Final = 8
ARRAY: Final = 9
SCALARS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """One key-value pair; ``at`` is where its name's length stands."""

    name: str
    kind: int
    at: int
    value_at: int
    end: int

    @property
    def kind_at(self) -> int:
        return self.value_at - 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor description."""

    name: str
    dimensions: int
    at: int
    dimensions_at: int
    end: int

    @property
    def first_size_at(self) -> int:
        return self.dimensions_at + 4

    @property
    def type_at(self) -> int:
        return self.first_size_at + 8 * self.dimensions

    @property
    def offset_at(self) -> int:
        return self.type_at + 4


@dataclass(frozen=True, slots=True)
class Layout:
    """All places of one file."""

    keys: tuple[Key, ...]
    tensors: tuple[Tensor, ...]
    tensors_at: int
    data_at: int

    def key(self, name: str) -> Key:
        return next(key for key in self.keys if key.name == name)


def read_layout(data: bytes) -> Layout:
    """Find everything in ``data``, which must be well-formed."""
    tensor_count, key_count = struct.unpack_from("<QQ", data, COUNTS_AT)
    at = HEADER_BYTES
    keys: list[Key] = []
    for _ in range(key_count):
        start = at
        name, at = _string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        value_at = at + 4
        at = _skip(data, value_at, kind)
        keys.append(Key(name, kind, start, value_at, at))
    tensors_at = at
    tensors: list[Tensor] = []
    for _ in range(tensor_count):
        start = at
        name, dimensions_at = _string(data, at)
        (dimensions,) = struct.unpack_from("<I", data, dimensions_at)
        at = dimensions_at + 4 + 8 * dimensions + 4 + 8
        tensors.append(Tensor(name, dimensions, start, dimensions_at, at))
    return Layout(tuple(keys), tuple(tensors), tensors_at, align(at, DEFAULT_ALIGNMENT))


def align(at: int, alignment: int) -> int:
    return (at + alignment - 1) // alignment * alignment


def string(text: str | bytes) -> bytes:
    """A GGUF string."""
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def _string(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + length].decode(), at + 8 + length


def _skip(data: bytes, at: int, kind: int) -> int:
    if kind == STRING:
        (length,) = struct.unpack_from("<Q", data, at)
        return at + 8 + length
    if kind == ARRAY:
        element, count = struct.unpack_from("<IQ", data, at)
        at += 12
        for _ in range(count):
            at = _skip(data, at, element)
        return at
    return at + struct.calcsize(SCALARS[kind])
