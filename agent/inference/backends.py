"""Prints the GPUs of the installed llama.cpp build as JSON: ``python -m agent.inference.backends``.

Run in a process of its own, because loading a GPU backend costs memory that an idle agent must
not spend, and a broken driver can take the process down.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import Final

import msgspec

_GPU: Final = 1
_INTEGRATED_GPU: Final = 2


class BackendDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU as the installed llama.cpp build reports it."""

    name: str
    description: str
    bus_id: str
    """PCI address, or empty."""
    free_bytes: int
    total_bytes: int


class _Properties(ctypes.Structure):
    """The leading members of ggml's device properties, with room for later ones."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("rest", ctypes.c_uint8 * 256),
    )


def main() -> int:
    """Write the list to standard output. Raises OSError when the libraries are missing."""
    sys.stdout.buffer.write(msgspec.json.encode(read_devices(library_directory())))
    return 0


def library_directory() -> Path:
    """Where llama-cpp-python keeps its shared libraries. Raises OSError when not installed."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise OSError("llama-cpp-python is not installed")
    return Path(spec.origin).parent / "lib"


def read_devices(directory: Path) -> tuple[BackendDevice, ...]:
    """GPUs in llama.cpp's order; integrated ones only where there is no other, as it does."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    base = ctypes.CDLL(str(directory / f"libggml-base.{suffix}"), mode=ctypes.RTLD_GLOBAL)
    ggml = ctypes.CDLL(str(directory / f"libggml.{suffix}"), mode=ctypes.RTLD_GLOBAL)
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = (ctypes.c_size_t,)
    base.ggml_backend_dev_get_props.restype = None
    base.ggml_backend_dev_get_props.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Properties))
    found: list[tuple[int, BackendDevice]] = []
    for index in range(int(ggml.ggml_backend_dev_count())):
        properties = _Properties()
        device = ggml.ggml_backend_dev_get(index)
        base.ggml_backend_dev_get_props(device, ctypes.byref(properties))
        found.append((int(properties.type), _device(properties)))
    dedicated = tuple(device for kind, device in found if kind == _GPU)
    return dedicated or tuple(device for kind, device in found if kind == _INTEGRATED_GPU)


def _device(properties: _Properties) -> BackendDevice:
    def text(value: bytes | None) -> str:
        return (value or b"").decode("utf-8", errors="replace")

    return BackendDevice(
        name=text(properties.name),
        description=text(properties.description),
        bus_id=text(properties.device_id),
        free_bytes=int(properties.memory_free),
        total_bytes=int(properties.memory_total),
    )


if __name__ == "__main__":
    sys.exit(main())
