"""A runner process without an agent: blocking, for tests and benchmarks of the engine alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import agent
from agent.inference.protocol import (
    BUILD_ID,
    LENGTH,
    Cancel,
    Delta,
    Embed,
    Frame,
    FromRunner,
    Generate,
    Loaded,
    LoadModel,
    LoadProgress,
    LoadRejected,
    LogprobRow,
    ModelFacts,
    Sampling,
    Statistics,
    Step,
    Summary,
    Tokenize,
    Tokens,
    encode_frame,
    from_runner_decoder,
)

GREEDY = Sampling(seed=0, temperature=0.0)
READ_TIMEOUT_S = 60.0


class RunnerEnded(Exception):
    """The process closed its socket."""


@dataclass
class Answer:
    """Everything one sequence produced."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    reason: str = ""
    summary: Summary | None = None
    logprobs: list[LogprobRow] = field(default_factory=list)


class DirectRunner:
    """A context manager around one loaded runner process."""

    def __init__(self, model: Path, **load: Any) -> None:
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the runner
        root = str(Path(agent.__file__).parents[1])
        environment = os.environ | {
            "PYTHONPATH": root,
            "GOMP_SPINCOUNT": "1000",
            "GGML_NO_BACKTRACE": "1",
            **load.pop("environment", {}),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent.inference.runner", "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
        )
        theirs.close()
        self._socket = ours
        self._socket.settimeout(READ_TIMEOUT_S)
        self._reader = ours.makefile("rb")
        self._next_id = 0
        self.answers: dict[int, Answer] = {}
        self.statistics: Statistics | None = None
        self.phases: list[str] = []
        self._others: list[FromRunner] = []
        self.send(LoadModel(build_id=BUILD_ID, model_path=str(model), **load))
        self.facts = self._wait_for_load()

    def _wait_for_load(self) -> ModelFacts:
        while True:
            match self.read():
                case LoadProgress(phase):
                    if not self.phases or self.phases[-1] != phase:
                        self.phases.append(phase)
                case Loaded(facts):
                    return facts
                case LoadRejected(phase, reason):
                    self.close()
                    raise RunnerEnded(f"{phase}: {reason}")
                case _:
                    pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()
        self._socket.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self._log.close()

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def send(self, frame: Frame) -> None:
        self._socket.sendall(encode_frame(frame))

    def read(self) -> FromRunner:
        head = self._reader.read(LENGTH.size)
        if len(head) < LENGTH.size:
            raise RunnerEnded(self.log())
        return from_runner_decoder.decode(self._reader.read(LENGTH.unpack(head)[0]))

    def tokenize(self, text: str) -> tuple[int, ...]:
        self._next_id += 1
        self.send(Tokenize(self._next_id, text, add_special=False))
        while True:
            frame = self.read()
            if isinstance(frame, Tokens) and frame.call_id == self._next_id:
                return frame.tokens
            self._take(frame)

    def begin(self, prompt: str | Sequence[int], **options: Any) -> int:
        """Start a sequence; greedy unless told otherwise."""
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else tuple(prompt)
        self._next_id += 1
        options.setdefault("sampling", GREEDY)
        options.setdefault("predict_limit", 32)
        self.send(Generate(sequence_id=self._next_id, prompt=tokens, **options))
        self.answers[self._next_id] = Answer()
        return self._next_id

    def cancel(self, sequence_id: int) -> None:
        self.send(Cancel(sequence_id))

    def embed(self, inputs: Sequence[Sequence[int]]) -> FromRunner:
        self._next_id += 1
        self.send(Embed(self._next_id, tuple(tuple(one) for one in inputs)))
        while True:
            frame = self.read()
            if not isinstance(frame, (Statistics, Step)):
                return frame

    def pump(self) -> None:
        """Read one frame."""
        self._take(self.read())

    def finish(self, sequence_ids: Iterable[int]) -> list[Answer]:
        """Read until all have ended."""
        wanted = list(sequence_ids)
        while any(self.answers[one].finish is None for one in wanted):
            self.pump()
        return [self.answers[one] for one in wanted]

    def ask(self, prompt: str | Sequence[int], **options: Any) -> Answer:
        return self.finish([self.begin(prompt, **options)])[0]

    def _take(self, frame: FromRunner) -> None:
        match frame:
            case Step(deltas):
                for delta in deltas:
                    self._add(delta)
            case Statistics():
                self.statistics = frame
            case _:
                self._others.append(frame)

    def _add(self, delta: Delta) -> None:
        answer = self.answers[delta.sequence_id]
        assert answer.finish is None, "a delta after the end"
        answer.tokens.extend(delta.tokens)
        answer.text += delta.text
        answer.logprobs.extend(delta.logprobs)
        answer.finish = delta.finish
        answer.reason = delta.reason
        answer.summary = delta.summary
