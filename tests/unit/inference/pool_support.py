"""Scripted runners and values for the pool's tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from agent.inference.devices import ScriptedProbe
from agent.inference.errors import LoadFailed, LoadStalled, RunnerDied
from agent.inference.inventory import Device, Inventory
from agent.inference.lease import DeltaStream
from agent.inference.memory import GIB
from agent.inference.pool import RunnerPool
from agent.inference.protocol import Generate, LoadModel, LoadProgress, ModelFacts, Statistics
from agent.inference.supervisor import LoadCrashed
from agent.models.installed import Capability, GgufSummary, InstalledModel
from agent.models.names import parse_name
from agent.settings import Settings
from agent.telemetry.metrics import Metrics

MIB = 1 << 20


def header(
    *, layers: int = 8, layer_bytes: int = 16 * MIB, train_context: int = 131072, heads_kv: int = 2
) -> GgufSummary:
    return GgufSummary(
        architecture="llama",
        context_length=train_context,
        embedding_length=256,
        block_count=layers,
        head_count=8,
        head_count_kv=(heads_kv,) * layers,
        key_length=32,
        value_length=32,
        vocabulary=4096,
        parameter_count=1,
        file_type="F16",
        pooling="unspecified",
        chat_template=None,
        sliding_window=0,
        expert_count=0,
        layer_bytes=(layer_bytes,) * layers,
        input_bytes=4 * MIB,
        output_bytes=4 * MIB,
        other_bytes=0,
        file_bytes=layers * layer_bytes + 8 * MIB,
    )


def model(
    name: str = "alpha",
    *,
    weights: str | None = None,
    capability: Capability = "completion",
    summary: GgufSummary | None = None,
) -> InstalledModel:
    weights = weights or name
    return InstalledModel(
        name=parse_name(name),
        digest=name.ljust(64, "0"),
        size_bytes=1,
        modified_at_s=0.0,
        weights_path=Path(f"/models/{weights}"),
        weights_digest=weights.ljust(64, "0"),
        header=summary or header(),
        capabilities=frozenset({capability}),
    )


def settings(home: Path = Path("/nowhere"), **changes: object) -> Settings:
    base = Settings(home=home, models=home / "models", node_name="node", cpu_threads=4)
    return replace(base, **changes)


def inventory(
    *gpu_bytes: int, ram_bytes: int = 16 * GIB, free_bytes: int | None = None
) -> Inventory:
    return Inventory(
        host=Device(
            id="node:cpu",
            kind="cpu",
            name="CPU",
            total_bytes=ram_bytes,
            free_bytes=ram_bytes if free_bytes is None else free_bytes,
        ),
        gpus=tuple(
            Device(
                id=f"node:gpu{index}",
                kind="gpu",
                name="GPU",
                total_bytes=size,
                free_bytes=size,
                index=index,
            )
            for index, size in enumerate(gpu_bytes)
        ),
        physical_cores=4,
    )


def facts_for(frame: LoadModel, *, resident_bytes: int = 64 * MIB) -> ModelFacts:
    return ModelFacts(
        vocabulary=4096,
        train_context=131072,
        embedding_length=256,
        bos=1,
        eos=2,
        bos_text="",
        eos_text="",
        add_bos=True,
        add_eos=False,
        end_tokens=(2,),
        cells=frame.cells,
        slots=frame.slots,
        sequence_context=frame.sequence_context,
        batch=frame.batch,
        pooling="none",
        can_shift=True,
        can_rewind=True,
        weight_bytes=1,
        resident_bytes=resident_bytes,
        devices=("CPU",),
        supports_rpc=False,
    )


class ScriptedRunner:
    """A loaded runner that only has facts."""

    def __init__(self, process: ScriptedProcess) -> None:
        self.process = process

    @property
    def facts(self) -> ModelFacts:
        assert self.process.facts is not None
        return self.process.facts

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> tuple[int, ...]:
        raise RunnerDied("scripted")

    async def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        raise RunnerDied("scripted")

    async def embed(self, inputs: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
        raise RunnerDied("scripted")

    @asynccontextmanager
    async def generate(self, start: Generate) -> AsyncGenerator[DeltaStream]:
        raise RunnerDied("scripted")
        yield  # pragma: no cover


LoadScript = Callable[["ScriptedProcess", LoadModel], LoadFailed | None]


class ScriptedProcess:
    """A runner process in memory. Loading waits for ``may_load``."""

    def __init__(self, host: ScriptedHost, runner_id: str, pid: int) -> None:
        self.host = host
        self.runner_id = runner_id
        self.pid = pid
        self.runner = ScriptedRunner(self)
        self.facts: ModelFacts | None = None
        self.frame = LoadModel(build_id="", model_path="")
        self.threads: list[int] = []
        self.ended = trio.Event()
        self.stopped = False
        self.stopping = False
        self.reason = ""

    @property
    def statistics(self) -> Statistics | None:
        return None

    async def serve(self) -> None:
        await self.ended.wait()

    async def load(
        self,
        frame: LoadModel,
        *,
        model: str,
        stall_timeout_s: float,
        on_progress: Callable[[LoadProgress], None],
    ) -> ModelFacts:
        self.frame = frame
        self.threads.append(frame.threads)
        on_progress(LoadProgress(phase="reading weights", fraction=0.5))
        gate = self.host.gates.get(frame.model_path)
        with trio.move_on_after(stall_timeout_s) as waiting:
            if gate is not None:
                await gate.wait()
            elif self.host.load_s:
                await trio.sleep(self.host.load_s)
        if waiting.cancelled_caught:
            raise LoadStalled(model, "reading weights", "no progress")
        failure = self.host.failures.get(frame.model_path)
        if failure is not None:
            error = failure(self, frame)
            if error is not None:
                if isinstance(error, LoadCrashed):
                    self.die("crashed")
                raise error
        self.facts = facts_for(frame, resident_bytes=self.host.resident_bytes)
        return self.facts

    def set_threads(self, threads: int) -> None:
        self.threads.append(threads)

    async def wait_ended(self) -> str:
        await self.ended.wait()
        return self.reason

    def die(self, reason: str) -> None:
        self.reason = reason
        self.ended.set()

    async def stop(self) -> str:
        self.stopping = True
        if self.host.stop_s:
            await trio.sleep(self.host.stop_s)
        self.stopped = True
        self.ended.set()
        return self.reason


class ScriptedHost:
    def __init__(self) -> None:
        self.processes: list[ScriptedProcess] = []
        self.gates: dict[str, trio.Event] = {}
        self.failures: dict[str, LoadScript] = {}
        self.load_s = 0.0
        self.stop_s = 0.0
        self.resident_bytes = 0

    def start(self, runner_id: str) -> ScriptedProcess:
        assert all(
            process.stopped for process in self.processes if process.runner_id == runner_id
        ), "one process per runner id"
        process = ScriptedProcess(self, runner_id, 1000 + len(self.processes))
        self.processes.append(process)
        return process

    @property
    def live(self) -> list[str]:
        return sorted(p.runner_id.rstrip("0") for p in self.processes if not p.stopped)

    def gate(self, installed: InstalledModel) -> trio.Event:
        event = self.gates[str(installed.weights_path)] = trio.Event()
        return event

    def fail(self, installed: InstalledModel, script: LoadScript) -> None:
        self.failures[str(installed.weights_path)] = script


@asynccontextmanager
async def open_pool(
    host: ScriptedHost | None = None,
    *,
    config: Settings | None = None,
    probe: ScriptedProbe | None = None,
    metrics: Metrics | None = None,
) -> AsyncGenerator[tuple[RunnerPool, ScriptedHost, ScriptedProbe]]:
    host = host or ScriptedHost()
    probe = probe or ScriptedProbe(inventory())
    pool = RunnerPool(
        config or settings(), host, probe, metrics or Metrics(), build_id="test", wall=lambda: 0.0
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.serve)
        yield pool, host, probe
        await pool.close(0)
    assert all(process.stopped for process in host.processes)
    assert pool.waiting() == 0
    assert pool.reserved_bytes("node:cpu") == 0
