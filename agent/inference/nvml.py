# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""GPUs by the NVIDIA driver's account. The binding has no types, so it is met only here."""

from __future__ import annotations

import msgspec
import pynvml
import structlog

log = structlog.get_logger()


class NvmlGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU as its driver reports it."""

    name: str
    bus_id: str
    free_bytes: int
    total_bytes: int


def nvml_gpus() -> tuple[NvmlGpu, ...]:
    """GPUs by the NVIDIA driver; none without one, which is a normal machine."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    gpus: list[NvmlGpu] = []
    try:
        for index in range(int(pynvml.nvmlDeviceGetCount())):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            bus = pynvml.nvmlDeviceGetPciInfo(handle).busId
            name = pynvml.nvmlDeviceGetName(handle)
            gpus.append(
                NvmlGpu(
                    name=_text(name),
                    bus_id=_text(bus),
                    free_bytes=int(memory.free),
                    total_bytes=int(memory.total),
                )
            )
    except pynvml.NVMLError as error:
        log.debug("nvml_read_failed", error=str(error))
    finally:
        _nvml_shutdown()
    return tuple(gpus)


def nvml_process_bytes(pid: int) -> dict[str, int]:
    """GPU bytes of one process by bus; empty when the driver hides them, as in containers."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    held: dict[str, int] = {}
    try:
        for index in range(int(pynvml.nvmlDeviceGetCount())):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            bus = bus_key(_text(pynvml.nvmlDeviceGetPciInfo(handle).busId))
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if process.pid == pid and process.usedGpuMemory:
                    held[bus] = int(process.usedGpuMemory)
    except pynvml.NVMLError as error:
        log.debug("nvml_read_failed", error=str(error))
    finally:
        _nvml_shutdown()
    return held


def _nvml_shutdown() -> None:
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        log.debug("nvml_shutdown_failed", error=str(error))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def bus_key(bus_id: str) -> str:
    """``00000000:3B:00.0`` and ``0000:3b:00.0`` are one place."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{domain.lstrip('0') or '0'}:{rest}"
