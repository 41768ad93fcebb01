"""Writing tensors into a GGUF: storage types and the random weights of test models."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize

Array = npt.NDArray[np.float32]
Storage = Literal["f32", "f16", "q8_0"]

FILE_TYPES: Final = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}


def add_matrix(writer: GGUFWriter, name: str, values: Array, storage: Storage) -> None:
    """Add a matrix in ``storage``; Q8_0 needs rows of a multiple of 32 values."""
    match storage:
        case "f32":
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        case "f16":
            writer.add_tensor(name, np.ascontiguousarray(values.astype(np.float16)))
        case "q8_0":
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)


def add_vector(writer: GGUFWriter, name: str, values: Array) -> None:
    """Add norms and biases, which stay float32 in every storage."""
    writer.add_tensor(name, np.ascontiguousarray(values, np.float32))


def finish(writer: GGUFWriter, path: Path) -> Path:
    """Write header, keys and tensors, close, and return ``path``."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def normal(generator: np.random.Generator, rows: int, columns: int, deviation: float) -> Array:
    """A random matrix of zero mean."""
    values = generator.standard_normal((rows, columns), dtype=np.float32)
    values *= np.float32(deviation)
    return values
