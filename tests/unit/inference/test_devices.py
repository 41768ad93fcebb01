"""Devices as driver, llama.cpp and kernel report them."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pynvml
import pytest

import agent.inference.devices as devices
from agent.inference.backends import BackendDevice
from agent.inference.devices import SystemProbe, ask_backend, host_device, merge_gpus
from agent.inference.nvml import NvmlGpu, nvml_gpus, nvml_process_bytes

CARD = BackendDevice(
    name="CUDA0", description="Big", bus_id="0000:3b:00.0", free_bytes=5, total_bytes=10
)


def printing(text):
    return (sys.executable, "-c", f"print({text!r})")


def test_live_figures_of_the_driver_replace_those_of_the_build():
    backend = (CARD,)
    driver = (NvmlGpu(name="Big", bus_id="00000000:3B:00.0", free_bytes=4, total_bytes=11),)
    (gpu,) = merge_gpus("node", backend, driver)
    assert (gpu.id, gpu.index, gpu.free_bytes, gpu.total_bytes) == ("node:gpu0", 0, 4, 11)
    assert gpu.usable


def test_a_gpu_the_build_cannot_drive_is_shown_and_not_used():
    driver = (NvmlGpu(name="Big", bus_id="0:3b:00.0", free_bytes=4, total_bytes=11),)
    (gpu,) = merge_gpus("node", (), driver)
    assert not gpu.usable


def test_a_gpu_without_a_driver_account_keeps_the_figures_of_the_build():
    (gpu,) = merge_gpus("node", (msgspec.structs.replace(CARD, bus_id=""),), ())
    assert (gpu.free_bytes, gpu.usable) == (5, True)


async def test_the_build_is_asked_once_in_a_child(monkeypatch):
    asked = []

    def ask(command):
        asked.append(command)
        return (CARD,)

    monkeypatch.setattr(devices, "ask_backend", ask)
    probe = SystemProbe("node")
    first = await probe.inventory()
    second = await probe.inventory()
    assert len(asked) == 1
    assert [gpu.id for gpu in first.usable_gpus] == ["node:gpu0"]
    assert second.host.total_bytes > second.host.free_bytes > 0
    assert first.physical_cores >= 1


def test_the_answer_of_the_child_is_read():
    (device,) = ask_backend(printing(msgspec.json.encode([CARD]).decode()))
    assert device == CARD


@pytest.mark.parametrize(
    "command", [printing("nonsense"), (sys.executable, "-c", "exit(3)"), ("/nowhere/python",)]
)
def test_a_build_that_cannot_be_asked_has_no_gpus(command):
    assert ask_backend(command) == ()


def test_the_installed_build_can_be_asked():
    answer = subprocess.run(devices.BACKEND_COMMAND, capture_output=True, check=True)
    assert isinstance(json.loads(answer.stdout), list)


def test_a_machine_without_the_driver_has_no_gpus_and_no_error(monkeypatch):
    def missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert nvml_gpus() == ()
    assert nvml_process_bytes(1) == {}


def test_the_limit_of_a_container_counts_as_its_memory(tmp_path):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200000\n")
    host = host_device("node", tmp_path)
    assert (host.total_bytes, host.free_bytes) == (1_000_000, 600_000)


def test_no_limit_means_the_machine(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    assert host_device("node", tmp_path).total_bytes == host_device("node").total_bytes > 1 << 28


def test_asking_for_devices_never_loads_llama_cpp_into_the_agent():
    code = (
        "import sys, trio\n"
        "from agent.inference.devices import SystemProbe\n"
        "import agent.inference.pool, agent.inference.supervisor\n"
        "trio.run(SystemProbe('node').inventory)\n"
        "sys.exit(any(name.split('.')[0] in ('llama_cpp', 'numpy') for name in sys.modules))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
