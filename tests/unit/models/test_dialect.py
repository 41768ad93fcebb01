"""Files made to look like Ollama's own dialect come back as what llama.cpp loads."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from agent.models.catalog import Catalog
from agent.models.create_request import CreateRequest
from agent.models.dialect import FAMILIES, Translation, translate
from agent.models.errors import InvalidGguf, UntranslatableDialect, UnusableModel
from agent.models.gguf import GgufHeader, ValueType, parse_bytes
from agent.models.gguf_encode import (
    TensorSpec,
    encode_header,
    encode_numbers,
    encode_scalar,
    encode_strings,
)
from agent.settings import Settings
from tests.unit.models.ggufs import (
    Value,
    floats,
    llama_tensors,
    llama_values,
    sha256,
    write_gguf,
)

Tensors = Mapping[str, np.ndarray]
TOKENS = [f"t{n}" for n in range(10)]


def applied(data: bytes, translation: Translation) -> bytes:
    parts = [translation.header]
    for segment in translation.segments:
        parts += (data[segment.offset : segment.offset + segment.length], bytes(segment.padding))
    return b"".join(parts)


def check_tensors(data: bytes, expected: Tensors) -> GgufHeader:
    """Exactly these tensors, byte for byte."""
    header = parse_bytes(data)
    assert {tensor.name for tensor in header.tensors} == set(expected)
    for tensor in header.tensors:
        found = data[tensor.offset : tensor.offset + tensor.size_bytes]
        assert found == expected[tensor.name].tobytes(), tensor.name
        assert tensor.dimensions == tuple(reversed(expected[tensor.name].shape))
    return header


def round_trip(
    tmp_path: Path, architecture: str, values: Mapping[str, Value], tensors: Tensors,
    expected: Tensors,
) -> GgufHeader:  # fmt: skip
    data = write_gguf(tmp_path / "dialect.gguf", architecture, values, tensors)
    translation = translate(parse_bytes(data))
    assert translation is not None
    result = applied(data, translation)
    assert len(result) == translation.size_bytes
    header = check_tensors(result, expected)
    again = translate(header)
    if again is not None:  # a translated file may be recognised, but nothing changes any more
        assert applied(result, again) == result
    return header


def test_gpt_oss_gets_its_name_keys_and_tensors(tmp_path: Path) -> None:
    experts, norm, output, sinks = floats(2, 6, 4), floats(4), floats(4, 4), floats(8, seed=9)
    header = round_trip(
        tmp_path,
        "gptoss",
        {
            "gptoss.block_count": 1, "gptoss.context_length": 99,
            "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": TOKENS,
        },
        {
            "blk.0.ffn_gate_exps.weight": experts, "blk.0.ffn_norm.weight": norm,
            "blk.0.attn_out.weight": output, "blk.0.attn_sinks": sinks,
        },
        {
            "blk.0.ffn_gate_exps.weight": experts, "blk.0.post_attention_norm.weight": norm,
            "blk.0.attn_output.weight": output, "blk.0.attn_sinks.weight": sinks,
        },
    )  # fmt: skip
    assert header.architecture == "gpt-oss"
    assert header.integer("gpt-oss.context_length") == 99
    assert header.integer("gpt-oss.expert_feed_forward_length") == 6
    assert header.text("gpt-oss.rope.scaling.type") == "yarn"
    assert header.text("tokenizer.ggml.pre") == "gpt-4o"
    assert not [key for key in header.values if key.startswith("gptoss.")]
    assert header.strings("tokenizer.ggml.tokens") == tuple(token.encode() for token in TOKENS)


def test_gemma3_loses_its_towers_and_gets_what_is_missing(tmp_path: Path) -> None:
    embedding, block = floats(8, 4), floats(4, 4)
    header = round_trip(
        tmp_path,
        "gemma3",
        {
            "gemma3.context_length": 131072, "gemma3.rope.local.freq_base": 5000.0,
            "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.scores": [0.5] * 10,
            "tokenizer.ggml.token_type": [1] * 10,
        },
        {
            "v.patch.weight": floats(5), "token_embd.weight": embedding, "mm.x": floats(3),
            "blk.0.attn_q.weight": block, "v.last": floats(7),
        },
        {"token_embd.weight": embedding, "blk.0.attn_q.weight": block},
    )  # fmt: skip
    for key, value in {
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.rope.freq_base": 1_000_000.0,
        "gemma3.rope.freq_base_swa": 5000.0,
        "gemma3.rope.scaling.factor": 8.0,
    }.items():
        assert header.values[key].value == pytest.approx(value)
    assert header.text("gemma3.rope.scaling.type") == "linear"
    assert header.array_length("tokenizer.ggml.tokens") == 8
    assert header.numbers("tokenizer.ggml.scores") == (0.5,) * 8
    assert header.numbers("tokenizer.ggml.token_type") == (1,) * 8


def test_a_gemma3_from_the_usual_converter_is_left_alone(tmp_path: Path) -> None:
    data = write_gguf(
        tmp_path / "g.gguf", "gemma3",
        {"gemma3.attention.layer_norm_rms_epsilon": 1e-6}, {"token_embd.weight": floats(4, 4)},
    )  # fmt: skip
    assert translate(parse_bytes(data)) is None


def test_embedding_gemma_becomes_an_architecture_of_its_own(tmp_path: Path) -> None:
    dense, back, norm = floats(6, 4), floats(4, 6), floats(4)
    header = round_trip(
        tmp_path, "gemma3", {"gemma3.block_count": 1, "gemma3.attention.causal": False},
        {"dense.0.weight": dense, "dense.1.weight": back, "norm.weight": norm},
        {"dense_2.weight": dense, "dense_3.weight": back, "output_norm.weight": norm},
    )  # fmt: skip
    assert header.architecture == "gemma-embedding"
    sizes = [header.integer(f"gemma-embedding.dense_{n}_feat_{way}")
             for n in (2, 3) for way in ("in", "out")]  # fmt: skip
    assert sizes == [4, 6, 6, 4]
    assert "gemma-embedding.attention.causal" not in header.values


def test_gemma3n_loses_the_rows_of_dropped_tokens(tmp_path: Path) -> None:
    embedding, per_layer = floats(10, 4), floats(8, 4)
    tokens = ["<pad>", "<0x0A>", "<unused3>", *TOKENS[3:]]
    header = round_trip(
        tmp_path,
        "gemma3n",
        {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3] * 10},
        {"token_embd.weight": embedding, "per_layer_token_embd.weight": per_layer},
        {"token_embd.weight": embedding[:8], "per_layer_token_embd.weight": per_layer},
    )
    assert header.text("tokenizer.ggml.model") == "llama"
    assert header.numbers("tokenizer.ggml.token_type") == (3, 6, 1, 3, 3, 3, 3, 3)
    assert header.numbers("tokenizer.ggml.eos_token_ids") == (1, 106)


def test_qwen_hybrids_get_scalar_heads_four_sections_and_bias_names(tmp_path: Path) -> None:
    state, block = floats(4), floats(4, 4)
    header = round_trip(
        tmp_path,
        "qwen35",
        {
            "qwen35.attention.head_count_kv": [0, 0, 4], "qwen35.vision.block_count": 2,
            "qwen35.rope.dimension_sections": [11, 11, 10],
        },
        {
            "blk.0.ssm_dt": state, "mtp.fc.weight": floats(3), "v.blk.0.x": floats(9),
            "blk.1.q": block,
        },
        {"blk.0.ssm_dt.bias": state, "blk.1.q": block},
    )  # fmt: skip
    assert header.integer("qwen35.attention.head_count_kv") == 4
    assert header.numbers("qwen35.rope.dimension_sections") == (11, 11, 10, 0)


def test_mistral3_keys_are_copied_to_the_names_the_loader_reads(tmp_path: Path) -> None:
    block = floats(4, 4)
    header = round_trip(
        tmp_path, "mistral3",
        {"mistral3.rope.scaling.beta_fast": 32.0, "mistral3.rope.scaling_beta": 0.1},
        {"blk.0.q": block, "mm.norm": floats(4)}, {"blk.0.q": block},
    )  # fmt: skip
    assert header.values["mistral3.rope.scaling.yarn_beta_fast"].value == 32.0
    assert header.values["mistral3.attention.temperature_scale"].value == pytest.approx(0.1)
    assert header.text("tokenizer.ggml.pre") == "tekken"


@pytest.mark.parametrize(
    ("architecture", "values", "key", "value"),
    [
        ("qwen25vl", {"qwen25vl.rope.mrope_section": [16, 24, 24]},
         "qwen2vl.rope.dimension_sections", (16, 24, 24, 0)),
        ("qwen3vl", {"qwen3vl.vision.deepstack_visual_indexes": [5, 11, 17]},
         "qwen3vl.rope.dimension_sections", (24, 20, 20, 0)),
        ("qwen3vlmoe", {}, "qwen3vlmoe.rope.dimension_sections", (24, 20, 20, 0)),
        ("olmo3", {"olmo3.some": [1, 2]}, "olmo2.some", (1, 2)),
        ("llama4", {"llama4.some": [3]}, "llama4.some", (3,)),
        ("bert", {"tokenizer.ggml.model": "t5",
                  "tokenizer.ggml.precompiled_charsmap": list("AQL/")},
         "tokenizer.ggml.precompiled_charsmap", (1, 2, 255)),
    ],
)  # fmt: skip
def test_small_families_get_their_keys(
    tmp_path: Path, architecture: str, values: Mapping[str, Value], key: str,
    value: tuple[int, ...],
) -> None:  # fmt: skip
    block = floats(4, 4)
    tensors = {"blk.0.q": block}
    if architecture.startswith(("qwen", "llama4")):
        tensors["v.tower"] = floats(4)
    header = round_trip(tmp_path, architecture, values, tensors, {"blk.0.q": block})
    assert header.numbers(key) == value


def test_lfm2_norm_and_feed_forward_length_follow_the_tensors(tmp_path: Path) -> None:
    norm, gate = floats(4), floats(6, 4)
    header = round_trip(
        tmp_path, "lfm2", {"lfm2.feed_forward_length": 999},
        {"output_norm.weight": norm, "blk.0.ffn_gate.weight": gate},
        {"token_embd_norm.weight": norm, "blk.0.ffn_gate.weight": gate},
    )  # fmt: skip
    assert header.integer("lfm2.feed_forward_length") == 6
    assert header.text("tokenizer.ggml.pre") == "lfm2"


def test_glm_flash_gets_the_absorbed_sizes(tmp_path: Path) -> None:
    block = floats(4, 4)
    values = {
        "glm4moelite.attention.kv_lora_rank": 512, "glm4moelite.rope.dimension_count": 64,
        "glm4moelite.attention.key_length": 256, "glm4moelite.attention.head_count_kv": 20,
        "tokenizer.ggml.eos_token_ids": [5, 6, 7],
    }  # fmt: skip
    header = round_trip(tmp_path, "glm4moelite", values, {"a": block}, {"a": block})
    attention = "deepseek2.attention"
    assert header.integer(f"{attention}.head_count_kv") == 1
    assert header.integer(f"{attention}.key_length") == 576
    assert header.integer(f"{attention}.value_length") == 512
    assert header.integer(f"{attention}.key_length_mla") == 256
    assert header.integer("tokenizer.ggml.eom_token_id") == 7


def test_what_needs_other_data_is_refused_and_names_a_model_to_pull(tmp_path: Path) -> None:
    experts = {"blk.0.ffn_gate_exps.weight": floats(2, 4, 4), "v.x": floats(4)}
    for architecture in ("nemotron_h_omni", "glmocr", "deepseekocr"):
        data = write_gguf(tmp_path / "x.gguf", architecture, {}, experts)
        with pytest.raises(UntranslatableDialect, match=r"pull hf\.co/\S+ instead"):
            translate(parse_bytes(data))


def test_gemma4_keeps_its_experts_and_loses_its_towers(tmp_path: Path) -> None:
    gate, scale = floats(2, 4, 4), floats(2)
    header = round_trip(
        tmp_path,
        "gemma4",
        {"tokenizer.ggml.model": "llama"},
        {
            "a.x": floats(3), "blk.0.ffn_gate_exps.weight": gate, "v.y": floats(3),
            "blk.0.ffn_gate_inp.per_expert_scale": scale,
        },
        {"blk.0.ffn_gate_exps.weight": gate, "blk.0.ffn_down_exps.scale": scale},
    )  # fmt: skip
    assert header.text("tokenizer.ggml.model") == "gemma4"


def test_every_family_names_where_to_get_the_model_otherwise() -> None:
    assert all(family.hub.startswith("hf.co/") for family in FAMILIES)


def llama3_values(pre: str, template: str) -> dict[str, Value]:
    tokens = [f"t{n}" for n in range(128_010)]
    tokens[128_006], tokens[128_009] = "<|start_header_id|>", "<|eot_id|>"
    return {
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": 128_001,
        "tokenizer.ggml.pre": pre, "tokenizer.chat_template": template,
    }  # fmt: skip


def test_early_llama3_uploads_get_their_tokenizer_and_end_of_turn(tmp_path: Path) -> None:
    block = floats(4, 4)
    header = round_trip(tmp_path, "llama", llama3_values("default", ""), {"b": block}, {"b": block})
    assert header.text("tokenizer.ggml.pre") == "llama-bpe"
    assert header.integer("tokenizer.ggml.eos_token_id") == 128_009
    assert header.integer("tokenizer.ggml.eot_token_id") == 128_009


def test_a_llama3_base_model_is_left_alone(tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "b.gguf", "llama", llama3_values("llama-bpe", ""))
    assert translate(parse_bytes(data)) is None


@pytest.mark.parametrize("architecture", sorted({family.architecture for family in FAMILIES}))
def test_strange_values_raise_nothing_but_known_errors(tmp_path: Path, architecture: str) -> None:
    names = (
        "attention.head_count_kv", "rope.dimension_sections", "rope.mrope_section",
        "attention.kv_lora_rank", "rope.dimension_count", "attention.key_length",
    )  # fmt: skip
    tensors = (
        TensorSpec("token_embd.weight", (3, 2), 0), TensorSpec("dense.0.weight", (3, 2), 0),
        TensorSpec("per_layer_token_embd.weight", (3, 1), 0), TensorSpec("v.x", (3,), 0),
        TensorSpec("blk.0.ssm_dt", (1,), 0),
    )  # fmt: skip
    for value in (
        encode_numbers(ValueType.FLOAT32, [float("nan")] * 3),
        encode_numbers(ValueType.FLOAT64, [float("inf")] * 3),
        encode_numbers(ValueType.UINT64, [2**64 - 1] * 3),
        encode_numbers(ValueType.INT64, [-(2**63)] * 3),
        encode_numbers(ValueType.UINT8, []),
        encode_strings([b"x", b"\xff", b""]),
        encode_scalar(ValueType.UINT64, 2**64 - 1),
        encode_scalar(ValueType.INT64, -1),
        encode_scalar(ValueType.STRING, "text"),
    ):
        values = {f"{architecture}.{name}": value for name in names}
        for name in ("token_type", "eos_token_ids", "tokens", "precompiled_charsmap", "scores"):
            values[f"tokenizer.ggml.{name}"] = value
        values["general.architecture"] = encode_scalar(ValueType.STRING, architecture)
        data = encode_header(values, tensors, 32) + bytes(5 * 32)
        try:
            translation = translate(parse_bytes(data))
        except (InvalidGguf, UntranslatableDialect):
            continue
        if translation is not None:
            parse_bytes(applied(data, translation))


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", models=tmp_path / "models", node_name="test")


async def install(catalog: Catalog, data: bytes, name: str) -> None:
    await catalog.receive_blob(sha256(data), pieces(data), len(data))
    async for _ in catalog.create(CreateRequest(model=name, files={"m.gguf": sha256(data)})):
        pass


def olmo_values() -> dict[str, Value]:
    return {key.replace("llama.", "olmo3."): value for key, value in llama_values().items()}


async def test_the_store_keeps_the_blob_and_serves_a_translated_copy(
    settings: Settings, tmp_path: Path
) -> None:
    tensors = llama_tensors()
    data = write_gguf(tmp_path / "o.gguf", "olmo3", olmo_values(), tensors)
    catalog = Catalog(settings)
    await install(catalog, data, "olmo")
    (listed,) = await catalog.list()
    assert not listed.weights_path.exists(), "listing makes no copies"
    assert (await catalog.show("olmo")).model_info["general.architecture"] == "olmo3"

    model = await catalog.resolve("olmo")
    assert model.weights_path.parent == settings.home / "translated"
    assert model.header.architecture == "olmo2"
    assert model.header.file_bytes == model.weights_path.stat().st_size
    header = check_tensors(model.weights_path.read_bytes(), tensors)
    assert header.integer("olmo2.context_length") == 128
    made = model.weights_path.stat().st_mtime_ns
    again = await Catalog(settings).resolve("olmo")
    assert again.weights_path.stat().st_mtime_ns == made, "the copy is made once"

    again.weights_path.rename(again.weights_path.with_suffix(".gguf.0123.part"))
    assert (await catalog.resolve("olmo")).weights_path.exists(), "a lost copy is made again"
    assert len(list((settings.home / "translated").iterdir())) == 1, "leftovers are removed"
    blob = settings.models / "blobs" / sha256(data).replace(":", "-")
    assert blob.read_bytes() == data
    await catalog.delete("olmo")
    assert list((settings.home / "translated").iterdir()) == []


async def test_an_untranslatable_model_is_listed_but_not_served(
    settings: Settings, tmp_path: Path
) -> None:
    data = write_gguf(tmp_path / "g.gguf", "glmocr", {"glmocr.block_count": 1}, {"a": floats(4)})
    catalog = Catalog(settings)
    await install(catalog, data, "ocr")
    assert [model.name.short for model in await catalog.list()] == ["ocr:latest"]
    assert (await catalog.show("ocr")).model.family == "glmocr"
    for _ in range(2):
        with pytest.raises(UntranslatableDialect, match="GLM-OCR-GGUF"):
            await catalog.resolve("ocr")


async def test_summaries_survive_a_restart_without_reading_the_weights(
    settings: Settings, tmp_path: Path
) -> None:
    data = write_gguf(tmp_path / "o.gguf", "olmo3", olmo_values(), llama_tensors())
    await install(Catalog(settings), data, "olmo")
    (entry,) = (settings.home / "index").iterdir()
    kept = json.loads(entry.read_bytes())
    kept["summary"]["context_length"] = 4321
    entry.write_text(json.dumps(kept))
    (listed,) = await Catalog(settings).list()
    assert listed.header.context_length == 4321
    entry.write_text("{broken")
    (listed,) = await Catalog(settings).list()
    assert listed.header.context_length == 128


async def test_a_cloud_model_of_a_shared_store_is_unusable_not_unknown(
    settings: Settings, tmp_path: Path
) -> None:
    catalog = Catalog(settings)
    await install(catalog, write_gguf(tmp_path / "l.gguf", "llama", llama_values()), "base")
    config = json.dumps({"remote_host": "https://ollama.com", "remote_model": "x"}).encode()
    await catalog.receive_blob(sha256(config), pieces(config), None)
    manifest = {
        "schemaVersion": 2,
        "config": {"mediaType": "", "digest": sha256(config), "size": len(config)},
        "layers": None,
    }
    path = settings.models / "manifests/registry.ollama.ai/library/far/cloud"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UnusableModel, match="ollama"):
        await catalog.resolve("far:cloud")
    assert [model.name.short for model in await catalog.list()] == ["base:latest"]
