"""The three that are measured: llama-server, our node over HTTP, our runner by its frames."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import psutil

from agent.inference.protocol import (
    BUILD_ID,
    LENGTH,
    Delta,
    Frame,
    Generate,
    Loaded,
    LoadModel,
    LoadProgress,
    LoadRejected,
    Sampling,
    Shutdown,
    Step,
    Tokenize,
    Tokens,
    encode_frame,
    from_runner_decoder,
)
from tests.benchmarks.streams import StreamFailed, Timing, last_json, post, run_streams
from tests.models.live_node import LiveNode, free_port

START_LIMIT_S: Final = 120.0
STOP_LIMIT_S: Final = 20.0
TEMPERATURE: Final = 0.8
TOP_K: Final = 40
TOP_P: Final = 0.9
MODEL: Final = "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all sides share."""

    model: Path
    threads: int
    slots: int
    context: int
    """Tokens one stream may use; all slots together have ``slots`` times as many."""

    @property
    def cells(self) -> int:
        return self.context * self.slots


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of one round, all sent at once."""

    prompts: tuple[str, ...]
    new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One side's round. Seconds."""

    tokens: int
    wall_s: float
    first_s: tuple[float, ...]
    cpu_s: float
    """CPU of the process that computes."""
    agent_cpu_s: float = 0.0
    """CPU of the agent in front of it."""

    @property
    def rate(self) -> float:
        """Answer tokens per second over all streams, prefill included."""
        return self.tokens / self.wall_s

    @property
    def median_first_s(self) -> float:
        ordered = sorted(self.first_s)
        return ordered[len(ordered) // 2]


class Side(Protocol):
    """Something that answers a load."""

    @property
    def name(self) -> str: ...

    def run(self, load: Load) -> Measured: ...


class SideFailed(Exception):
    """A side did not start or gave a wrong number of tokens."""


def measured(
    timings: Sequence[Timing], tokens: Sequence[int], load: Load, cpu_s: float
) -> Measured:
    """Sum up one round. Raises SideFailed when an answer is longer or shorter than asked."""
    if any(count != load.new_tokens for count in tokens):
        raise SideFailed(f"asked for {load.new_tokens} tokens each and got {sorted(set(tokens))}")
    return Measured(
        tokens=sum(tokens),
        wall_s=max(timing.last_s for timing in timings),
        first_s=tuple(timing.first_s for timing in timings),
        cpu_s=cpu_s,
    )


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def wait_for(url: str, alive: Callable[[], bool], log: Path) -> None:
    """Poll ``url`` until it answers 200. Raises SideFailed."""
    deadline = time.monotonic() + START_LIMIT_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and alive():
        with (
            suppress(urllib.error.URLError, OSError),
            opener.open(url, timeout=2) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise SideFailed(f"{url} did not answer\n{log.read_text(errors='replace')[-2000:]}")


class LlamaServer:
    """llama-server with unified KV and its other defaults."""

    name = "llama-server"

    def __init__(self, binary: Path, setting: Setting, folder: Path) -> None:
        self._port = free_port()
        self._log = folder / "llama-server.log"
        self._command = [
            str(binary), "--model", str(setting.model), "--host", "127.0.0.1",
            "--port", str(self._port), "--ctx-size", str(setting.cells),
            "--parallel", str(setting.slots), "--kv-unified",
            "--threads", str(setting.threads), "--threads-batch", str(setting.threads),
            "--offline",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        process = self._process
        wait_for(f"http://127.0.0.1:{self._port}/health", lambda: process.poll() is None, self._log)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            _stop(self._process)

    def run(self, load: Load) -> Measured:
        assert self._process is not None, "enter the context first"
        requests = [
            post(self._port, "/completion", self._body(prompt, load, index))
            for index, prompt in enumerate(load.prompts)
        ]
        before = cpu_seconds(self._process.pid)
        timings = run_streams(self._port, requests, b'"content":"')
        cpu_s = cpu_seconds(self._process.pid) - before
        tokens = [last_json(timing.body)["tokens_predicted"] for timing in timings]
        return measured(timings, tokens, load, cpu_s)

    @staticmethod
    def _body(prompt: str, load: Load, index: int) -> dict[str, Any]:
        return {
            "prompt": prompt,
            "n_predict": load.new_tokens,
            "temperature": TEMPERATURE,
            "top_k": TOP_K,
            "top_p": TOP_P,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "samplers": ["top_k", "top_p", "temperature"],
            "seed": load.seed + index,
            "cache_prompt": True,
            "stream": True,
        }


class Node:
    """Our node over ``/api/generate`` with raw prompts."""

    name = "node"

    def __init__(self, live: LiveNode, setting: Setting, model: str = MODEL) -> None:
        self._live = live
        self._setting = setting
        self._model = model

    def run(self, load: Load) -> Measured:
        requests = [
            post(self._live.port, "/api/generate", self._body(prompt, load, index))
            for index, prompt in enumerate(load.prompts)
        ]
        agent, runners = self._cpu()
        timings = run_streams(self._live.port, requests, b'"response":"')
        agent_after, runners_after = self._cpu()
        tokens = [last_json(timing.body)["eval_count"] for timing in timings]
        result = measured(timings, tokens, load, runners_after - runners)
        return _with_agent(result, agent_after - agent)

    def _cpu(self) -> tuple[float, float]:
        agent = psutil.Process(self._live.pid)
        runners = 0.0
        for child in agent.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                runners += cpu_seconds(child.pid)
        return cpu_seconds(agent.pid), runners

    def _body(self, prompt: str, load: Load, index: int) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": prompt,
            "raw": True,
            "stream": True,
            "keep_alive": -1,
            "options": {
                "num_predict": load.new_tokens,
                "temperature": TEMPERATURE,
                "top_k": TOP_K,
                "top_p": TOP_P,
                "seed": load.seed + index,
                "num_ctx": self._setting.context,
                "num_thread": self._setting.threads,
            },
        }


class Runner:
    """One runner process, driven by frames as the agent drives it."""

    name = "runner"

    def __init__(self, setting: Setting, folder: Path) -> None:
        self._setting = setting
        self._log = folder / "runner.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._sequence = 0

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair()
        with theirs, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent.inference.runner", "--fd", str(theirs.fileno())],
                cwd=Path(__file__).resolve().parents[2],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"GOMP_SPINCOUNT": "1000", "GGML_NO_BACKTRACE": "1"},
            )
        self._socket = ours
        ours.settimeout(START_LIMIT_S)
        setting = self._setting
        self._send(
            LoadModel(
                build_id=BUILD_ID,
                model_path=str(setting.model),
                cells=setting.cells,
                slots=setting.slots,
                sequence_context=setting.context,
                threads=setting.threads,
                idle_cells=1024,
                host_cache_bytes=1 << 30,
            )
        )
        while True:
            match self._receive():
                case Loaded():
                    return self
                case LoadRejected(phase, reason):
                    raise SideFailed(f"the runner refused while {phase}: {reason}")
                case LoadProgress():
                    continue
                case other:
                    raise SideFailed(f"the runner sent {other} before it was loaded")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._send(Shutdown())
            self._socket.close()
        if self._process is not None:
            _stop(self._process)

    def run(self, load: Load) -> Measured:
        """Prompts are tokenized inside the measured time, as the other sides do it."""
        assert self._process is not None, "enter the context first"
        before = cpu_seconds(self._process.pid)
        started = time.perf_counter()
        base = self._sequence
        self._sequence += len(load.prompts)
        for index, prompt in enumerate(load.prompts):
            self._send(Tokenize(base + index, prompt))
        first: dict[int, float] = {}
        last: dict[int, float] = {}
        counts = dict.fromkeys(range(base, self._sequence), 0)
        while len(last) < len(counts):
            match self._receive():
                case Tokens(call_id, tokens):
                    self._send(self._generate(call_id, tokens, load, call_id - base))
                case Step(deltas):
                    now = time.perf_counter() - started
                    for delta in deltas:
                        self._note(delta, now, counts, first, last)
                case _:
                    continue
        cpu_s = cpu_seconds(self._process.pid) - before
        timings = [Timing(first[number], last[number], b"") for number in counts]
        return measured(timings, list(counts.values()), load, cpu_s)

    @staticmethod
    def _note(
        delta: Delta,
        now: float,
        counts: dict[int, int],
        first: dict[int, float],
        last: dict[int, float],
    ) -> None:
        number = delta.sequence_id
        counts[number] += len(delta.tokens)
        if delta.tokens:
            first.setdefault(number, now)
        if delta.finish is not None:
            if delta.finish not in ("stop", "length"):
                raise SideFailed(f"sequence {number} {delta.finish}: {delta.reason}")
            last[number] = now

    def _generate(self, number: int, tokens: tuple[int, ...], load: Load, index: int) -> Generate:
        sampling = Sampling(
            seed=load.seed + index, temperature=TEMPERATURE, top_k=TOP_K, top_p=TOP_P
        )
        return Generate(
            sequence_id=number,
            prompt=tokens,
            sampling=sampling,
            predict_limit=load.new_tokens,
            context_limit=self._setting.context,
        )

    def _send(self, frame: Frame) -> None:
        assert self._socket is not None, "enter the context first"
        self._socket.sendall(encode_frame(frame))

    def _receive(self) -> Any:
        assert self._socket is not None, "enter the context first"
        while True:
            if len(self._buffer) >= LENGTH.size:
                (length,) = LENGTH.unpack_from(self._buffer)
                end = LENGTH.size + length
                if len(self._buffer) >= end:
                    frame = from_runner_decoder.decode(bytes(self._buffer[LENGTH.size : end]))
                    del self._buffer[:end]
                    return frame
            data = self._socket.recv(65_536)
            if not data:
                tail = self._log.read_text(errors="replace")[-2000:]
                raise SideFailed(f"the runner is gone\n{tail}")
            self._buffer += data


def warm(side: Side, rng: random.Random, slots: int) -> None:
    """One unmeasured round, so that pages, pools and graphs exist."""
    prompts = tuple(f"warm {rng.random()} and again" for _ in range(slots))
    with suppress(StreamFailed):
        side.run(Load(prompts, 8, rng.randrange(1 << 30)))


def _with_agent(result: Measured, agent_cpu_s: float) -> Measured:
    return Measured(
        tokens=result.tokens,
        wall_s=result.wall_s,
        first_s=result.first_s,
        cpu_s=result.cpu_s,
        agent_cpu_s=agent_cpu_s,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
