"""The shared library: structures from llama-cpp-python, prototypes of our own.

Pointers are plain integers here (``c_void_p``), which keeps the hot path free of wrapper objects
and avoids a trap: a NULL pointer object of ctypes is falsy but is not ``None``. All functions
release the GIL while they run.
"""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final, Literal, cast


def _import_bindings() -> types.ModuleType:
    # The package's own __init__ drags in its high-level API (240 ms, 20 MB); a namespace stand-in
    # lets the one module that holds structures and the library load alone.
    if "llama_cpp" not in sys.modules:
        spec = find_spec("llama_cpp")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("llama-cpp-python is not installed")
        package = types.ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["llama_cpp"] = package
    import llama_cpp.llama_cpp as bindings

    return bindings


bindings: Final[Any] = _import_bindings()
_library: Final[ctypes.CDLL] = bindings._lib

Pointer = ctypes.c_void_p
_i32 = ctypes.c_int32
_bool = ctypes.c_bool
_size = ctypes.c_size_t


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    prototype = ctypes.CFUNCTYPE(result, *arguments)
    return cast("Callable[..., Any]", prototype((name, _library)))


ModelParams: Final[Any] = bindings.llama_model_params
ContextParams: Final[Any] = bindings.llama_context_params
BatchStruct: Final[Any] = bindings.llama_batch
TokenDataArray: Final[Any] = bindings.llama_token_data_array
SamplerInterface: Final[Any] = bindings.llama_sampler_i

model_default_params: Final = _function("llama_model_default_params", ModelParams)
context_default_params: Final = _function("llama_context_default_params", ContextParams)
load_all_backends: Final = _function("llama_backend_init", None)
supports_rpc: Final = _function("llama_supports_rpc", _bool)
device_count: Final = _function("ggml_backend_dev_count", _size)
device_at: Final = _function("ggml_backend_dev_get", Pointer, _size)
device_name: Final = _function("ggml_backend_dev_name", ctypes.c_char_p, Pointer)
max_devices: Final = _function("llama_max_devices", _size)
log_set: Final = _function("llama_log_set", None, Pointer, Pointer)

# Models and vocabularies.
model_load_from_file: Final = _function(
    "llama_model_load_from_file", Pointer, ctypes.c_char_p, ModelParams
)
model_free: Final = _function("llama_model_free", None, Pointer)
model_get_vocab: Final = _function("llama_model_get_vocab", Pointer, Pointer)
model_n_ctx_train: Final = _function("llama_model_n_ctx_train", _i32, Pointer)
model_n_embd: Final = _function("llama_model_n_embd", _i32, Pointer)
model_n_embd_out: Final = _function("llama_model_n_embd_out", _i32, Pointer)
model_n_cls_out: Final = _function("llama_model_n_cls_out", ctypes.c_uint32, Pointer)
model_size: Final = _function("llama_model_size", ctypes.c_uint64, Pointer)
model_has_encoder: Final = _function("llama_model_has_encoder", _bool, Pointer)
model_has_decoder: Final = _function("llama_model_has_decoder", _bool, Pointer)
model_is_recurrent: Final = _function("llama_model_is_recurrent", _bool, Pointer)
model_is_hybrid: Final = _function("llama_model_is_hybrid", _bool, Pointer)
vocab_n_tokens: Final = _function("llama_vocab_n_tokens", _i32, Pointer)
vocab_bos: Final = _function("llama_vocab_bos", _i32, Pointer)
vocab_eos: Final = _function("llama_vocab_eos", _i32, Pointer)
vocab_is_eog: Final = _function("llama_vocab_is_eog", _bool, Pointer, _i32)
vocab_get_add_bos: Final = _function("llama_vocab_get_add_bos", _bool, Pointer)
vocab_get_add_eos: Final = _function("llama_vocab_get_add_eos", _bool, Pointer)
tokenize: Final = _function(
    "llama_tokenize",
    _i32, Pointer, ctypes.c_char_p, _i32, ctypes.POINTER(_i32), _i32, _bool, _bool,
)  # fmt: skip
token_to_piece: Final = _function(
    "llama_token_to_piece", _i32, Pointer, _i32, ctypes.c_char_p, _i32, _i32, _bool
)

# Adapters.
adapter_lora_init: Final = _function("llama_adapter_lora_init", Pointer, Pointer, ctypes.c_char_p)
set_adapters_lora: Final = _function(
    "llama_set_adapters_lora",
    _i32, Pointer, ctypes.POINTER(Pointer), _size, ctypes.POINTER(ctypes.c_float),
)  # fmt: skip

# Contexts.
init_from_model: Final = _function("llama_init_from_model", Pointer, Pointer, ContextParams)
free: Final = _function("llama_free", None, Pointer)
get_memory: Final = _function("llama_get_memory", Pointer, Pointer)
n_ctx: Final = _function("llama_n_ctx", ctypes.c_uint32, Pointer)
n_ctx_seq: Final = _function("llama_n_ctx_seq", ctypes.c_uint32, Pointer)
n_batch: Final = _function("llama_n_batch", ctypes.c_uint32, Pointer)
n_seq_max: Final = _function("llama_n_seq_max", ctypes.c_uint32, Pointer)
pooling_type: Final = _function("llama_pooling_type", _i32, Pointer)
set_n_threads: Final = _function("llama_set_n_threads", None, Pointer, _i32, _i32)
set_warmup: Final = _function("llama_set_warmup", None, Pointer, _bool)
decode: Final = _function("llama_decode", _i32, Pointer, BatchStruct)
encode: Final = _function("llama_encode", _i32, Pointer, BatchStruct)
synchronize: Final = _function("llama_synchronize", None, Pointer)
get_logits: Final = _function("llama_get_logits", Pointer, Pointer)
get_embeddings_seq: Final = _function(
    "llama_get_embeddings_seq", ctypes.POINTER(ctypes.c_float), Pointer, _i32
)

# KV memory.
memory_clear: Final = _function("llama_memory_clear", None, Pointer, _bool)
memory_seq_rm: Final = _function("llama_memory_seq_rm", _bool, Pointer, _i32, _i32, _i32)
memory_seq_cp: Final = _function("llama_memory_seq_cp", None, Pointer, _i32, _i32, _i32, _i32)
memory_seq_add: Final = _function("llama_memory_seq_add", None, Pointer, _i32, _i32, _i32, _i32)
memory_can_shift: Final = _function("llama_memory_can_shift", _bool, Pointer)
state_seq_get_size: Final = _function("llama_state_seq_get_size", _size, Pointer, _i32)
state_seq_get_data: Final = _function(
    "llama_state_seq_get_data", _size, Pointer, Pointer, _size, _i32
)
state_seq_set_data: Final = _function(
    "llama_state_seq_set_data", _size, Pointer, Pointer, _size, _i32
)

# Samplers.
sampler_chain_default_params: Final = _function(
    "llama_sampler_chain_default_params", bindings.llama_sampler_chain_params
)
sampler_chain_init: Final = _function(
    "llama_sampler_chain_init", Pointer, bindings.llama_sampler_chain_params
)
sampler_chain_add: Final = _function("llama_sampler_chain_add", None, Pointer, Pointer)
sampler_init: Final = _function("llama_sampler_init", Pointer, Pointer, Pointer)
sampler_init_top_k: Final = _function("llama_sampler_init_top_k", Pointer, _i32)
sampler_init_top_p: Final = _function("llama_sampler_init_top_p", Pointer, ctypes.c_float, _size)
sampler_init_min_p: Final = _function("llama_sampler_init_min_p", Pointer, ctypes.c_float, _size)
sampler_init_typical: Final = _function(
    "llama_sampler_init_typical", Pointer, ctypes.c_float, _size
)
sampler_init_temp: Final = _function("llama_sampler_init_temp", Pointer, ctypes.c_float)
sampler_init_grammar: Final = _function(
    "llama_sampler_init_grammar", Pointer, Pointer, ctypes.c_char_p, ctypes.c_char_p
)
sampler_sample: Final = _function("llama_sampler_sample", _i32, Pointer, Pointer, _i32)
sampler_apply: Final = _function("llama_sampler_apply", None, Pointer, Pointer)
sampler_accept: Final = _function("llama_sampler_accept", None, Pointer, _i32)
sampler_free: Final = _function("llama_sampler_free", None, Pointer)


def device_names() -> tuple[str, ...]:
    """Every device of this build, as ggml names them: ``CPU``, ``CUDA0``, ..."""
    handles = (device_at(index) for index in range(device_count()))
    return tuple(device_name(handle).decode("utf-8", "replace") for handle in handles)


FLASH_ATTENTION: Final = {"auto": -1, "off": 0, "on": 1}
SPLIT_MODES: Final = {"none": 0, "layer": 1, "row": 2}
LOAD_MODE_NONE: Final = 0
LOAD_MODE_MMAP: Final = 1
KV_TYPES: Final = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30,
}  # fmt: skip
PoolingName = Literal["none", "mean", "cls", "last", "rank", "unspecified"]
POOLING_NAMES: Final[dict[int, PoolingName]] = {
    -1: "unspecified", 0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank",
}  # fmt: skip
POOLING_LAST: Final = 3
