"""At least two hundred ways to break a GGUF, each named and the same in every run."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.hostile.layout import (
    ARRAY,
    COUNTS_AT,
    DEFAULT_ALIGNMENT,
    HEADER_BYTES,
    SCALARS,
    STRING,
    Key,
    Layout,
    align,
    read_layout,
    string,
)
from tests.models.library import TEXT
from tests.models.llama import LlamaShape, write_llama
from tests.models.tokenizer import BytePairTokenizer

SIZE_LIMIT_BYTES: Final = 4 * 1024 * 1024
RANDOM_FILES: Final = 60
_SHAPE: Final = LlamaShape(
    embedding=64, layers=2, heads=2, kv_heads=1, feed_forward=96, context=512
)
_HUGE: Final = (2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1)


@dataclass(frozen=True, slots=True)
class HostileFile:
    """One broken file. ``name`` says what is wrong and is unique."""

    name: str
    data: bytes


def write_sound_file(path: Path) -> Path:
    """The small, loadable model that all mutations start from."""
    tokenizer = BytePairTokenizer.train(TEXT, 320)
    return write_llama(path, tokenizer, _SHAPE, name="sound", deviation=0.08)


def hostile_files(sound: bytes, seed: int = 7) -> Iterator[HostileFile]:
    """All mutations of ``sound``, none larger than ``SIZE_LIMIT_BYTES``, no content twice."""
    seen = {sound}
    for file in _all(sound, read_layout(sound), seed):
        if file.data not in seen:
            seen.add(file.data)
            yield file


def _all(sound: bytes, layout: Layout, seed: int) -> Iterator[HostileFile]:
    yield from _not_models(sound)
    yield from _truncated(sound, layout)
    yield from _counts(sound)
    yield from _numbers(sound, layout)
    yield from _types(sound, layout)
    yield from _lengths(sound, layout)
    yield from _names(sound, layout)
    yield from _missing_keys(sound, layout)
    yield from _tensor_descriptions(sound, layout)
    yield from _weights(sound, layout, random.Random(seed))
    yield from _tokenizers(sound, layout)
    yield from _templates(sound, layout)
    yield from _added_keys(sound, layout)
    yield from _random(sound, layout, random.Random(seed + 1))


def patch(data: bytes, at: int, value: bytes) -> bytes:
    """``data`` with ``value`` written over it at ``at``."""
    return data[:at] + value + data[at + len(value) :]


def replace_header(data: bytes, layout: Layout, keys: bytes, count: int, tensors: bytes) -> bytes:
    """Other key and tensor sections before the same weights, padded as a writer would."""
    head = data[:16] + struct.pack("<Q", count) + keys + tensors
    padding = align(len(head), DEFAULT_ALIGNMENT) - len(head)
    return head + bytes(padding) + data[layout.data_at :]


def replace_key(data: bytes, layout: Layout, name: str, kind: int, value: bytes) -> bytes:
    """The value of one key replaced by one of any length."""
    key = layout.key(name)
    written = string(name) + struct.pack("<I", kind) + value
    keys = data[HEADER_BYTES : key.at] + written + data[key.end : layout.tensors_at]
    return replace_header(data, layout, keys, len(layout.keys), _tensor_section(data, layout))


def _tensor_section(data: bytes, layout: Layout) -> bytes:
    return data[layout.tensors_at : layout.tensors[-1].end]


def _not_models(data: bytes) -> Iterator[HostileFile]:
    yield HostileFile("empty", b"")
    yield HostileFile("one byte", b"G")
    yield HostileFile("only zeros", bytes(4096))
    yield HostileFile("only ones", b"\xff" * 4096)
    yield HostileFile("a text", b"FROM llama\nSYSTEM hello\n" * 100)
    yield HostileFile("a zip", b"PK\x03\x04" + data[4:])
    yield HostileFile("the old format", b"tjgg" + data[4:])
    yield HostileFile("big-endian", b"FUGG" + data[4:])
    yield HostileFile("magic repeated", b"GGUF" * 1024)
    for version in (0, 1, 2, 4, 99, 0x03000000, 2**32 - 1):
        yield HostileFile(f"version {version}", patch(data, 4, struct.pack("<I", version)))


def _truncated(data: bytes, layout: Layout) -> Iterator[HostileFile]:
    for length in (4, 8, 15, 16, 23, 24, 31, 32, 40):
        yield HostileFile(f"cut after {length} bytes", data[:length])
    for eighth in range(1, 8):
        yield HostileFile(f"cut in header at {eighth}/8", data[: layout.data_at * eighth // 8])
    weights = len(data) - layout.data_at
    for eighth in range(8):
        end = layout.data_at + weights * eighth // 8
        yield HostileFile(f"cut in weights at {eighth}/8", data[:end])
    yield HostileFile("last byte missing", data[:-1])
    yield HostileFile("last page missing", data[:-4096])


def _counts(data: bytes) -> Iterator[HostileFile]:
    for label, at in (("tensors", COUNTS_AT), ("keys", COUNTS_AT + 8)):
        (sound,) = struct.unpack_from("<Q", data, at)
        for count in (0, 1, sound - 1, sound + 1, 65_536, *_HUGE):
            yield HostileFile(f"{count} {label}", patch(data, at, struct.pack("<Q", count)))


def _numbers(data: bytes, layout: Layout) -> Iterator[HostileFile]:
    for key in layout.keys:
        if key.kind not in SCALARS:
            continue
        if key.kind == 6:
            values = [float("nan"), float("inf"), -1.0, 0.0]
        elif key.kind == 7:
            values = [2]
        else:
            values = [0, 1, 3, 2**31 - 1, 2**31, 2**32 - 1]
        for value in values:
            code = "<B" if key.kind == 7 else SCALARS[key.kind]
            changed = patch(data, key.value_at, struct.pack(code, value))
            if changed != data:
                yield HostileFile(f"{key.name} = {value}", changed)


def _types(data: bytes, layout: Layout) -> Iterator[HostileFile]:
    for index, key in enumerate(layout.keys):
        for kind in (STRING, ARRAY, (0, 6, 12)[index % 3], (13, 77, 2**32 - 1)[index % 3]):
            if kind != key.kind:
                changed = patch(data, key.kind_at, struct.pack("<I", kind))
                yield HostileFile(f"{key.name} of type {kind}", changed)


def _lengths(data: bytes, layout: Layout) -> Iterator[HostileFile]:
    for length in (0, 65_536, *_HUGE):
        changed = patch(data, HEADER_BYTES, struct.pack("<Q", length))
        yield HostileFile(f"first key name of {length} bytes", changed)
    template = layout.key("tokenizer.chat_template")
    for length in _HUGE:
        changed = patch(data, template.value_at, struct.pack("<Q", length))
        yield HostileFile(f"template of {length} bytes", changed)
    for name in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"):
        key = layout.key(name)
        for kind in (STRING, ARRAY, 0, 10, 77):
            changed = patch(data, key.value_at, struct.pack("<I", kind))
            if changed != data:
                yield HostileFile(f"{name} with elements of type {kind}", changed)
        for count in (0, 1, *_HUGE):
            changed = patch(data, key.value_at + 4, struct.pack("<Q", count))
            yield HostileFile(f"{name} with {count} elements", changed)


def _names(data: bytes, layout: Layout) -> Iterator[HostileFile]:
    for key in layout.keys[:6]:
        changed = patch(data, key.at + 8, b"\xff\xfe\x00" + key.name.encode()[3:])
        yield HostileFile(f"{key.name} with a broken name", changed)
    twins = _same_length(layout.keys)
    for first, second in twins:
        changed = patch(data, second.at + 8, first.name.encode())
        yield HostileFile(f"key {first.name} in place of {second.name}", changed)
    architecture = layout.key("general.architecture")
    for name in ("\x00" * 5, "gpt99", "bert ", "mamba", "clip/"):
        changed = patch(data, architecture.value_at + 8, name.encode())
        yield HostileFile(f"architecture {name!r}", changed)
    path = "../" * 40 + "etc/passwd"
    changed = replace_key(data, layout, "general.name", STRING, string(path))
    yield HostileFile("a path as name", changed)
    changed = replace_key(data, layout, "general.name", STRING, string(b"\x1b[2J\xff" * 50))
    yield HostileFile("control codes as name", changed)


def _same_length(keys: tuple[Key, ...]) -> list[tuple[Key, Key]]:
    return [
        (first, second)
        for index, first in enumerate(keys)
        for second in keys[index + 1 :]
        if len(first.name) == len(second.name)
    ][:6]


def _missing_keys(data: bytes, layout: Layout) -> Iterator[HostileFile]:
    tensors = _tensor_section(data, layout)
    for key in layout.keys:
        keys = data[HEADER_BYTES : key.at] + data[key.end : layout.tensors_at]
        changed = replace_header(data, layout, keys, len(layout.keys) - 1, tensors)
        yield HostileFile(f"without {key.name}", changed)


def _tensor_descriptions(data: bytes, layout: Layout) -> Iterator[HostileFile]:
    for tensor in (layout.tensors[0], layout.tensors[3], layout.tensors[-1]):
        for count in (0, 1, 5, 99, 2**32 - 1):
            changed = patch(data, tensor.dimensions_at, struct.pack("<I", count))
            if changed != data:
                yield HostileFile(f"{tensor.name} with {count} dimensions", changed)
        for size in (0, 1, 31, *_HUGE):
            changed = patch(data, tensor.first_size_at, struct.pack("<Q", size))
            yield HostileFile(f"{tensor.name} {size} wide", changed)
        for kind in (2, 4, 8, 14, 39, 999, 2**32 - 1):
            changed = patch(data, tensor.type_at, struct.pack("<I", kind))
            yield HostileFile(f"{tensor.name} of type {kind}", changed)
        for offset in (7, 2**33, 2**64 - 32, 2**64 - 1):
            changed = patch(data, tensor.offset_at, struct.pack("<Q", offset))
            yield HostileFile(f"{tensor.name} at {offset}", changed)
        changed = patch(data, tensor.at + 8, b"x" + tensor.name.encode()[1:])
        yield HostileFile(f"{tensor.name} renamed", changed)
    everything = bytearray(data)
    for tensor in layout.tensors:
        struct.pack_into("<Q", everything, tensor.offset_at, 0)
    yield HostileFile("all tensors in one place", bytes(everything))
    first, second = layout.tensors[1], layout.tensors[2]
    keys = data[HEADER_BYTES : layout.tensors_at]
    doubled = data[layout.tensors_at : first.at] + 2 * data[first.at : first.end]
    doubled += data[second.end : layout.tensors[-1].end]
    changed = replace_header(data, layout, keys, len(layout.keys), doubled)
    yield HostileFile(f"{first.name} twice", changed)


def _weights(data: bytes, layout: Layout, rng: random.Random) -> Iterator[HostileFile]:
    head, size = data[: layout.data_at], len(data) - layout.data_at
    for label, unit in (("nan", b"\xff\x7f"), ("infinity", b"\x00\x7c"), ("zero", b"\x00\x00")):
        yield HostileFile(f"{label} weights", head + unit * (size // 2))
    yield HostileFile("random weights", head + rng.randbytes(size))
    yield HostileFile("weights and a gigantic tail", data + bytes(2 * 1024 * 1024))


def _tokenizers(data: bytes, layout: Layout) -> Iterator[HostileFile]:
    tokens = layout.key("tokenizer.ggml.tokens")
    (count,) = struct.unpack_from("<Q", data, tokens.value_at + 4)

    def tokens_as(items: list[bytes]) -> bytes:
        value = struct.pack("<IQ", STRING, len(items)) + b"".join(string(item) for item in items)
        return replace_key(data, layout, tokens.name, ARRAY, value)

    yield HostileFile("one token many times", tokens_as([b"same"] * count))
    yield HostileFile("empty tokens", tokens_as([b""] * count))
    yield HostileFile("tokens of broken text", tokens_as([b"\xff%d" % i for i in range(count)]))
    yield HostileFile("more tokens than rows", tokens_as([b"t%d" % i for i in range(count + 99)]))
    yield HostileFile("a token of a megabyte", tokens_as([b"m" * 2**20, *_numbered(count - 1)]))
    yield HostileFile("no special tokens", tokens_as(_numbered(count)))
    merges = [b"", b"a", b"a  b", b" ", b"\xff \xfe", b"missing token", b"a b c"] * 10
    value = struct.pack("<IQ", STRING, len(merges)) + b"".join(map(string, merges))
    changed = replace_key(data, layout, "tokenizer.ggml.merges", ARRAY, value)
    yield HostileFile("nonsense merges", changed)
    for name in ("none", "llama", "bert", "t5", "rwkv", "", "x" * 10_000):
        changed = replace_key(data, layout, "tokenizer.ggml.model", STRING, string(name))
        yield HostileFile(f"tokenizer {name[:8]!r} of {len(name)}", changed)
    for depth in (3, 1_000, 20_000):
        nested = struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQ", 0, 0)
        changed = replace_key(data, layout, tokens.name, ARRAY, nested)
        yield HostileFile(f"arrays nested {depth} deep", changed)


def _numbered(count: int) -> list[bytes]:
    return [b"n%d" % index for index in range(count)]


def _templates(data: bytes, layout: Layout) -> Iterator[HostileFile]:
    templates = {
        "broken text": b"\xff\xfe{{ messages }}",
        "bad syntax": b"{% for message in messages %}",
        "unknown tag": b"{% load everything %}",
        "a billion rounds": b"{% for i in range(1000000000) %}x{% endfor %}",
        "nested rounds": b"{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}"
        b"{% endfor %}{% endfor %}",
        "a huge string": b"{{ 'x' * 10000000000 }}",
        "a huge number": b"{{ 9 ** 9 ** 9 ** 9 }}",
        "endless recursion": b"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "class walk": b"{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "builtins": b"{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "include": b"{% include '/etc/passwd' %}",
        "deep parentheses": b"{{ " + b"(" * 5_000 + b"1" + b")" * 5_000 + b" }}",
        "a megabyte": b"{{ messages[0].content }}" * 40_000,
        "division by zero": b"{{ 1 // 0 }}",
        "raise": b"{{ raise_exception('no') }}",
        "special tokens": b"<|im_end|>" * 1_000,
        "nothing": b"",
    }
    for label, text in templates.items():
        changed = replace_key(data, layout, "tokenizer.chat_template", STRING, string(text))
        yield HostileFile(f"template with {label}", changed)


def _added_keys(data: bytes, layout: Layout) -> Iterator[HostileFile]:
    def with_key(name: str, kind: int, value: bytes) -> bytes:
        written = string(name) + struct.pack("<I", kind) + value
        keys = data[HEADER_BYTES : layout.tensors_at] + written
        section = _tensor_section(data, layout)
        return replace_header(data, layout, keys, len(layout.keys) + 1, section)

    for alignment in (0, 1, 3, 48, 2**20, 2**31, 2**32 - 1):
        changed = with_key("general.alignment", 4, struct.pack("<I", alignment))
        yield HostileFile(f"alignment {alignment}", changed)
    for name, value in (
        ("split.count", 9_999),
        ("split.no", 77),
        ("llama.expert_count", 2**31),
        ("llama.expert_used_count", 2**31),
        ("llama.attention.key_length", 7),
        ("llama.attention.value_length", 2**31),
        ("llama.attention.sliding_window", 2**32 - 1),
        ("llama.pooling_type", 99),
        ("adapter.lora.alpha", 1),
    ):
        yield HostileFile(f"{name} = {value}", with_key(name, 4, struct.pack("<I", value)))
    heads = struct.pack("<IQ", 4, 100_000) + struct.pack("<I", 1) * 100_000
    changed = replace_key(data, layout, "llama.attention.head_count_kv", ARRAY, heads)
    yield HostileFile("a hundred thousand head counts", changed)
    changed = with_key("general.type", STRING, string("adapter"))
    yield HostileFile("a model that says it is an adapter", changed)
    changed = with_key("tokenizer.chat_template.x", STRING, string("y" * 2**20))
    yield HostileFile("a megabyte nobody reads", changed)


def _random(data: bytes, layout: Layout, rng: random.Random) -> Iterator[HostileFile]:
    for number in range(RANDOM_FILES):
        changed = bytearray(data)
        match number % 3:
            case 0:  # single bytes of the header
                for _ in range(1 + number // 3):
                    changed[rng.randrange(HEADER_BYTES, layout.data_at)] = rng.randrange(256)
            case 1:  # a run of the header from elsewhere
                length = rng.randrange(8, 256)
                source = rng.randrange(0, len(data) - length)
                target = rng.randrange(HEADER_BYTES, layout.data_at - length)
                changed[target : target + length] = data[source : source + length]
            case _:  # bytes taken out or put in, so that all that follows is shifted
                at = rng.randrange(HEADER_BYTES, layout.data_at)
                if rng.random() < 0.5:
                    del changed[at : at + rng.randrange(1, 64)]
                else:
                    changed[at:at] = rng.randbytes(rng.randrange(1, 64))
        yield HostileFile(f"random {number}", bytes(changed))
