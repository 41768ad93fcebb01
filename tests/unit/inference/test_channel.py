"""The agent's end of the socket, against a peer in the same process and real children."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from agent.inference.channel import RunnerChannel
from agent.inference.errors import ClientTooSlow, LoadStalled, RunnerDied, RunnerRefused
from agent.inference.protocol import (
    LENGTH,
    Cancel,
    Delta,
    Embed,
    Generate,
    Loaded,
    LoadModel,
    LoadProgress,
    Sampling,
    SetThreads,
    Statistics,
    Step,
    Tokenize,
    Tokens,
    encode_frame,
    to_runner_decoder,
)

from .pool_support import facts_for
from .test_supervisor import started

SAMPLING = Sampling(seed=1)
START = Generate(0, (1, 2), SAMPLING, 8)
LOAD = LoadModel(build_id="", model_path="/m", batch=8)


class Peer:
    def __init__(self, connection: trio.SocketStream) -> None:
        self.connection = connection
        self.buffer = b""

    async def send(self, *frames) -> None:
        await self.connection.send_all(b"".join(encode_frame(frame) for frame in frames))

    async def read(self):
        while True:
            if len(self.buffer) >= LENGTH.size:
                (size,) = LENGTH.unpack_from(self.buffer)
                end = LENGTH.size + size
                if len(self.buffer) >= end:
                    frame = to_runner_decoder.decode(self.buffer[LENGTH.size : end])
                    self.buffer = self.buffer[end:]
                    return frame
            part = await self.connection.receive_some()
            assert part, "the channel closed"
            self.buffer += bytes(part)


@asynccontextmanager
async def pair(*, loaded=True, **kwargs):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    channel = RunnerChannel(trio.socket.from_stdlib_socket(ours), "r", **kwargs)
    theirs.setblocking(False)
    peer = Peer(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.serve)
        if loaded:
            nursery.start_soon(peer.send, Loaded(facts_for(LOAD)))
            await channel.load(LOAD, model="m", stall_timeout_s=5)
            await peer.read()
        yield channel, peer
        await peer.connection.aclose()
        nursery.cancel_scope.cancel()


def delta(sequence_id, index, *tokens, text="", **kwargs):
    return Delta(sequence_id, index, tokens, text or "".join(map(chr, tokens)), **kwargs)


async def test_deltas_arrive_in_order_and_iteration_ends_after_the_last():
    async with pair() as (channel, peer), channel.generate(START) as stream:
        sent = await peer.read()
        assert sent.sequence_id == 1
        await peer.send(Step((delta(1, 0, 65),)))
        assert (await anext(stream)).text == "A"
        await peer.send(Step((delta(1, 1, 66, finish="stop"),)))
        last = await anext(stream)
        assert (last.text, last.index, last.finish) == ("B", 1, "stop")
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_unread_deltas_are_merged_into_one():
    async with pair() as (channel, peer), channel.generate(START) as stream:
        for index in range(5):
            await peer.send(Step((delta(1, index, 97 + index),)))
        await peer.send(Step((delta(1, 5, finish="length", text="!", reason="limit"),)))
        await trio.testing.wait_all_tasks_blocked()
        merged = await anext(stream)
        assert merged == Delta(
            1, 0, (97, 98, 99, 100, 101), "abcde!", finish="length", reason="limit"
        )


async def test_a_continued_answer_starts_at_its_own_index():
    start = Generate(0, (1,), SAMPLING, 8, emitted=(9, 9, 9))
    async with pair() as (channel, peer), channel.generate(start) as stream:
        await peer.send(Step((delta(1, 3, 65),)))
        assert (await anext(stream)).index == 3


@pytest.mark.parametrize("index", [0, 2])
async def test_a_gap_or_a_repeat_ends_the_channel(index):
    async with pair() as (channel, peer), channel.generate(START) as stream:
        await peer.send(Step((delta(1, 0, 65),)), Step((delta(1, index, 66),)))
        assert (await anext(stream)).text == "A"
        with pytest.raises(RunnerDied, match="jumped from token 1"):
            await anext(stream)


async def test_leaving_the_context_cancels_the_sequence():
    async with pair() as (channel, peer):
        async with channel.generate(START):
            await peer.read()
        assert await peer.read() == Cancel(1)
        # What was under way is no error.
        await peer.send(Step((delta(1, 0, 65, finish="cancelled"),)))
        await trio.testing.wait_all_tasks_blocked()
        assert not channel.ended


async def test_a_finished_sequence_is_not_cancelled():
    async with pair() as (channel, peer):
        async with channel.generate(START) as stream:
            await peer.read()
            await peer.send(Step((delta(1, 0, 65, finish="stop"),)))
            await anext(stream)
        channel.set_threads(2)
        assert await peer.read() == SetThreads(2)


async def test_leaving_by_cancellation_cancels_the_sequence_too():
    async with pair() as (channel, peer):
        with trio.CancelScope() as scope:
            async with channel.generate(START) as stream:
                await peer.read()
                scope.cancel()
                await anext(stream)
        assert await peer.read() == Cancel(1)


async def test_a_reader_that_stays_away_gets_client_too_slow_and_frees_the_slot():
    async with pair(stream_limit_bytes=1000) as (channel, peer):
        async with channel.generate(START) as stream:
            await peer.read()
            for index in range(100):
                await peer.send(Step((delta(1, index, 65, text="x" * 50),)))
            assert await peer.read() == Cancel(1)
            with pytest.raises(ClientTooSlow):
                await anext(stream)
        assert not channel.ended


async def test_one_slow_reader_delays_no_other():
    async with (
        pair() as (channel, peer),
        channel.generate(START),
        channel.generate(START) as quick,
    ):
        for index in range(50):
            await peer.send(Step((delta(1, index, 65), delta(2, index, 66))))
            assert (await anext(quick)).tokens == (66,)


async def test_a_frame_for_a_sequence_never_started_ends_the_channel():
    async with pair() as (channel, peer):
        await peer.send(Step((delta(7, 0, 65),)))
        assert await channel.wait_ended() == "sequence 7 was never started"


async def test_calls_are_answered_by_number_in_any_order():
    async with pair() as (channel, peer), trio.open_nursery() as nursery:
        results = {}

        async def ask(text):
            results[text] = await channel.tokenize(text)

        nursery.start_soon(ask, "a")
        nursery.start_soon(ask, "b")
        calls = [await peer.read(), await peer.read()]
        for call in reversed(calls):
            assert isinstance(call, Tokenize)
            await peer.send(Tokens(call.call_id, tuple(call.text.encode())))
        await trio.testing.wait_all_tasks_blocked()
        assert results == {"a": (97,), "b": (98,)}


async def test_a_call_without_an_answer_ends_at_its_deadline(autojump_clock):
    async with pair() as (channel, _):
        with pytest.raises(RunnerRefused, match="60 s"):
            await channel.tokenize("x")


async def test_an_input_longer_than_the_batch_never_reaches_the_runner():
    async with pair() as (channel, _):
        with pytest.raises(RunnerRefused, match="input 1 has 9 tokens; this model takes 8"):
            await channel.embed([(1,), (1,) * 9])
        with pytest.raises(RunnerRefused, match="input 0 has no tokens"):
            await channel.embed([()])


async def test_cancelling_an_embedding_stops_before_the_next_pass():
    async with pair() as (channel, peer):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.embed, [(1,) * 8, (2,) * 8])
                first = await peer.read()
                assert isinstance(first, Embed)
                assert first.inputs == ((1,) * 8,)
                scope.cancel()
        channel.set_threads(1)
        assert await peer.read() == SetThreads(1)


async def test_load_progress_restarts_the_stall_clock(autojump_clock):
    async with pair(loaded=False) as (channel, peer), trio.open_nursery() as nursery:

        async def slow():
            for step in range(5):
                await trio.sleep(9)
                await peer.send(LoadProgress("reading weights", step / 5))

        nursery.start_soon(slow)
        with pytest.raises(LoadStalled):
            await channel.load(LOAD, model="m", stall_timeout_s=10)
        assert trio.current_time() == pytest.approx(55, abs=1)


async def test_repeating_the_same_progress_is_no_progress(autojump_clock):
    async with pair(loaded=False) as (channel, peer), trio.open_nursery() as nursery:

        async def stuck():
            while True:
                await peer.send(LoadProgress("reading weights", 0.5))
                await trio.sleep(1)

        nursery.start_soon(stuck)
        with pytest.raises(LoadStalled):
            await channel.load(LOAD, model="m", stall_timeout_s=10)
        nursery.cancel_scope.cancel()


async def test_a_full_outbox_lets_senders_go_when_the_runner_dies():
    async with pair() as (channel, peer), trio.open_nursery() as nursery:
        died = []

        async def ask():
            try:
                await channel.tokenize("x" * 10_000)
            except RunnerDied:
                died.append(1)

        for _ in range(1200):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await peer.connection.aclose()
        await channel.wait_ended()
        await trio.testing.wait_all_tasks_blocked()
        assert len(died) == 1200


async def test_a_channel_closed_by_another_task_ends_without_an_error():
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        channel = RunnerChannel(trio.socket.from_stdlib_socket(ours), "r")
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.serve)
                await trio.testing.wait_all_tasks_blocked()
                channel.close("the runner was stopped")
            assert await channel.wait_ended() == "the runner was stopped"


async def test_statistics_are_kept_and_told():
    seen = []
    async with pair(on_statistics=seen.append) as (channel, peer):
        figures = Statistics(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13.0, 14)
        await peer.send(figures)
        await trio.testing.wait_all_tasks_blocked()
        assert channel.statistics == figures
        assert seen == [figures]


@pytest.mark.parametrize(
    ("script", "words"), [("garbage", "no frame"), ("huge", "67108865 bytes"), ("gap", "jumped")]
)
async def test_a_process_that_breaks_the_protocol_counts_as_dead(tmp_path, script, words):
    async with started(tmp_path, script=script) as process:
        async with process.runner.generate(Generate(0, (65, 66), SAMPLING, 8)) as stream:
            with pytest.raises(RunnerDied, match=words):
                async for _ in stream:
                    pass
        with pytest.raises(RunnerDied):
            await process.runner.tokenize("x")


async def test_vectors_come_back_in_input_order_over_several_passes(tmp_path):
    async with started(tmp_path) as process:
        vectors = await process.runner.embed([(1,) * n for n in (3, 4, 8, 1, 1)])
        assert [vector[0] for vector in vectors] == [3.0, 4.0, 8.0, 1.0, 1.0]
        assert {len(vector) for vector in vectors} == {4}
        with pytest.raises(RunnerRefused, match="255"):
            await process.runner.embed([(255,)])
