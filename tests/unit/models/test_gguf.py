"""Header parsing against the reference writer and against hostile bytes."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from agent.models.errors import InvalidGguf
from agent.models.ggml_types import TENSOR_TYPES
from agent.models.gguf import MAGIC, ValueType, parse_bytes
from agent.models.gguf_encode import (
    EncodedValue,
    TensorSpec,
    encode_header,
    encode_numbers,
    encode_scalar,
    encode_strings,
)
from agent.models.gguf_summary import parameter_size, summarise
from tests.unit.models.ggufs import (
    Value,
    floats,
    llama_file,
    llama_tensors,
    llama_values,
    write_gguf,
)


def test_block_sizes_agree_with_the_reference_package() -> None:
    for kind, (elements, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":
            continue  # the package counts the old, larger block
        assert TENSOR_TYPES[int(kind)].block_elements == elements
        assert TENSOR_TYPES[int(kind)].block_bytes == size, kind


def test_a_header_reads_as_it_was_written(tmp_path: Path) -> None:
    data = llama_file(tmp_path / "t.gguf", **{"test.flag": True, "test.rates": [0.5, 2.0]})
    header = parse_bytes(data)
    assert header.version == 3
    assert header.architecture == "llama"
    assert header.integer("llama.block_count") == 2
    assert header.values["test.flag"].value is True
    assert header.integer("test.flag") is None
    assert header.numbers("test.rates") == (0.5, 2.0)
    assert header.strings("tokenizer.ggml.tokens", 3) == (b"a", b"b", b"c")
    assert header.array_length("tokenizer.ggml.token_type") == 8
    for name, array in llama_tensors().items():
        tensor = header.tensor(name)
        assert tensor is not None
        assert tensor.dimensions == tuple(reversed(array.shape))
        assert data[tensor.offset : tensor.offset + tensor.size_bytes] == array.tobytes()


def test_a_summary_has_the_figures_planning_needs(tmp_path: Path) -> None:
    data = llama_file(tmp_path / "t.gguf", **{"llama.attention.sliding_window": 64})
    summary = summarise(parse_bytes(data), len(data))
    assert summary.context_length == 128
    assert summary.head_count_kv == (2, 2)
    assert (summary.key_length, summary.value_length) == (4, 4)
    assert summary.vocabulary == 8
    assert summary.parameter_count == sum(array.size for array in llama_tensors().values())
    assert summary.file_type == "F32"
    assert summary.pooling == "unspecified"
    assert summary.sliding_window == 64
    assert summary.layer_bytes == (4 * (256 + 512), 4 * (256 + 512))
    assert summary.input_bytes == 4 * 128
    assert summary.output_bytes == 4 * (16 + 128), "the tied embedding is the output head"


def test_layers_without_attention_have_no_key_value_heads(tmp_path: Path) -> None:
    values: dict[str, Value] = {
        "q.block_count": 4, "q.attention.head_count": 8, "q.embedding_length": 64,
        "q.attention.head_count_kv": 2, "q.full_attention_interval": 4, "q.pooling_type": 3,
    }  # fmt: skip
    data = write_gguf(tmp_path / "q.gguf", "q", values, {"output.weight": floats(4, 64)})
    summary = summarise(parse_bytes(data), len(data))
    assert summary.head_count_kv == (0, 0, 0, 2)
    assert summary.pooling == "last"
    values["q.attention.head_count_kv"] = [0, 2, 0, 2]
    data = write_gguf(tmp_path / "r.gguf", "q", values, {"output.weight": floats(4, 64)})
    assert summarise(parse_bytes(data), len(data)).head_count_kv == (0, 0, 0, 2)


def test_an_impossible_block_count_is_refused(tmp_path: Path) -> None:
    data = llama_file(tmp_path / "t.gguf", **{"llama.block_count": 2**32 - 1})
    with pytest.raises(InvalidGguf, match=r"key 'llama.block_count' is 4294967295"):
        summarise(parse_bytes(data), len(data))


def test_version_two_reads_like_version_three(tmp_path: Path) -> None:
    data = bytearray(llama_file(tmp_path / "t.gguf"))
    data[4] = 2
    assert parse_bytes(bytes(data)).version == 2


def test_a_long_vocabulary_is_passed_over_quickly() -> None:
    values = {
        "general.architecture": encode_scalar(ValueType.STRING, "big"),
        "tokenizer.ggml.tokens": encode_strings([b"token%d" % n for n in range(151_000)]),
        "tokenizer.ggml.scores": encode_numbers(ValueType.FLOAT32, [0.0] * 151_000),
    }
    data = encode_header(values, (), 32)
    header = parse_bytes(data)
    best = 1.0
    for _ in range(5):
        start = time.process_time()
        header = parse_bytes(data)
        best = min(best, time.process_time() - start)
    assert header.array_length("tokenizer.ggml.tokens") == 151_000
    assert best < 0.1


def test_the_reference_package_reads_an_encoded_header(tmp_path: Path) -> None:
    path = tmp_path / "e.gguf"
    header = encode_header(
        {
            "general.architecture": encode_scalar(ValueType.STRING, "x"),
            "x.count": encode_scalar(ValueType.UINT32, 7),
            "x.names": encode_strings([b"one", b"two"]),
        },
        (TensorSpec("a", (3,), 0), TensorSpec("b", (32, 2), 8)),
        32,
    )
    path.write_bytes(header + bytes(32) + bytes(96))
    reader = gguf.GGUFReader(path)
    assert reader.fields["x.count"].contents() == 7
    assert reader.fields["x.names"].contents() == ["one", "two"]
    assert [(t.name, list(t.shape)) for t in reader.tensors] == [("a", [3]), ("b", [32, 2])]


def head(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return MAGIC + struct.pack("<IQQ", version, tensors, keys)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    packed = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + packed + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends at byte 0, inside the magic"),
        (b"NOPE" + bytes(40), "not a GGUF file"),
        (head(version=1), "version 1 is not supported"),
        (MAGIC + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (head(tensors=1 << 40), "number of tensors is"),
        (head(keys=1 << 40), "number of keys is"),
        (head(keys=1), "ends at byte 24"),
        (head(keys=1) + struct.pack("<Q", 1 << 60), "length of key 0 is"),
        (head(keys=1) + text("k") + struct.pack("<I", 99), "unknown type 99"),
        (head(keys=1) + text("k") + struct.pack("<IQ", 8, 1 << 50), "length of the value of key"),
        (head(keys=1) + text("k") + struct.pack("<IQ", 8, 1000), "inside the value of key 'k'"),
        (head(keys=1) + text("k") + struct.pack("<IB", 7, 9), "boolean with the value 9"),
        (head(keys=1) + text("k") + struct.pack("<IIQ", 9, 9, 1), "array of arrays"),
        (head(keys=1) + text("k") + struct.pack("<IIQ", 9, 77, 1), "unknown element type 77"),
        (head(keys=1) + text("k") + struct.pack("<IIQ", 9, 0, 1 << 62), "number of elements"),
        (head(keys=1) + text("k") + struct.pack("<IIQ", 9, 10, 1 << 20), "ends at byte"),
        (
            head(keys=1) + text("k") + struct.pack("<IIQQ", 9, 8, 1, 1 << 40),
            "length of a string",
        ),
        (head(keys=1) + text("k") + struct.pack("<IIQQ", 9, 8, 5, 100), "ends at byte"),
        (head(keys=2) + 2 * (text("k") + struct.pack("<IB", 0, 1)), "appears twice"),
        (
            head(keys=1) + text("general.alignment") + struct.pack("<II", 4, 24),
            "not a power of two",
        ),
        (head(keys=1) + text("general.alignment") + struct.pack("<II", 4, 0), "power of two"),
        (head(keys=1) + text("general.alignment") + struct.pack("<Ii", 5, 32), "unsigned 32"),
        (head(1) + tensor("t", [1] * 5, 0, 0), "has 5 dimensions"),
        (head(1) + tensor("t", [0], 0, 0), "impossible shape"),
        (head(1) + tensor("t", [1 << 39, 1 << 39, 1 << 39], 0, 0), "elements"),
        (head(1) + tensor("t", [4], 4, 0), "unknown type 4"),
        (head(1) + tensor("t", [33], 8, 0), "cannot store in blocks of 32"),
        (head(1) + tensor("t", [4], 0, 7), "not a multiple of 32"),
        (head(1) + tensor("t", [4], 0, 1 << 50), "beyond the file's"),
        (head(1) + tensor("t", [4], 0, 0), "beyond the file's"),
        (head(2) + 2 * tensor("t", [4], 0, 0) + bytes(64), "tensor 't' appears twice"),
    ],
)
def test_hostile_headers_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidGguf, match=reason):
        parse_bytes(data)


def test_every_truncation_of_a_real_file_is_refused(tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "t.gguf", "llama", llama_values(), {"output.weight": floats(4, 4)})
    for length in range(len(data) - 32):
        with pytest.raises(InvalidGguf):
            parse_bytes(data[:length])


def test_flipped_bits_raise_nothing_but_invalid_gguf(tmp_path: Path) -> None:
    data = llama_file(tmp_path / "t.gguf")
    end = parse_bytes(data).data_offset
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(400):
        mutated = bytearray(data)
        for position in rng.integers(0, end, size=3):
            mutated[position] ^= 1 << int(rng.integers(0, 8))
        try:
            summarise(parse_bytes(bytes(mutated)), len(mutated))
        except InvalidGguf:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("count", "shown"),
    [(7_615_616_512, "7.6B"), (494_032_768, "494.03M"), (1_700, "2K"), (12, "12")],
)
def test_parameter_counts_read_as_clients_expect(count: int, shown: str) -> None:
    assert parameter_size(count) == shown


def test_encoded_values_keep_their_type() -> None:
    value = encode_numbers(ValueType.INT32, [1, -2])
    assert value == EncodedValue(ValueType.ARRAY, struct.pack("<IQii", 5, 2, 1, -2))
