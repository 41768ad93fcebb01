"""The agent's end of a runner's socket: frames in, frames out, calls and sequences."""

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import structlog
import trio

from agent.inference.errors import LoadFailed, LoadStalled, RunnerDied, RunnerRefused
from agent.inference.protocol import (
    FRAME_LIMIT_BYTES,
    LENGTH,
    CallRejected,
    Cancel,
    Delta,
    Detokenize,
    Embed,
    Frame,
    FromRunner,
    Generate,
    Loaded,
    LoadModel,
    LoadPhase,
    LoadProgress,
    LoadRejected,
    ModelFacts,
    SetThreads,
    Shutdown,
    Statistics,
    Step,
    Text,
    Tokenize,
    Tokens,
    Vectors,
    encode_frame,
    from_runner_decoder,
)
from agent.inference.stream import STREAM_LIMIT_BYTES, SequenceGap, SequenceStream

log = structlog.get_logger()

READ_BYTES: Final = 256 * 1024
CLOSED: Final = "the agent closed its channel"
OUTBOX_LIMIT_FRAMES: Final = 1024
"""Frames waiting for the socket before senders wait."""
TOKENIZE_TIMEOUT_S: Final = 60.0
EMBED_TIMEOUT_S: Final = 600.0
"""Per pass: a long input on a slow CPU takes minutes."""
EMBED_PASS_INPUTS: Final = 64

_Answer = Tokens | Text | Vectors | CallRejected


class _Call:
    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: _Answer | None = None


class _Outbox:
    """Encoded frames on their way out. Everything that is ready leaves in one write."""

    def __init__(self, limit_frames: int) -> None:
        self._frames: deque[bytes] = deque()
        self._limit_frames = limit_frames
        self._news = trio.Event()
        self._room = trio.Event()
        self._closed = False

    def close(self) -> None:
        """Nothing is taken any more: let waiting senders go."""
        self._closed = True
        self._frames.clear()
        self._room.set()

    def post(self, frame: bytes) -> None:
        """Append without waiting, for short frames sent while cleaning up; their number is
        bounded by the number of open sequences."""
        self._frames.append(frame)
        self._news.set()

    async def put(self, frame: bytes) -> None:
        while len(self._frames) >= self._limit_frames and not self._closed:
            await self._room.wait()
        self.post(frame)

    async def take(self) -> bytes:
        while not self._frames:
            self._news = trio.Event()
            await self._news.wait()
        joined = self._frames[0] if len(self._frames) == 1 else b"".join(self._frames)
        self._frames.clear()
        # Every sender that waits now holds this one event.
        self._room.set()
        self._room = trio.Event()
        return joined


class RunnerChannel:
    """Speaks ``agent.inference.protocol`` over a connected socket; implements ``Runner``.

    ``serve`` must run for anything to move. When it ends, for whatever reason, every waiter of
    this channel gets RunnerDied. Methods are called from one trio thread only.
    """

    def __init__(
        self,
        socket: trio.socket.SocketType,
        runner_id: str,
        *,
        on_statistics: Callable[[Statistics], None] | None = None,
        stream_limit_bytes: int = STREAM_LIMIT_BYTES,
    ) -> None:
        self._socket = socket
        self._runner_id = runner_id
        self._on_statistics = on_statistics
        self._stream_limit_bytes = stream_limit_bytes
        self._outbox = _Outbox(OUTBOX_LIMIT_FRAMES)
        self._calls: dict[int, _Call] = {}
        self._streams: dict[int, SequenceStream] = {}
        self._next_call = 1
        self._next_sequence = 1
        self._facts: ModelFacts | None = None
        self._death: str | None = None
        self._ended = trio.Event()
        self._load_news = trio.Event()
        self._load_progress = LoadProgress(phase="starting", fraction=0.0)
        self._load_end: Loaded | LoadRejected | None = None
        self.statistics: Statistics | None = None

    # -- life ----------------------------------------------------------------------------

    async def serve(self) -> None:
        """Move frames until the socket ends or speaks garbage; returns, never raises for it.
        Cancellation ends the channel as a death does."""
        reason = CLOSED
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                reason = await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.close(reason)

    def close(self, reason: str) -> None:
        """``fail`` and let go of the socket; idempotent."""
        self.fail(reason)
        self._socket.close()

    def fail(self, reason: str) -> None:
        """Give every waiter RunnerDied; idempotent."""
        if self._death is not None:
            return
        self._death = reason
        for call in self._calls.values():
            call.done.set()
        for stream in tuple(self._streams.values()):
            if not stream.finished:
                stream.fail(RunnerDied(reason))
        self._streams.clear()
        self._outbox.close()
        self._load_news.set()
        self._ended.set()

    async def wait_ended(self) -> str:
        """Wait for the end of the channel; returns why."""
        await self._ended.wait()
        return self._death or ""

    @property
    def ended(self) -> bool:
        """Nothing will move any more."""
        return self._death is not None

    # -- loading -------------------------------------------------------------------------

    async def load(
        self,
        frame: LoadModel,
        *,
        model: str,
        stall_timeout_s: float,
        on_progress: Callable[[LoadProgress], None] | None = None,
    ) -> ModelFacts:
        """Send the load and wait for its end.

        Raises LoadFailed for a refusal, LoadStalled when nothing moved for ``stall_timeout_s``
        seconds, RunnerDied when the process ended.
        """
        await self._send(frame)
        while self._load_end is None:
            if self._death is not None:
                raise RunnerDied(self._death)
            if self._load_news.is_set():
                self._load_news = trio.Event()
            before = self._load_progress
            with trio.move_on_after(stall_timeout_s) as waiting:
                while self._load_end is None and self._load_progress == before and not self.ended:
                    await self._load_news.wait()
                    self._load_news = trio.Event()
            if waiting.cancelled_caught:
                raise LoadStalled(model, before.phase, f"no progress for {stall_timeout_s:g} s")
            if on_progress is not None and self._load_progress != before:
                on_progress(self._load_progress)
        if isinstance(self._load_end, LoadRejected):
            raise LoadFailed(model, self._load_end.phase, self._load_end.reason)
        self._facts = self._load_end.facts
        return self._facts

    @property
    def load_phase(self) -> LoadPhase:
        """Where a load in progress is."""
        return self._load_progress.phase

    @property
    def facts(self) -> ModelFacts:
        """What the loaded model knows; only after ``load``."""
        if self._facts is None:
            raise AssertionError("facts are asked only of a loaded runner")
        return self._facts

    # -- calls ---------------------------------------------------------------------------

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> tuple[int, ...]:
        """Raises RunnerRefused or RunnerDied."""
        answer = await self._call(
            lambda call_id: Tokenize(call_id, text, add_special, parse_special),
            TOKENIZE_TIMEOUT_S,
        )
        if not isinstance(answer, Tokens):
            raise RunnerRefused("the runner answered a tokenize call with another frame")
        return answer.tokens

    async def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Raises RunnerRefused or RunnerDied."""
        answer = await self._call(
            lambda call_id: Detokenize(call_id, tuple(tokens), special), TOKENIZE_TIMEOUT_S
        )
        if not isinstance(answer, Text):
            raise RunnerRefused("the runner answered a detokenize call with another frame")
        return answer.text

    async def embed(self, inputs: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
        """One vector per input, in passes of at most one batch so that cancellation stops
        before the next. Raises RunnerRefused or RunnerDied."""
        limit = self.facts.batch
        for number, tokens in enumerate(inputs):
            if not tokens:
                raise RunnerRefused(f"input {number} has no tokens")
            if len(tokens) > limit:
                raise RunnerRefused(
                    f"input {number} has {len(tokens)} tokens; this model takes {limit} at once"
                )
        vectors: list[tuple[float, ...]] = []
        for batch in _passes(inputs, limit):
            answer = await self._call(
                lambda call_id, batch=batch: Embed(call_id, batch), EMBED_TIMEOUT_S
            )
            if not isinstance(answer, Vectors):
                raise RunnerRefused("the runner answered an embed call with another frame")
            if len(answer.data) != 4 * answer.dimensions * len(batch):
                raise RunnerRefused("the runner returned another number of vectors")
            vectors.extend(_rows(answer))
        return tuple(vectors)

    async def _call(self, make: Callable[[int], Frame], timeout_s: float) -> _Answer:
        call_id = self._next_call
        self._next_call += 1
        call = self._calls[call_id] = _Call()
        try:
            with trio.move_on_after(timeout_s) as deadline:
                await self._send(make(call_id))
                await call.done.wait()
            if deadline.cancelled_caught:
                raise RunnerRefused(f"the runner did not answer within {timeout_s:g} s")
        finally:
            del self._calls[call_id]
        answer = call.answer
        if answer is None:
            raise RunnerDied(self._death or "the runner ended")
        if isinstance(answer, CallRejected):
            raise RunnerRefused(answer.reason)
        return answer

    # -- sequences -----------------------------------------------------------------------

    @asynccontextmanager
    async def generate(self, start: Generate) -> AsyncGenerator[SequenceStream]:
        """Run one sequence under an id of this channel's own; leaving cancels it unless it has
        finished."""
        sequence_id = self._next_sequence
        self._next_sequence += 1
        stream = SequenceStream(
            sequence_id, len(start.emitted), self._overflowed, self._stream_limit_bytes
        )
        self._streams[sequence_id] = stream
        sent = False
        try:
            await self._send(msgspec.structs.replace(start, sequence_id=sequence_id))
            sent = True
            yield stream
        finally:
            # An overflowed stream is gone already and was cancelled then.
            if self._streams.pop(sequence_id, None) is not None and sent and not stream.finished:
                self.post(Cancel(sequence_id))

    def _overflowed(self, stream: SequenceStream) -> None:
        if self._streams.pop(stream.sequence_id, None) is not None and not stream.finished:
            self.post(Cancel(stream.sequence_id))

    # -- frames without an answer --------------------------------------------------------

    def set_threads(self, threads: int) -> None:
        """CPU threads from the next step on."""
        self.post(SetThreads(threads))

    def shut_down(self) -> None:
        """Ask the process to free everything and exit."""
        self.post(Shutdown())

    def post(self, frame: Frame) -> None:
        """Send a short frame without waiting; dropped when the runner has died."""
        if self._death is None:
            self._outbox.post(encode_frame(frame))

    async def _send(self, frame: Frame) -> None:
        if self._death is not None:
            raise RunnerDied(self._death)
        try:
            encoded = encode_frame(frame)
        except ValueError as error:
            raise RunnerRefused(str(error)) from error
        await self._outbox.put(encoded)
        if self._death is not None:
            raise RunnerDied(self._death)

    # -- socket --------------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            unsent = memoryview(await self._outbox.take())
            while unsent:
                try:
                    sent = await self._socket.send(unsent)
                except (OSError, trio.ClosedResourceError):
                    # The reader sees the end too and says so, after what is still to be read.
                    return
                unsent = unsent[sent:]

    async def _read(self) -> str:
        """Dispatch frames until the end; returns the reason for it."""
        buffer = bytearray()
        while True:
            try:
                data = await self._socket.recv(READ_BYTES)
            except trio.ClosedResourceError:
                return self._death or CLOSED  # ``close`` came from another task
            except OSError as error:
                return f"the runner's socket failed: {error.strerror or error}"
            if not data:
                return "the runner process ended"
            buffer += data
            offset = 0
            while len(buffer) - offset >= LENGTH.size:
                (size,) = LENGTH.unpack_from(buffer, offset)
                if size > FRAME_LIMIT_BYTES:
                    return f"the runner sent a frame of {size} bytes"
                end = offset + LENGTH.size + size
                if len(buffer) < end:
                    break
                try:
                    frame = from_runner_decoder.decode(bytes(buffer[offset + LENGTH.size : end]))
                    self._dispatch(frame)
                except msgspec.MsgspecError as error:
                    return f"the runner sent something that is no frame: {error}"
                except SequenceGap as error:
                    return str(error)
                offset = end
            if offset:
                del buffer[:offset]

    def _dispatch(self, frame: FromRunner) -> None:
        match frame:
            case Step():
                for delta in frame.deltas:
                    self._deliver(delta)
            case Statistics():
                self.statistics = frame
                if self._on_statistics is not None:
                    self._on_statistics(frame)
            case Tokens() | Text() | Vectors() | CallRejected():
                # A call that timed out or was cancelled has left the table.
                call = self._calls.get(frame.call_id)
                if call is not None:
                    call.answer = frame
                    call.done.set()
            case LoadProgress():
                self._load_progress = frame
                self._load_news.set()
            case Loaded() | LoadRejected():
                self._load_end = frame
                self._load_news.set()

    def _deliver(self, delta: Delta) -> None:
        stream = self._streams.get(delta.sequence_id)
        if stream is not None:
            stream.accept(delta)
        elif not 0 < delta.sequence_id < self._next_sequence:
            raise SequenceGap(f"sequence {delta.sequence_id} was never started")


def _passes(
    inputs: Sequence[Sequence[int]], limit_tokens: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Inputs in order, in groups of at most one batch of tokens."""
    passes: list[tuple[tuple[int, ...], ...]] = []
    group: list[tuple[int, ...]] = []
    held = 0
    for tokens in inputs:
        if group and (held + len(tokens) > limit_tokens or len(group) == EMBED_PASS_INPUTS):
            passes.append(tuple(group))
            group, held = [], 0
        group.append(tuple(tokens))
        held += len(tokens)
    if group:
        passes.append(tuple(group))
    return tuple(passes)


def _rows(answer: Vectors) -> list[tuple[float, ...]]:
    values = array("f", answer.data)
    if sys.byteorder == "big":
        values.byteswap()
    width = answer.dimensions
    return [tuple(values[at : at + width]) for at in range(0, len(values), width)]
