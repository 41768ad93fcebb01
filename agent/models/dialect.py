"""Ollama's own GGUF dialect, translated to the form llama.cpp loads: text side, header only. Pure.

For a while Ollama published models with architecture names, keys and tensor names of its own and
with vision towers inside the model's file. Each family below lists how its files are recognised
and the steps that turn such a header into the usual one; tensor data stays byte for byte as it
is. What would need other tensor data is refused with words. Facts: the published files as
Ollama's own load-time compatibility layer treats them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from agent.models.dialect_steps import (
    ChangeArchitecture,
    Check,
    CollapseToMaximum,
    CopyKey,
    DecodeCharsmap,
    Draft,
    DropTensors,
    FromShape,
    Llama3Tokens,
    PadSections,
    RefuseTensors,
    RenameTensors,
    Segment,
    SetCount,
    SetFlashMla,
    SetText,
    SetValue,
    Step,
    TruncateVocabulary,
    UnusedTokens,
    float32,
    has_key,
    has_tensor,
    integers32,
    lacks_key,
    text_is,
    token_is,
    uint32,
)
from agent.models.errors import InvalidGguf, UntranslatableDialect
from agent.models.gguf import GgufHeader
from agent.models.gguf_encode import encode_header

DIALECT_VERSION: Final = 1
"""Part of every translated copy's name; raised when a family's steps change."""

_VISION: Final = DropTensors(("v.", "mm."))
_QWEN35: Final[tuple[Step, ...]] = (
    CollapseToMaximum("{arch}.attention.head_count_kv", fallback=2),
    PadSections("{arch}.rope.dimension_sections", "{arch}.rope.dimension_sections"),
    RenameTensors(".ssm_dt", ".ssm_dt.bias", suffix=True),
    DropTensors(("v.", "mm.", "mtp.")),
)
_QWEN3VL: Final[tuple[Step, ...]] = (
    SetValue("{arch}.rope.dimension_sections", integers32(24, 20, 20, 0)),
    SetCount("{arch}.n_deepstack_layers", "{arch}.vision.deepstack_visual_indexes"),
    _VISION,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of file: any of ``markers`` makes it Ollama's, ``steps`` make it llama.cpp's."""

    architecture: str
    markers: tuple[Check, ...]
    steps: tuple[Step, ...]
    hub: str
    """The same model on Hugging Face, for what cannot be translated."""


def _qwen35(architecture: str, hub: str, *extra: Check) -> Family:
    return Family(
        architecture=architecture,
        markers=(
            has_key("{arch}.vision.block_count"),
            has_key("{arch}.image_token_id"),
            has_key("{arch}.ssm.v_head_reordered"),
            has_key("{arch}.rope.mrope_interleaved"),
            has_tensor("mtp."),
            has_tensor("v."),
            *extra,
        ),
        steps=_QWEN35,
        hub=hub,
    )


def _always(_: Draft) -> bool:
    return True


FAMILIES: Final[tuple[Family, ...]] = (
    Family(
        architecture="gemma3",
        markers=(has_tensor("dense.0.weight"),),
        steps=(
            ChangeArchitecture("gemma-embedding"),
            SetValue("{arch}.attention.causal", None, replace=True),
            SetValue("{arch}.attention.sliding_window_pattern", None, replace=True),
            SetValue("{arch}.rope.freq_base_swa", float32(10_000.0)),
            FromShape("{arch}.dense_2_feat_in", "dense.0.weight", 0, required=True),
            FromShape("{arch}.dense_2_feat_out", "dense.0.weight", 1, required=True),
            FromShape("{arch}.dense_3_feat_in", "dense.1.weight", 0, required=True),
            FromShape("{arch}.dense_3_feat_out", "dense.1.weight", 1, required=True),
            RenameTensors("dense.0.weight", "dense_2.weight", exact=True),
            RenameTensors("dense.1.weight", "dense_3.weight", exact=True),
            RenameTensors("norm.weight", "output_norm.weight", exact=True),
        ),
        hub="hf.co/ggml-org/embeddinggemma-300M-GGUF",
    ),
    Family(
        architecture="gemma3",
        markers=(
            has_key("gemma3.mm.tokens_per_image"),
            has_tensor("v."),
            has_tensor("mm."),
            has_key("gemma3.rope.global.freq_base"),
            has_key("gemma3.rope.local.freq_base"),
            has_key("tokenizer.ggml.add_padding_token"),
            has_key("tokenizer.ggml.add_unknown_token"),
            lacks_key("gemma3.attention.layer_norm_rms_epsilon"),
        ),
        steps=(
            CopyKey("gemma3.rope.global.freq_base", "gemma3.rope.freq_base"),
            CopyKey("gemma3.rope.local.freq_base", "gemma3.rope.freq_base_swa"),
            SetValue("gemma3.attention.layer_norm_rms_epsilon", float32(1e-6)),
            SetValue("gemma3.rope.freq_base", float32(1_000_000.0)),
            SetValue("gemma3.rope.freq_base_swa", float32(10_000.0)),
            # Only the sizes with the long context were trained with linear scaling.
            SetText("gemma3.rope.scaling.type", "linear", context_from=131_072),
            SetValue("gemma3.rope.scaling.factor", float32(8.0), context_from=131_072),
            TruncateVocabulary("token_embd.weight"),
            _VISION,
        ),
        hub="hf.co/ggml-org/gemma-3-4b-it-GGUF",
    ),
    Family(
        architecture="gemma3n",
        markers=(
            lambda draft: (
                draft.rows("token_embd.weight") != draft.rows("per_layer_token_embd.weight")
            ),
            has_tensor("v."),
            has_tensor("a."),
            has_tensor("mm."),
        ),
        steps=(
            SetText("tokenizer.ggml.model", "llama", replace=True),
            TruncateVocabulary("per_layer_token_embd.weight", cut="token_embd.weight"),
            UnusedTokens(end_token=106),
            DropTensors(("v.", "a.", "mm.")),
        ),
        hub="hf.co/ggml-org/gemma-3n-E2B-it-GGUF",
    ),
    Family(
        architecture="gemma4",
        markers=(
            has_tensor("a."),
            has_tensor("v."),
            has_tensor("mm."),
            has_tensor("model.vision_tower."),
            text_is("tokenizer.ggml.model", "llama"),
        ),
        steps=(
            SetText("tokenizer.ggml.model", "gemma4", replace=True),
            DropTensors(("a.", "v.", "mm.", "model.vision_tower.")),
            # Separate gate and up experts load as they are; only this scale has another name.
            RenameTensors(".ffn_gate_inp.per_expert_scale", ".ffn_down_exps.scale", suffix=True),
        ),
        hub="hf.co/ggml-org/gemma-4-E4B-it-GGUF",
    ),
    Family(
        architecture="gptoss",
        markers=(_always,),
        steps=(
            ChangeArchitecture("gpt-oss"),
            FromShape("{arch}.expert_feed_forward_length", "blk.0.ffn_gate_exps.weight", 1),
            SetText("{arch}.rope.scaling.type", "yarn"),
            SetText("tokenizer.ggml.pre", "gpt-4o", replace=True),
            RenameTensors(".attn_out.", ".attn_output."),
            RenameTensors(".attn_sinks", ".attn_sinks.weight", suffix=True),
            RenameTensors(".ffn_norm.", ".post_attention_norm."),
        ),
        hub="hf.co/ggml-org/gpt-oss-20b-GGUF",
    ),
    Family(
        architecture="mistral3",
        markers=(
            has_tensor("v."),
            has_tensor("mm."),
            has_key("mistral3.rope.scaling.beta_fast"),
            has_key("mistral3.rope.scaling.mscale_all_dim"),
            has_key("mistral3.rope.scaling_beta"),
        ),
        steps=(
            CopyKey("mistral3.rope.scaling.beta_fast", "mistral3.rope.scaling.yarn_beta_fast"),
            CopyKey("mistral3.rope.scaling.beta_slow", "mistral3.rope.scaling.yarn_beta_slow"),
            CopyKey(
                "mistral3.rope.scaling.mscale_all_dim",
                "mistral3.rope.scaling.yarn_log_multiplier",
            ),
            CopyKey("mistral3.rope.scaling_beta", "mistral3.attention.temperature_scale"),
            SetText("tokenizer.ggml.pre", "tekken", placeholder="default"),
            _VISION,
        ),
        hub="hf.co/ggml-org/Mistral-Small-3.1-24B-Instruct-2503-GGUF",
    ),
    Family(
        architecture="qwen25vl",
        markers=(_always,),
        steps=(
            ChangeArchitecture("qwen2vl"),
            PadSections("{arch}.rope.mrope_section", "{arch}.rope.dimension_sections"),
            _VISION,
        ),
        hub="hf.co/ggml-org/Qwen2.5-VL-7B-Instruct-GGUF",
    ),
    Family(
        architecture="qwen3vl",
        markers=(lacks_key("{arch}.rope.dimension_sections"), has_tensor("v.")),
        steps=_QWEN3VL,
        hub="hf.co/Qwen/Qwen3-VL-8B-Instruct-GGUF",
    ),
    Family(
        architecture="qwen3vlmoe",
        markers=(lacks_key("{arch}.rope.dimension_sections"), has_tensor("v.")),
        steps=_QWEN3VL,
        hub="hf.co/Qwen/Qwen3-VL-30B-A3B-Instruct-GGUF",
    ),
    _qwen35("qwen35", "hf.co/unsloth/Qwen3.5-9B-GGUF"),
    _qwen35(
        "qwen35moe",
        "hf.co/unsloth/Qwen3.5-35B-A3B-GGUF",
        has_key("qwen35moe.feed_forward_length"),
    ),
    Family(
        architecture="qwen3next",
        markers=(has_tensor(".ssm_dt", ending=True),),
        steps=(
            CollapseToMaximum("{arch}.attention.head_count_kv", fallback=0),
            RenameTensors(".ssm_dt", ".ssm_dt.bias", suffix=True),
        ),
        hub="hf.co/unsloth/Qwen3-Next-80B-A3B-Instruct-GGUF",
    ),
    Family(
        architecture="llama4",
        markers=(has_tensor("v."), has_tensor("mm.")),
        steps=(_VISION,),
        hub="hf.co/ggml-org/Llama-4-Scout-17B-16E-Instruct-GGUF",
    ),
    Family(
        architecture="lfm2",
        markers=(
            lambda draft: (
                draft.has("output_norm.weight") and not draft.has("token_embd_norm.weight")
            ),
        ),
        steps=(
            RenameTensors("output_norm.weight", "token_embd_norm.weight", exact=True),
            SetText("tokenizer.ggml.pre", "lfm2", replace=True),
            FromShape("lfm2.feed_forward_length", "blk.0.ffn_gate.weight", 1, replace=True),
        ),
        hub="hf.co/LiquidAI/LFM2-1.2B-GGUF",
    ),
    Family(
        architecture="olmo3",
        markers=(_always,),
        steps=(ChangeArchitecture("olmo2"),),
        hub="hf.co/unsloth/Olmo-3-7B-Instruct-GGUF",
    ),
    Family(
        architecture="glm4moelite",
        markers=(_always,),
        steps=(
            ChangeArchitecture("deepseek2"),
            SetFlashMla(),
            SetValue("{arch}.expert_group_count", uint32(1)),
            SetValue("{arch}.expert_group_used_count", uint32(1)),
            SetText("tokenizer.ggml.pre", "glm4", replace=True),
        ),
        hub="hf.co/unsloth/GLM-4.7-Flash-GGUF",
    ),
    Family(
        architecture="bert",
        markers=(
            lambda draft: (
                draft.text("tokenizer.ggml.model") == "t5"
                and draft.header.strings("tokenizer.ggml.precompiled_charsmap", 1) is not None
            ),
        ),
        steps=(DecodeCharsmap("tokenizer.ggml.precompiled_charsmap"),),
        hub="hf.co/Casual-Autopsy/snowflake-arctic-embed-l-v2.0-gguf",
    ),
    Family(
        architecture="llama",
        markers=(
            lambda draft: (
                token_is(128_009, "<|eot_id|>")(draft)
                and token_is(128_006, "<|start_header_id|>")(draft)
                and (
                    draft.text("tokenizer.ggml.pre") in (None, "", "default")
                    or (
                        # A base model's texts do end with the end of text.
                        draft.header.integer("tokenizer.ggml.eos_token_id") == 128_001
                        and "<|eot_id|>" in (draft.text("tokenizer.chat_template") or "")
                    )
                )
            ),
        ),
        steps=(
            SetText("tokenizer.ggml.pre", "llama-bpe", placeholder="default"),
            Llama3Tokens(),
        ),
        hub="hf.co/bartowski/Meta-Llama-3-8B-Instruct-GGUF",
    ),
    Family(
        architecture="clip",
        markers=(
            lambda draft: (
                draft.header.values.get("clip.has_llava_projector") is not None
                and "clip.projector_type" not in draft.values
                and "clip.vision.projector_type" not in draft.values
            ),
        ),
        steps=(SetText("clip.projector_type", "mlp"),),
        hub="hf.co/mys/ggml_llava-v1.5-7b",
    ),
    Family(
        architecture="nemotron_h_omni",
        markers=(_always,),
        steps=(RefuseTensors("", "its parts for text, pictures and sound are in one file"),),
        hub="hf.co/unsloth/NVIDIA-Nemotron-3-Nano-30B-A3B-GGUF",
    ),
    Family(
        architecture="glmocr",
        markers=(_always,),
        steps=(
            RefuseTensors("", "its feed-forward weights would have to be joined, not only renamed"),
        ),
        hub="hf.co/ggml-org/GLM-OCR-GGUF",
    ),
    Family(
        architecture="deepseekocr",
        markers=(_always,),
        steps=(RefuseTensors("", "it is of use only with its vision tower, which stays unread"),),
        hub="hf.co/ggml-org/DeepSeek-OCR-GGUF",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A new header, and which parts of the old file follow it."""

    architecture: str
    header: bytes
    segments: tuple[Segment, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(part.length + part.padding for part in self.segments)


def translate(header: GgufHeader) -> Translation | None:
    """The translation a file needs; None for a file that llama.cpp loads as it is.

    Raises UntranslatableDialect, which names the equivalent model, when the family is known but
    its data would have to change, and InvalidGguf for values out of range.
    """
    draft = Draft(header)
    family = next((family for family in FAMILIES if _matches(family, draft)), None)
    if family is None:
        return None
    for step in family.steps:
        try:
            refusal = step.apply(draft)
        except (struct.error, OverflowError, ValueError) as error:
            raise InvalidGguf(f"a key has a value that no such model has: {error}") from error
        if refusal is not None:
            raise UntranslatableDialect(
                f"this file is in Ollama's own '{family.architecture}' format and cannot be "
                f"translated: {refusal}; pull {family.hub} instead"
            )
    return Translation(
        architecture=draft.architecture,
        header=encode_header(draft.values, draft.specs(), header.alignment),
        segments=draft.segments(),
    )


def _matches(family: Family, draft: Draft) -> bool:
    if family.architecture != draft.architecture:
        return False
    return any(marker(draft) for marker in family.markers)
