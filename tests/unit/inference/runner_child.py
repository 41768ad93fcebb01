"""A small process that speaks the runner's side of the frames, for the agent side's tests.

The file name of the model path selects a script: ``model`` answers, ``stall`` never loads,
``exit`` ends while loading, ``reject`` refuses, ``garbage`` and ``huge`` break the framing,
``gap`` skips a token, ``stubborn`` ignores requests to end, ``hang`` never answers calls.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path

from agent.inference.protocol import (
    FRAME_LIMIT_BYTES,
    LENGTH,
    CallRejected,
    Cancel,
    Delta,
    Detokenize,
    Embed,
    FinishReason,
    Frame,
    Generate,
    Loaded,
    LoadModel,
    LoadProgress,
    LoadRejected,
    ModelFacts,
    SetThreads,
    Shutdown,
    Statistics,
    Step,
    Summary,
    Text,
    Tokenize,
    Tokens,
    Vectors,
    encode_frame,
    to_runner_decoder,
)


def facts(frame: LoadModel) -> ModelFacts:
    return ModelFacts(
        vocabulary=256, train_context=4096, embedding_length=4, bos=-1, eos=0, bos_text="",
        eos_text="", add_bos=False, add_eos=False, end_tokens=(0,), cells=frame.cells,
        slots=frame.slots, sequence_context=frame.sequence_context, batch=8, pooling="mean",
        can_shift=True, can_rewind=True, weight_bytes=1, resident_bytes=50 << 20,
        devices=("CPU",), supports_rpc=False,
    )  # fmt: skip


class Child:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.script = "model"

    def send(self, frame: Frame) -> None:
        self.connection.sendall(encode_frame(frame))

    def read(self) -> bytes:
        size = LENGTH.unpack(self.exactly(LENGTH.size))[0]
        return self.exactly(size)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                os._exit(0)
            data += part
        return data

    def load(self, frame: LoadModel) -> None:
        self.script = Path(frame.model_path).name
        if self.script == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.send(LoadProgress(phase="reading weights", fraction=0.5))
        if self.script == "stall":
            time.sleep(3600)
        if self.script == "exit":
            print("ggml: tensor 7 is broken", file=sys.stderr, flush=True)
            os._exit(3)
        if self.script == "reject":
            self.send(LoadRejected(phase="creating context", reason="too many heads"))
            os._exit(1)
        self.send(Loaded(facts=facts(frame)))

    def generate(self, frame: Generate) -> None:
        """Echo the prompt, one token a step, then finish; long ones never finish."""
        index = len(frame.emitted)
        number = frame.sequence_id
        if self.script == "garbage":
            self.connection.sendall(struct.pack("<I", 3) + b"\xc1\xc1\xc1")
            return
        if self.script == "huge":
            self.connection.sendall(struct.pack("<I", FRAME_LIMIT_BYTES + 1))
            return
        for offset, token in enumerate(frame.prompt):
            skip = 1 if self.script == "gap" and offset == 1 else 0
            delta = Delta(
                sequence_id=number, index=index + offset + skip, tokens=(token,), text=chr(token)
            )
            self.send(Step(deltas=(delta,)))
        if frame.predict_limit >= 0:
            self.finish(number, index + len(frame.prompt), "stop")

    def finish(self, number: int, index: int, reason: FinishReason) -> None:
        delta = Delta(
            sequence_id=number, index=index, tokens=(), text="", finish=reason,
            summary=Summary(0, 1, 2, 3, 4, 5),
        )  # fmt: skip
        self.send(Step(deltas=(delta,)))

    def answer(self, frame: object) -> None:
        match frame:
            case LoadModel():
                self.load(frame)
            case Tokenize() if self.script != "hang":
                self.send(Tokens(frame.call_id, tuple(frame.text.encode())))
            case Detokenize():
                self.send(Text(frame.call_id, bytes(frame.tokens).decode()))
            case Embed() if frame.inputs[0][0] == 255:
                self.send(CallRejected(frame.call_id, "no vector for 255"))
            case Embed():
                row = [float(len(tokens)) for tokens in frame.inputs for _ in range(4)]
                self.send(Vectors(frame.call_id, 4, struct.pack(f"<{len(row)}f", *row)))
            case Generate():
                self.generate(frame)
            case Cancel():
                print(f"cancelled {frame.sequence_id}", flush=True)
                self.finish(frame.sequence_id, 0, "cancelled")
            case SetThreads():
                self.send(Statistics(0, 0, 0, 0, frame.threads, 0, 0, 0, 0, 0, 0, 0, 0.0, 0))
            case Shutdown() if self.script != "stubborn":
                os._exit(0)
            case _:
                pass


def main() -> None:
    if sys.platform == "linux" and "--without-parent-signal" not in sys.argv:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    print("environment", {k: v for k, v in os.environ.items() if "OMP" in k or "GGML" in k})
    child = Child(socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1])))
    while True:
        child.answer(to_runner_decoder.decode(child.read()))


if __name__ == "__main__":
    main()
