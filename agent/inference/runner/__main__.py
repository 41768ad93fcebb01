"""``python -m agent.inference.runner --fd N``: serve one model on an inherited socket."""

from __future__ import annotations

import argparse
import os
import queue
import socket
import sys
import threading
import traceback
from typing import Final

from agent.inference.engine.embedder import Embedder
from agent.inference.engine.engine import Engine
from agent.inference.protocol import (
    CallRejected,
    Cancel,
    Delta,
    Detokenize,
    Embed,
    Generate,
    Loaded,
    LoadModel,
    LoadRejected,
    SetThreads,
    Shutdown,
    Step,
    Text,
    Tokenize,
    Tokens,
    ToRunner,
)
from agent.inference.runner.inlet import frames
from agent.inference.runner.isolation import isolate
from agent.inference.runner.loading import LoadAborted, LoadedModel, LoadRefused, load
from agent.inference.runner.outlet import Outlet

DRAIN_TIMEOUT_S: Final = 2.0
SWITCH_INTERVAL_S: Final = 0.0005
"""Lets the socket thread in quickly while the engine thread runs Python."""


class Runner:
    """Wires the socket to the engine."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._outlet = Outlet(connection)
        self._order: queue.SimpleQueue[LoadModel | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._loaded: LoadedModel | None = None

    def run(self) -> int:
        """Load, serve until told to stop or the agent is gone; returns the exit status."""
        threading.Thread(target=self._read, name="inlet", daemon=True).start()
        order = self._order.get()
        if order is None:
            return 0
        try:
            loaded = load(order, self._outlet.send, self._ended.is_set)
        except LoadAborted:
            return 0
        except LoadRefused as refusal:
            self._outlet.send(LoadRejected(refusal.phase, refusal.reason))
            self._outlet.drain(DRAIN_TIMEOUT_S)
            return 1
        self._loaded = loaded
        self._outlet.send(Loaded(loaded.facts))
        if not self._ended.is_set():
            loaded.engine.run()
        self._outlet.drain(DRAIN_TIMEOUT_S)
        loaded.engine.close()
        loaded.context.close()
        loaded.model.close()
        return 0

    def _read(self) -> None:
        try:
            for frame in frames(self._connection):
                if not self._dispatch(frame):
                    break
        except Exception:
            traceback.print_exc()
        finally:
            self._ended.set()
            self._order.put(None)
            if self._loaded is not None:
                self._loaded.engine.stop()

    def _dispatch(self, frame: ToRunner) -> bool:
        if isinstance(frame, Shutdown):
            return False
        if isinstance(frame, LoadModel):
            self._order.put(frame)
            return True
        loaded = self._loaded
        assert loaded is not None, "the agent waits for Loaded before it sends work"
        self._serve(loaded, frame)
        return True

    def _serve(self, loaded: LoadedModel, frame: ToRunner) -> None:
        vocabulary = loaded.model.vocabulary
        engine = loaded.engine
        match frame, engine:
            case Tokenize(call_id, text, add_special, parse_special), _:
                tokens = vocabulary.tokenize(
                    text, add_special=add_special, parse_special=parse_special
                )
                self._outlet.send(Tokens(call_id, tokens))
            case Detokenize(call_id, tokens, special), _:
                self._outlet.send(Text(call_id, vocabulary.detokenize(tokens, special=special)))
            case ((Generate() | Cancel() | SetThreads()), Engine()):
                engine.post(frame)
            case ((Embed() | SetThreads()), Embedder()):
                engine.post(frame)
            case Embed(call_id), _:
                self._outlet.send(CallRejected(call_id, "this runner generates, it has no vectors"))
            case Generate(sequence_id), _:
                reason = "this runner makes vectors, it does not generate"
                refused = Delta(sequence_id, 0, (), "", "failed", reason=reason)
                self._outlet.send(Step(deltas=(refused,)))
            case _:
                pass


def main() -> None:
    """Entry point of the child process."""
    parser = argparse.ArgumentParser(prog="llamesh-runner")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, default=os.getppid())
    arguments = parser.parse_args()
    isolate(arguments.parent)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with socket.socket(fileno=arguments.fd) as connection:
        status = Runner(connection).run()
    sys.stderr.flush()
    # Threads may still sit in the socket; nothing is left that needs an orderly end.
    os._exit(status)


if __name__ == "__main__":
    main()
