"""A loaded model and its vocabulary."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from agent.inference.llama import library, logs


class LoadError(Exception):
    """llama.cpp refused the file; the message is its own last error line."""


class Vocabulary:
    """Tokens and text. ``tokenize`` may run on any thread; ``piece`` belongs to one thread."""

    def __init__(self, model: int) -> None:
        self.handle: int = library.model_get_vocab(model)
        self.size: int = library.vocab_n_tokens(self.handle)
        self.bos: int = library.vocab_bos(self.handle)
        self.eos: int = library.vocab_eos(self.handle)
        self.add_bos: bool = library.vocab_get_add_bos(self.handle)
        self.add_eos: bool = library.vocab_get_add_eos(self.handle)
        is_end = library.vocab_is_eog
        self.end_tokens: frozenset[int] = frozenset(
            token for token in range(self.size) if is_end(self.handle, token)
        )
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> tuple[int, ...]:
        """Text as token ids."""
        data = text.encode("utf-8", "surrogatepass")
        capacity = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * capacity)()
            count: int = library.tokenize(
                self.handle, data, len(data), buffer, capacity, add_special, parse_special
            )
            if count >= 0:
                return tuple(buffer[:count])
            if -count <= capacity:
                raise ValueError("the text is too long to tokenise")
            capacity = -count

    def piece(self, token: int) -> bytes:
        """Bytes a token adds to the answer; control tokens add none."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.spell(token, special=False)
        return piece

    def spell(self, token: int, *, special: bool) -> bytes:
        """Bytes of a token, control tokens spelled out when ``special``."""
        if not 0 <= token < self.size:
            return b""
        capacity = 64
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            count: int = library.token_to_piece(self.handle, token, buffer, capacity, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            capacity = -count

    def detokenize(self, tokens: Sequence[int], *, special: bool) -> str:
        """Token ids as text; bytes that are not UTF-8 become U+FFFD."""
        joined = b"".join(self.spell(token, special=special) for token in tokens)
        return joined.decode("utf-8", "replace")


class Model:
    """Weights in memory. Free it only after every context on it is gone."""

    def __init__(
        self,
        path: str,
        *,
        gpu_layers: int,
        main_gpu: int,
        split_mode: str,
        tensor_split: Sequence[float],
        use_mmap: bool,
        on_progress: Callable[[float], bool],
    ) -> None:
        """Load ``path``. ``on_progress`` gets 0..1 and returns False to abort.

        Raises LoadError.
        """
        params = library.model_default_params()
        params.n_gpu_layers = gpu_layers
        params.main_gpu = main_gpu
        params.split_mode = library.SPLIT_MODES[split_mode]
        params.load_mode = library.LOAD_MODE_MMAP if use_mmap else library.LOAD_MODE_NONE
        if tensor_split:
            slots = max(int(library.max_devices()), len(tensor_split))
            shares = (ctypes.c_float * slots)(*tensor_split)
            params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))

        def report(fraction: float, _user: int | None) -> bool:
            return on_progress(fraction)

        callback = library.bindings.llama_progress_callback(report)
        params.progress_callback = callback
        self.handle: int | None = library.model_load_from_file(path.encode(), params)
        if not self.handle:
            raise LoadError(logs.last_error() or "llama.cpp could not load the file")
        self.vocabulary = Vocabulary(self.handle)
        self.train_context: int = library.model_n_ctx_train(self.handle)
        self.embedding_length: int = library.model_n_embd(self.handle)
        self.size_bytes: int = library.model_size(self.handle)
        self.can_rewind: bool = not (
            library.model_is_recurrent(self.handle) or library.model_is_hybrid(self.handle)
        )
        self.has_decoder: bool = library.model_has_decoder(self.handle)
        self.has_encoder: bool = library.model_has_encoder(self.handle)

    def close(self) -> None:
        """Free the weights."""
        if self.handle:
            library.model_free(self.handle)
            self.handle = None
