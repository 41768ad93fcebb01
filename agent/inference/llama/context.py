"""A llama_context: one KV memory, one compute graph, one owner thread."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.inference.llama import library, logs
from agent.inference.llama.batch import Batch
from agent.inference.llama.model import LoadError, Model


class AbortFlag:
    """Stops a running decode from another thread, without the GIL.

    llama.cpp polls a C callback between graph nodes. A Python callback would take the GIL
    hundreds of times a step (1.5 % measured), so the callback is libc's ``strlen`` over a
    one-byte string: empty means go on, one character means abort.
    """

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(2)
        libc = ctypes.CDLL(None)
        self.callback = ctypes.cast(libc.strlen, library.bindings.ggml_abort_callback)
        self.data = ctypes.cast(self._buffer, ctypes.c_void_p)

    def set(self) -> None:
        """Abort the decode that runs now."""
        self._buffer[0] = b"\x01"

    def clear(self) -> None:
        """Let the next decode run."""
        self._buffer[0] = b"\x00"

    def is_set(self) -> bool:
        return self._buffer[0] != b"\x00"


class Context:
    """Owns the memory of up to ``slots`` sequences. Only its engine thread may call it, except
    for ``abort``."""

    def __init__(
        self,
        model: Model,
        *,
        cells: int,
        slots: int,
        batch: int,
        micro_batch: int,
        threads: int,
        flash_attention: str,
        kv_type: str,
        kv_unified: bool,
        embeddings: bool = False,
        pooling: int | None = None,
    ) -> None:
        """Raises LoadError when memory or the combination of settings does not allow it."""
        params: Any = library.context_default_params()
        params.n_ctx = cells
        params.n_batch = batch
        params.n_ubatch = micro_batch
        params.n_seq_max = slots
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = library.FLASH_ATTENTION[flash_attention]
        params.type_k = params.type_v = library.KV_TYPES[kv_type]
        params.kv_unified = kv_unified
        params.no_perf = True
        params.embeddings = embeddings
        if pooling is not None:
            params.pooling_type = pooling
        self.abort = AbortFlag()
        params.abort_callback = self.abort.callback
        params.abort_callback_data = self.abort.data
        self.handle: int | None = library.init_from_model(model.handle, params)
        if not self.handle:
            raise LoadError(logs.last_error() or "llama.cpp could not create a context")
        self._memory: int | None = library.get_memory(self.handle)
        self._vocabulary_size = model.vocabulary.size
        self._logits_address = 0
        self._logits: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self.cells: int = library.n_ctx(self.handle)
        self.sequence_cells: int = library.n_ctx_seq(self.handle)
        self.batch_capacity: int = library.n_batch(self.handle)
        self.slots: int = library.n_seq_max(self.handle)
        self.pooling: int = library.pooling_type(self.handle)
        self.can_shift: bool = self._memory is not None and bool(
            library.memory_can_shift(self._memory)
        )

    def set_adapters(self, model: Model, adapters: Sequence[tuple[str, float]]) -> None:
        """Apply LoRA files with their scales. Raises LoadError."""
        if not adapters:
            return
        handles = (ctypes.c_void_p * len(adapters))()
        scales = (ctypes.c_float * len(adapters))()
        for index, (path, scale) in enumerate(adapters):
            handle = library.adapter_lora_init(model.handle, path.encode())
            if not handle:
                raise LoadError(logs.last_error() or f"llama.cpp could not load adapter {path}")
            handles[index] = handle
            scales[index] = scale
        code: int = library.set_adapters_lora(self.handle, handles, len(adapters), scales)
        if code != 0:
            raise LoadError(f"llama.cpp refused the adapters (code {code})")

    def set_threads(self, threads: int) -> None:
        """CPU threads from the next decode on."""
        library.set_n_threads(self.handle, threads, threads)

    def warm(self, model: Model) -> None:
        """One throw-away pass, so that the first request does not pay for page faults."""
        batch = Batch(2)
        start = max(model.vocabulary.bos, 0)
        batch.add_token(start, 0, 0)
        library.set_warmup(self.handle, True)
        self.decode(batch)
        self.clear()
        library.set_warmup(self.handle, False)

    def decode(self, batch: Batch) -> int:
        """Run one batch. 0 done, 1 no room in KV, 2 aborted, negative an error."""
        code: int = library.decode(self.handle, batch.prepare())
        if code == 0:
            library.synchronize(self.handle)
        return code

    def logits(self) -> NDArray[np.float32]:
        """One row per output of the last decode, in batch order; valid until the next one.

        Rows may be written to: samplers read the same memory.
        """
        address: int = library.get_logits(self.handle)
        if address != self._logits_address:
            shape = (self.batch_capacity, self._vocabulary_size)
            floats = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            self._logits = np.ctypeslib.as_array(floats, shape)
            self._logits_address = address
        return self._logits

    def pooled(self, sequence: int, length: int) -> NDArray[np.float32] | None:
        """A copy of one sequence's pooled vector, or None if there is none."""
        pointer = library.get_embeddings_seq(self.handle, sequence)
        if not pointer:
            return None
        return np.ctypeslib.as_array(pointer, (length,)).copy()

    # -- KV memory; positions are half-open ranges, -1 is "to the end" -------------------------

    def clear(self) -> None:
        """Forget every sequence."""
        if self._memory is not None:
            library.memory_clear(self._memory, True)

    def remove(self, slot: int, start: int, end: int) -> bool:
        """Drop positions of one sequence. False if this memory cannot be cut there."""
        return bool(library.memory_seq_rm(self._memory, slot, start, end))

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Let ``target`` share ``source``'s cells (unified) or copy its stream (split)."""
        library.memory_seq_cp(self._memory, source, target, start, end)

    def shift(self, slot: int, start: int, end: int, by: int) -> None:
        """Move positions. Cells shared with another sequence move for it too: never do that."""
        library.memory_seq_add(self._memory, slot, start, end, by)

    def state_size(self, slot: int) -> int:
        """Bytes ``save`` needs for one sequence."""
        return int(library.state_seq_get_size(self.handle, slot))

    def save(self, slot: int, buffer: NDArray[np.uint8], size_bytes: int) -> bool:
        """Write one sequence's cache into ``buffer``."""
        written: int = library.state_seq_get_data(self.handle, buffer.ctypes.data, size_bytes, slot)
        return written == size_bytes

    def restore(self, slot: int, buffer: NDArray[np.uint8], size_bytes: int) -> bool:
        """Read a saved cache into an empty sequence. False if it does not fit this context."""
        read: int = library.state_seq_set_data(self.handle, buffer.ctypes.data, size_bytes, slot)
        return read != 0

    def close(self) -> None:
        """Free the context."""
        if self.handle:
            library.free(self.handle)
            self.handle = None
