"""The steps of a dialect translation: small edits of keys and tensor tables. Pure.

A step returns None, or the reason why the file cannot be translated. ``{arch}`` in a key stands
for the current architecture name.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from agent.models.ggml_types import padded, tensor_bytes
from agent.models.gguf import GgufArray, GgufHeader, GgufTensor, ValueType
from agent.models.gguf_encode import (
    EncodedValue,
    TensorSpec,
    encode_numbers,
    encode_scalar,
    encode_strings,
)

Check = Callable[["Draft"], bool]
_NORMAL_TOKEN: Final = 1
_BYTE_TOKEN: Final = 6


@dataclass(frozen=True, slots=True)
class Segment:
    """``length`` bytes of the old file from ``offset``, then ``padding`` zero bytes."""

    offset: int
    length: int
    padding: int


class Draft:
    """A header being rewritten. Values that no step touches keep their bytes."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.architecture = header.architecture
        self.values: dict[str, EncodedValue] = {
            key: EncodedValue(value.type, header.data[value.start : value.end])
            for key, value in header.values.items()
        }
        self.tensors: list[GgufTensor] = list(header.tensors)

    def key(self, pattern: str) -> str:
        return pattern.replace("{arch}", self.architecture)

    def has(self, name: str) -> bool:
        return any(tensor.name == name for tensor in self.tensors)

    def tensor(self, name: str) -> GgufTensor | None:
        return next((tensor for tensor in self.tensors if tensor.name == name), None)

    def rows(self, name: str) -> int | None:
        tensor = self.tensor(name)
        return tensor.dimensions[1] if tensor and len(tensor.dimensions) > 1 else None

    def text(self, key: str) -> str | None:
        return self.header.text(key)

    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(tensor.name, tensor.dimensions, tensor.type) for tensor in self.tensors
        )

    def segments(self) -> tuple[Segment, ...]:
        """The data of all tensors in order, neighbours joined to few long pieces."""
        joined: list[Segment] = []
        for tensor in self.tensors:
            padding = padded(tensor.size_bytes, self.header.alignment) - tensor.size_bytes
            last = joined[-1] if joined else None
            if last and last.offset + last.length + last.padding == tensor.offset:
                length = last.length + last.padding + tensor.size_bytes
                joined[-1] = Segment(last.offset, length, padding)
            else:
                joined.append(Segment(tensor.offset, tensor.size_bytes, padding))
        return tuple(joined)


class Step(Protocol):
    def apply(self, draft: Draft) -> str | None: ...


def has_key(pattern: str) -> Check:
    return lambda draft: draft.key(pattern) in draft.values


def lacks_key(pattern: str) -> Check:
    return lambda draft: draft.key(pattern) not in draft.values


def has_tensor(prefix: str, *, ending: bool = False) -> Check:
    """Some tensor's name starts (or ends) with ``prefix``."""
    if ending:
        return lambda draft: any(tensor.name.endswith(prefix) for tensor in draft.tensors)
    return lambda draft: any(tensor.name.startswith(prefix) for tensor in draft.tensors)


def text_is(key: str, text: str) -> Check:
    return lambda draft: draft.text(key) == text


def token_is(index: int, token: str) -> Check:
    """The vocabulary has ``token`` at ``index``."""

    def check(draft: Draft) -> bool:
        tokens = draft.header.strings("tokenizer.ggml.tokens", index + 1)
        return tokens is not None and len(tokens) > index and tokens[index] == token.encode()

    return check


def float32(value: float) -> EncodedValue:
    return encode_scalar(ValueType.FLOAT32, value)


def uint32(value: int) -> EncodedValue:
    return encode_scalar(ValueType.UINT32, value)


def integers32(*values: int) -> EncodedValue:
    return encode_numbers(ValueType.INT32, values)


@dataclass(frozen=True, slots=True)
class ChangeArchitecture:
    """Another architecture name; its keys move to the new prefix."""

    name: str

    def apply(self, draft: Draft) -> None:
        old, new = f"{draft.architecture}.", f"{self.name}."
        draft.values = {
            new + key.removeprefix(old) if key.startswith(old) else key: value
            for key, value in draft.values.items()
        }
        draft.values["general.architecture"] = encode_scalar(ValueType.STRING, self.name)
        draft.architecture = self.name


@dataclass(frozen=True, slots=True)
class CopyKey:
    source: str
    target: str

    def apply(self, draft: Draft) -> None:
        value = draft.values.get(draft.key(self.source))
        if value is not None:
            draft.values[draft.key(self.target)] = value


@dataclass(frozen=True, slots=True)
class SetValue:
    """A value where the key is missing, or always with ``replace``; None removes the key."""

    pattern: str
    value: EncodedValue | None
    replace: bool = False
    context_from: int = 0
    """Only for models with at least this context length."""

    def apply(self, draft: Draft) -> None:
        context = draft.header.integer(f"{draft.header.architecture}.context_length") or 0
        key = draft.key(self.pattern)
        if context < self.context_from or (key in draft.values and not self.replace):
            return
        if self.value is None:
            draft.values.pop(key, None)
        else:
            draft.values[key] = self.value


@dataclass(frozen=True, slots=True)
class SetText:
    """Like SetValue; an empty text or ``placeholder`` counts as missing."""

    pattern: str
    text: str
    replace: bool = False
    placeholder: str = ""
    context_from: int = 0

    def apply(self, draft: Draft) -> None:
        current = draft.text(draft.key(self.pattern))
        SetValue(
            self.pattern,
            encode_scalar(ValueType.STRING, self.text),
            self.replace or current in ("", self.placeholder),
            self.context_from,
        ).apply(draft)


@dataclass(frozen=True, slots=True)
class SetCount:
    """The length of another key's array, 0 without one, where the key is missing."""

    pattern: str
    array: str

    def apply(self, draft: Draft) -> None:
        count = draft.header.array_length(draft.key(self.array)) or 0
        SetValue(self.pattern, uint32(count)).apply(draft)


@dataclass(frozen=True, slots=True)
class FromShape:
    """One dimension of a tensor as a key."""

    pattern: str
    tensor: str
    dimension: int
    replace: bool = False
    required: bool = False

    def apply(self, draft: Draft) -> str | None:
        tensor = draft.tensor(self.tensor)
        if tensor is None or len(tensor.dimensions) <= self.dimension:
            return f"the tensor '{self.tensor}' is missing" if self.required else None
        value = tensor.dimensions[self.dimension]
        if value >= 1 << 32:
            return f"the tensor '{self.tensor}' has an impossible shape"
        SetValue(self.pattern, uint32(value), self.replace).apply(draft)
        return None


@dataclass(frozen=True, slots=True)
class RenameTensors:
    """Replace part of tensor names: anywhere, only at the end, or the whole name."""

    old: str
    new: str
    suffix: bool = False
    exact: bool = False

    def apply(self, draft: Draft) -> str | None:
        draft.tensors = [
            replace(tensor, name=self._rename(tensor.name)) for tensor in draft.tensors
        ]
        if len({tensor.name for tensor in draft.tensors}) != len(draft.tensors):
            return f"the tensor name '{self.new}' is already taken"
        return None

    def _rename(self, name: str) -> str:
        if self.exact:
            return self.new if name == self.old else name
        if self.suffix:
            return name.removesuffix(self.old) + self.new if name.endswith(self.old) else name
        # Some files already have the new name, of which the old one may be a part.
        return name if self.new in name else name.replace(self.old, self.new, 1)


@dataclass(frozen=True, slots=True)
class DropTensors:
    prefixes: tuple[str, ...]

    def apply(self, draft: Draft) -> None:
        draft.tensors = [
            tensor for tensor in draft.tensors if not tensor.name.startswith(self.prefixes)
        ]


@dataclass(frozen=True, slots=True)
class RefuseTensors:
    """Ends the translation if some tensor's name ends with ``ending``."""

    ending: str
    reason: str

    def apply(self, draft: Draft) -> str | None:
        refused = any(tensor.name.endswith(self.ending) for tensor in draft.tensors)
        return self.reason if refused or not self.ending else None


@dataclass(frozen=True, slots=True)
class CollapseToMaximum:
    """An array of one count per layer becomes its maximum (``fallback`` when all are 0)."""

    pattern: str
    fallback: int

    def apply(self, draft: Draft) -> None:
        numbers = draft.header.numbers(draft.key(self.pattern))
        if numbers is None:
            return
        value = int(max(numbers, default=0)) or self.fallback
        if 0 < value < 1 << 32:
            draft.values[draft.key(self.pattern)] = uint32(value)


@dataclass(frozen=True, slots=True)
class PadSections:
    """Rotary sections for three axes get the fourth, which is 0."""

    source: str
    target: str

    def apply(self, draft: Draft) -> str | None:
        old = self.source.replace("{arch}", draft.header.architecture)
        numbers = draft.header.numbers(old)
        if numbers is None or len(numbers) == 4 or self.target_present(draft, old):
            return None
        if len(numbers) != 3 or any(not 0 <= number < 1 << 31 for number in numbers):
            return f"the key '{old}' does not hold three sections"
        draft.values[draft.key(self.target)] = integers32(*(int(number) for number in numbers), 0)
        return None

    def target_present(self, draft: Draft, old: str) -> bool:
        target = self.target.replace("{arch}", draft.header.architecture)
        return target != old and target in draft.header.values


@dataclass(frozen=True, slots=True)
class TruncateVocabulary:
    """Tokens beyond the rows of ``tensor`` go, and the same rows of the tensor ``cut``."""

    tensor: str
    cut: str = ""

    def apply(self, draft: Draft) -> str | None:
        rows = draft.rows(self.tensor)
        if rows is None:
            return f"the tensor '{self.tensor}' is missing"
        for key in ("tokens", "scores", "token_type"):
            _truncate(draft, f"tokenizer.ggml.{key}", rows)
        for index, tensor in enumerate(draft.tensors):
            if tensor.name == self.cut and len(tensor.dimensions) == 2:
                # Rows are contiguous, so the first rows are the first bytes.
                dimensions = (tensor.dimensions[0], min(rows, tensor.dimensions[1]))
                size_bytes = tensor_bytes(tensor.name, dimensions, tensor.type)
                draft.tensors[index] = replace(tensor, dimensions=dimensions, size_bytes=size_bytes)
        return None


@dataclass(frozen=True, slots=True)
class UnusedTokens:
    """Gemma 3n: byte and unused tokens get their types, ``end_token`` ends a turn."""

    end_token: int

    def apply(self, draft: Draft) -> None:
        types = draft.header.numbers("tokenizer.ggml.token_type")
        tokens = draft.header.strings("tokenizer.ggml.tokens")
        rows = draft.rows("per_layer_token_embd.weight")
        if types is not None and tokens is not None:
            kinds = [
                _BYTE_TOKEN
                if len(token) == 6 and token.startswith(b"<0x") and token.endswith(b">")
                else _NORMAL_TOKEN
                if token.startswith(b"<unused")
                else int(kind)
                for token, kind in zip(tokens[:rows], types, strict=False)
            ]
            draft.values["tokenizer.ggml.token_type"] = integers32(*kinds)
        key = "tokenizer.ggml.eos_token_ids"
        ends = [int(number) for number in draft.header.numbers(key) or (1,)]
        if self.end_token not in ends:
            ends.append(self.end_token)
        draft.values[key] = integers32(*ends)


@dataclass(frozen=True, slots=True)
class Llama3Tokens:
    """Turns of Llama 3 end with token 128009, not with the end of text."""

    def apply(self, draft: Draft) -> None:
        for name in ("eos_token_id", "eot_token_id"):
            key = f"tokenizer.ggml.{name}"
            if draft.header.integer(key) in (None, 128_001):
                draft.values[key] = uint32(128_009)


@dataclass(frozen=True, slots=True)
class SetFlashMla:
    """GLM-4.7-Flash: per-head sizes become the absorbed ones of multi-head latent attention."""

    def apply(self, draft: Draft) -> str | None:
        old = draft.header.architecture
        rank = draft.header.integer(f"{old}.attention.kv_lora_rank")
        rotary = draft.header.integer(f"{old}.rope.dimension_count")
        head = draft.header.integer(f"{old}.attention.key_length")
        if rank is None or rotary is None or head is None:
            return "the sizes of its latent attention are missing"
        for name, value in {
            "head_count_kv": 1,
            "key_length": rank + rotary,
            "value_length": rank,
            "key_length_mla": head,
            "value_length_mla": head,
        }.items():
            draft.values[draft.key(f"{{arch}}.attention.{name}")] = uint32(value)
        ends = draft.header.numbers("tokenizer.ggml.eos_token_ids") or ()
        for name, end in zip(("eot_token_id", "eom_token_id"), ends[1:], strict=False):
            SetValue(f"tokenizer.ggml.{name}", uint32(int(end))).apply(draft)
        return None


@dataclass(frozen=True, slots=True)
class DecodeCharsmap:
    """A table stored as a list of base64 characters becomes its bytes."""

    key: str

    def apply(self, draft: Draft) -> str | None:
        characters = draft.header.strings(self.key)
        if characters is None:
            return None
        try:
            table = base64.b64decode(b"".join(characters), validate=True)
        except binascii.Error:
            return f"the key '{self.key}' is not base64"
        draft.values[self.key] = encode_numbers(ValueType.UINT8, table)
        return None


def _truncate(draft: Draft, key: str, count: int) -> None:
    found = draft.header.values.get(key)
    if found is None or not isinstance(found.value, GgufArray) or found.value.count <= count:
        return
    strings = draft.header.strings(key, count)
    if strings is not None:
        draft.values[key] = encode_strings(strings)
        return
    numbers = draft.header.numbers(key) or ()
    draft.values[key] = encode_numbers(found.value.element, numbers[:count])
