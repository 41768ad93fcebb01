"""Reading this node's devices: GPUs through NVML and llama.cpp, memory and cores."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import msgspec
import psutil
import structlog
import trio

from agent.inference.backends import BackendDevice
from agent.inference.inventory import Device, Inventory
from agent.inference.nvml import NvmlGpu, bus_key, nvml_gpus, nvml_process_bytes

log = structlog.get_logger()

BACKEND_TIMEOUT_S: Final = 60.0
BACKEND_COMMAND: Final = (sys.executable, "-m", "agent.inference.backends")
_CGROUP: Final = Path("/sys/fs/cgroup")


class DeviceProbe(Protocol):
    """Looks at the node's devices."""

    async def inventory(self) -> Inventory:
        """What is there and free now."""
        ...

    async def process_bytes(self, pid: int) -> Mapping[str, int]:
        """GPU bytes a process holds, by device id; empty when no driver tells."""
        ...


class SystemProbe:
    """The real devices. llama.cpp is asked once, in a child process: loading it here would cost
    an idle agent its memory bound. ``command`` is replaced in tests."""

    def __init__(self, node_name: str, *, command: tuple[str, ...] = BACKEND_COMMAND) -> None:
        self._node_name = node_name
        self._command = command
        self._backend: tuple[BackendDevice, ...] | None = None
        self._backend_lock = trio.Lock()

    async def inventory(self) -> Inventory:
        """What is there and free now. Never fails for a missing GPU or driver."""
        async with self._backend_lock:
            if self._backend is None:
                self._backend = await trio.to_thread.run_sync(
                    ask_backend, self._command, abandon_on_cancel=True
                )
        return await trio.to_thread.run_sync(self._read)

    async def process_bytes(self, pid: int) -> Mapping[str, int]:
        """GPU bytes a process holds by NVML's account, by device id."""
        if not self._backend:
            return {}
        return await trio.to_thread.run_sync(self._read_process, pid)

    def _read(self) -> Inventory:
        gpus = merge_gpus(self._node_name, self._backend or (), nvml_gpus())
        return Inventory(
            host=host_device(self._node_name),
            gpus=gpus,
            physical_cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        )

    def _read_process(self, pid: int) -> dict[str, int]:
        by_bus = nvml_process_bytes(pid)
        return {
            f"{self._node_name}:gpu{index}": by_bus[bus_key(device.bus_id)]
            for index, device in enumerate(self._backend or ())
            if device.bus_id and bus_key(device.bus_id) in by_bus
        }


class ScriptedProbe:
    """Devices as a test wants them; ``current`` may be changed at any time."""

    def __init__(self, current: Inventory) -> None:
        self.current = current
        self.held: dict[int, dict[str, int]] = {}

    async def inventory(self) -> Inventory:
        """``current``."""
        await trio.lowlevel.checkpoint()
        return self.current

    async def process_bytes(self, pid: int) -> Mapping[str, int]:
        """What ``held`` says."""
        await trio.lowlevel.checkpoint()
        return self.held.get(pid, {})


def ask_backend(command: tuple[str, ...]) -> tuple[BackendDevice, ...]:
    """GPUs of the installed llama.cpp build, in its order. A build that cannot be asked has
    none, with one warning."""
    try:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=BACKEND_TIMEOUT_S,
            check=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        return msgspec.json.decode(answer.stdout, type=tuple[BackendDevice, ...])
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        log.warning("backend_devices_unknown", error=str(error))
        return ()


def merge_gpus(
    node_name: str, backend: tuple[BackendDevice, ...], nvml: tuple[NvmlGpu, ...]
) -> tuple[Device, ...]:
    """llama.cpp's GPUs first, numbered as it does, with the driver's live figures where both
    name the same bus; then GPUs only the driver knows, which this build cannot use."""
    by_bus = {bus_key(gpu.bus_id): gpu for gpu in nvml}
    devices: list[Device] = []
    for index, gpu in enumerate(backend):
        live = by_bus.pop(bus_key(gpu.bus_id), None) if gpu.bus_id else None
        devices.append(
            Device(
                id=f"{node_name}:gpu{index}",
                kind="gpu",
                name=gpu.description or gpu.name,
                total_bytes=live.total_bytes if live else gpu.total_bytes,
                free_bytes=live.free_bytes if live else gpu.free_bytes,
                index=index,
            )
        )
    devices.extend(
        Device(
            id=f"{node_name}:gpu{index}",
            kind="gpu",
            name=gpu.name,
            total_bytes=gpu.total_bytes,
            free_bytes=gpu.free_bytes,
            index=index,
            usable=False,
        )
        for index, gpu in enumerate(by_bus.values(), start=len(backend))
    )
    return tuple(devices)


def host_device(node_name: str, cgroup: Path = _CGROUP) -> Device:
    """RAM of the machine or, when it is less, of the container."""
    memory = psutil.virtual_memory()
    host = Device(
        id=f"{node_name}:cpu",
        kind="cpu",
        name="CPU",
        total_bytes=memory.total,
        free_bytes=memory.available,
    )
    limit = _cgroup_number(cgroup / "memory.max")
    used = _cgroup_number(cgroup / "memory.current")
    if limit is None or used is None or limit >= memory.total:
        return host
    reclaimable = _cgroup_file_bytes(cgroup / "memory.stat")
    free = max(0, limit - max(0, used - reclaimable))
    return replace(host, total_bytes=limit, free_bytes=min(host.free_bytes, free))


def _cgroup_number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cgroup_file_bytes(path: Path) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    values = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(values.get("inactive_file", "0"))
