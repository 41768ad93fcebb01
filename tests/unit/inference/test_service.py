"""The inference service against scripted runners."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
import trio.testing

from agent.inference.chat.errors import TemplateError
from agent.inference.chat.jinja_template import compile_jinja
from agent.inference.errors import (
    InvalidFormat,
    InvalidOption,
    InvalidRequest,
    NotAvailable,
    PromptTooLong,
    QueueFull,
    RunnerDied,
    RunnerRefused,
    UnsupportedCapability,
)
from agent.inference.prompt_fitting import PROMPT_TOO_LONG
from agent.inference.protocol import Delta, LogprobRow, Summary
from agent.inference.request import (
    ChatPrompt,
    Finished,
    GenerateEvent,
    GenerateRequest,
    JsonFormat,
    KeepAlive,
    Message,
    OutputFormat,
    RequestId,
    TextDelta,
    TextPrompt,
)
from agent.inference.service import LocalInference
from agent.models.errors import ModelNotFound
from agent.telemetry.metrics import Metrics
from tests.unit.inference.scripted_runner import (
    BOS,
    FACTS,
    MODEL,
    PLAIN_JINJA,
    Die,
    Models,
    Pause,
    Script,
    ScriptedRunner,
    ScriptedSource,
    letters,
    text_of,
)

SUMMARY = Summary(
    cached_tokens=3, prompt_tokens=99, completion_tokens=99, wait_ns=1, prompt_ns=20, eval_ns=30
)


def service(
    *runners: ScriptedRunner,
    models: Models | None = None,
    grammar: Any = lambda _format: 'root ::= "{}"',
    **source: Any,
) -> tuple[LocalInference, ScriptedSource, Metrics]:
    pool = ScriptedSource(list(runners), **source)
    metrics = Metrics()
    inference = LocalInference(
        models=models or Models(),
        runners=pool,
        metrics=metrics,
        rng=random.Random(5),
        wall_clock=lambda: datetime(2026, 3, 1, tzinfo=UTC),
        grammar=grammar,
    )
    return inference, pool, metrics


def chat(*messages: Message, **changes: Any) -> GenerateRequest:
    prompt = ChatPrompt(messages=messages or (Message(role="user", content="hi"),))
    return GenerateRequest(request_id=RequestId("r"), model="scripted", prompt=prompt, **changes)


def text(prompt: TextPrompt, **changes: Any) -> GenerateRequest:
    return GenerateRequest(request_id=RequestId("r"), model="scripted", prompt=prompt, **changes)


def answer(words: str, finish: Any = "stop", start: int = 0) -> Script:
    """One delta per character, the last one with the summary."""
    deltas = [
        Delta(sequence_id=0, index=start + position, tokens=letters(letter), text=letter)
        for position, letter in enumerate(words)
    ]
    end = Delta(
        sequence_id=0,
        index=start + len(words),
        tokens=(),
        text="",
        finish=finish,
        summary=SUMMARY,
    )
    return [*deltas, end]


async def collect(inference: LocalInference, request: GenerateRequest) -> list[GenerateEvent]:
    async with inference.generate(request) as events:
        return [event async for event in events]


def joined(events: Sequence[GenerateEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def last(events: Sequence[GenerateEvent]) -> Finished:
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(event, Finished) for event in events) == 1
    return events[-1]


async def test_an_answer_streams_and_ends_with_its_figures() -> None:
    runner = ScriptedRunner([answer("yes")])
    inference, pool, metrics = service(runner)
    events = await collect(inference, chat())
    assert joined(events) == "yes"
    prompt = (BOS, *letters("user:hi\nassistant:"))
    end = last(events)
    assert end.reason == "stop"
    assert end.prompt_tokens == len(prompt)
    assert end.cached_tokens == 3
    assert end.completion_tokens == 3
    assert (end.load_ns, end.prompt_ns, end.eval_ns) == (7, 20, 30)
    assert end.context == (*prompt, *letters("yes"))
    assert pool.held == 0
    assert runner.open_sequences == 0
    value = metrics.registry.get_sample_value
    ended = {"model": "scripted:latest", "outcome": "stop"}
    assert value("llamesh_requests_finished_total", ended) == 1
    assert value("llamesh_prompt_tokens_total", {"model": "scripted:latest"}) == len(prompt)
    assert value("llamesh_completion_tokens_total", {"model": "scripted:latest"}) == 3
    assert value("llamesh_prompt_tokens_cached_total", {"model": "scripted:latest"}) == 3
    assert value("llamesh_first_token_seconds_count", {"model": "scripted:latest"}) == 1
    assert value("llamesh_requests_active") == 0


async def test_options_go_from_defaults_over_the_model_to_the_request() -> None:
    model = replace(MODEL, parameters={"temperature": 0.1, "top_k": 7, "stop": ["x"]})
    runner = ScriptedRunner([answer("a")])
    inference, pool, _ = service(runner, models=Models({"scripted": model}), context_length=100)
    options = {"top_k": 9, "num_predict": 5, "seed": 42, "repeat_last_n": -1}
    await collect(inference, chat(options=options, keep_alive=KeepAlive(3.0)))
    sent = runner.started[0]
    assert sent.sampling.temperature == 0.1
    assert sent.sampling.top_k == 9
    assert sent.sampling.top_p == 0.9
    assert sent.sampling.seed == 42
    assert sent.sampling.repeat_last_n == 100
    assert sent.stop == ("x",)
    assert sent.predict_limit == 5
    assert sent.context_limit == 100
    assert sent.keep == 5, "num_keep and the marker in front"
    assert sent.logprobs == -1
    assert pool.leases[0][2:] == (KeepAlive(3.0), False)


@pytest.mark.parametrize(("asked", "sent"), [(-1, 640), (-2, 640), (10_000, 640), (639, 639)])
async def test_the_answer_length_never_exceeds_ten_contexts(asked: int, sent: int) -> None:
    runner = ScriptedRunner([answer("a")])
    inference, _, _ = service(runner, context_length=64)
    await collect(inference, chat(options={"num_predict": asked}))
    assert runner.started[0].predict_limit == sent


async def test_a_seed_is_drawn_once_per_request_and_reproducibly() -> None:
    seeds: list[list[int]] = []
    for _ in range(2):
        runner = ScriptedRunner([answer("a"), answer("b")])
        inference, _, _ = service(runner)
        await collect(inference, chat())
        await collect(inference, chat())
        seeds.append([start.sampling.seed for start in runner.started])
    assert seeds[0] == seeds[1]
    assert seeds[0][0] != seeds[0][1]


async def test_a_death_in_mid_stream_is_continued_without_gap_or_repeat() -> None:
    words = answer("hello")
    first = ScriptedRunner([[*words[:2], Die()]])
    second = ScriptedRunner([answer("llo", start=2)])
    inference, pool, _ = service(first, second)
    events = await collect(inference, chat())
    assert joined(events) == "hello"
    assert last(events).completion_tokens == 5
    assert last(events).load_ns == 14
    again = second.started[0]
    assert again.emitted == letters("he")
    assert again.emitted_characters == 2
    assert again.prompt == first.started[0].prompt
    assert again.sampling == first.started[0].sampling
    assert second.tokenized == []
    assert pool.most_held == 1, "the dead runner is given back before another one is asked for"
    assert pool.held == 0


async def test_a_continuation_nests_well_in_scopes_the_reader_opened_meanwhile() -> None:
    first = ScriptedRunner([[*answer("ab")[:1], Die()]])
    second = ScriptedRunner([answer("b", start=1)])
    inference, _, _ = service(first, second)
    async with inference.generate(chat()) as events:
        assert isinstance(await events.__anext__(), TextDelta)
        with trio.fail_after(5):
            assert await events.__anext__() == TextDelta("b", letters("b"))
        assert isinstance(await events.__anext__(), Finished)


async def test_times_of_a_dead_runner_are_those_observed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    words = answer("abc")
    first = ScriptedRunner([[Pause(2), words[0], Pause(1), words[1], Pause(4), Die()]])
    second = ScriptedRunner([answer("c", start=2)])
    inference, _, _ = service(first, second)
    end = last(await collect(inference, chat()))
    assert end.prompt_ns == pytest.approx(2e9 + 20, abs=1000)
    assert end.eval_ns == pytest.approx(1e9 + 30, abs=1000)
    assert end.total_ns == pytest.approx(7e9, abs=1000)


async def test_a_request_that_ends_two_runners_fails() -> None:
    first = ScriptedRunner([[*answer("ab")[:1], Die()]])
    second = ScriptedRunner([[Die()], answer("never")])
    inference, pool, metrics = service(first, second)
    async with inference.generate(chat()) as events:
        assert await events.__anext__() == TextDelta("a", letters("a"))
        with pytest.raises(RunnerDied):
            await events.__anext__()
    assert len(second.started) == 1
    assert pool.held == 0
    ended = {"model": "scripted:latest", "outcome": "failed"}
    assert metrics.registry.get_sample_value("llamesh_requests_finished_total", ended) == 1


async def test_a_death_while_the_prompt_is_made_is_tried_again() -> None:
    inference, _, _ = service(ScriptedRunner(dies_on_tokenize=True), ScriptedRunner([answer("k")]))
    assert joined(await collect(inference, chat())) == "k"


async def test_a_gap_in_the_answer_is_never_passed_on() -> None:
    gap = Delta(sequence_id=0, index=2, tokens=letters("x"), text="x")
    first = ScriptedRunner([[*answer("ab")[:1], gap]])
    second = ScriptedRunner([answer("b", start=1)])
    inference, _, _ = service(first, second)
    assert joined(await collect(inference, chat())) == "ab"


async def test_leaving_the_stream_cancels_the_sequence() -> None:
    waiting = trio.Event()
    runner = ScriptedRunner([[*answer("ab")[:1], waiting]])
    inference, pool, metrics = service(runner)
    async with inference.generate(chat()) as events:
        assert await events.__anext__() == TextDelta("a", letters("a"))
        await waiting.wait()
        assert runner.open_sequences == 1
    assert runner.open_sequences == 0
    assert pool.held == 0
    ended = {"model": "scripted:latest", "outcome": "cancelled"}
    assert metrics.registry.get_sample_value("llamesh_requests_finished_total", ended) == 1


async def test_a_deadline_around_the_stream_cancels_the_sequence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    runner = ScriptedRunner([[trio.Event()]])
    inference, pool, _ = service(runner)
    with trio.move_on_after(3) as scope:
        await collect(inference, chat())
    assert scope.cancelled_caught
    assert runner.open_sequences == 0
    assert pool.held == 0


async def test_an_error_of_the_reader_passes_through_as_it_is() -> None:
    runner = ScriptedRunner([[trio.Event()]])
    inference, _, _ = service(runner)
    with pytest.raises(ZeroDivisionError):
        async with inference.generate(chat()):
            raise ZeroDivisionError
    assert runner.open_sequences == 0


async def test_a_token_repeated_without_end_ends_the_answer() -> None:
    same = [
        Delta(sequence_id=0, index=position, tokens=letters("z"), text="z")
        for position in range(60)
    ]
    runner = ScriptedRunner([same])
    inference, _, _ = service(runner)
    events = await collect(inference, chat())
    assert joined(events) == "z" * 31
    assert last(events).reason == "stop"
    assert runner.open_sequences == 0


async def test_thirty_equal_tokens_are_allowed() -> None:
    runner = ScriptedRunner([answer("z" * 30 + "y")])
    inference, _, _ = service(runner)
    assert joined(await collect(inference, chat())) == "z" * 30 + "y"


async def test_errors_before_the_first_token_are_raised_on_entering() -> None:
    inference, _, _ = service(ScriptedRunner(), refusal=QueueFull(1, 1, 1.0))
    with pytest.raises(QueueFull):
        async with inference.generate(chat()):
            pytest.fail("the stream was opened")


async def test_a_runner_that_refuses_says_why() -> None:
    bad = Delta(sequence_id=0, index=0, tokens=(), text="", finish="failed", reason="bad grammar")
    inference, _, _ = service(ScriptedRunner([[bad]]))
    with pytest.raises(RunnerRefused, match="bad grammar"):
        await collect(inference, chat())


async def test_text_held_back_by_the_runner_keeps_its_tokens_and_probabilities() -> None:
    row = LogprobRow(chosen=(5, b"\xc3", -0.5), top=((5, b"\xc3", -0.5),))
    half = Delta(sequence_id=0, index=0, tokens=(5,), text="", logprobs=(row,))
    rest = Delta(sequence_id=0, index=1, tokens=(6,), text="é", logprobs=(row,))
    end = Delta(sequence_id=0, index=2, tokens=(7,), text="", finish="length", logprobs=(row,))
    runner = ScriptedRunner([[half, rest, end]])
    inference, _, _ = service(runner)
    events = await collect(inference, chat(logprobs=True, top_logprobs=1))
    first, second, done = events
    assert isinstance(first, TextDelta)
    assert (first.text, first.tokens, len(first.logprobs)) == ("é", (5, 6), 2)
    assert first.logprobs[0].chosen.text == b"\xc3"
    assert isinstance(second, TextDelta)
    assert (second.text, second.tokens, len(second.logprobs)) == ("", (7,), 1)
    assert isinstance(done, Finished)
    assert done.reason == "length"
    assert runner.started[0].logprobs == 1


async def test_a_format_reaches_the_runner_as_a_grammar() -> None:
    runner = ScriptedRunner([answer("a")])
    inference, _, _ = service(runner)
    await collect(inference, chat(format=JsonFormat()))
    assert runner.started[0].grammar == 'root ::= "{}"'


async def test_a_bad_format_or_option_is_refused_before_any_load() -> None:
    def refuse(_format: OutputFormat) -> str:
        raise InvalidFormat("no")

    inference, pool, _ = service(ScriptedRunner(), grammar=refuse)
    with pytest.raises(InvalidFormat):
        await collect(inference, chat(format=JsonFormat()))
    with pytest.raises(InvalidOption):
        await collect(inference, chat(options={"top_k": "many"}))
    with pytest.raises(ModelNotFound):
        await collect(inference, replace(chat(), model="other"))
    assert pool.leases == []


async def test_capabilities_are_checked_with_the_names_ollama_uses() -> None:
    embedder = replace(MODEL, capabilities=frozenset({"embedding"}))
    inference, _, _ = service(ScriptedRunner(), models=Models({"scripted": embedder}))
    with pytest.raises(UnsupportedCapability, match='"scripted" does not support chat'):
        await collect(inference, chat())
    with pytest.raises(UnsupportedCapability, match='"scripted" does not support generate'):
        await collect(inference, text(TextPrompt(text="a")))
    inference, _, _ = service(ScriptedRunner())
    with pytest.raises(UnsupportedCapability) as caught:
        await collect(inference, text(TextPrompt(text="a", suffix="b")))
    assert caught.value.model == "registry.ollama.ai/library/scripted:latest"
    assert caught.value.capability == "insert"


async def test_images_are_refused_by_capability_and_then_as_not_available() -> None:
    message = Message(role="user", images=(b"x",))
    inference, _, _ = service(ScriptedRunner())
    with pytest.raises(UnsupportedCapability, match="vision"):
        await collect(inference, chat(message))
    seeing = replace(MODEL, capabilities=frozenset({"completion", "vision"}))
    inference, _, _ = service(ScriptedRunner(), models=Models({"scripted": seeing}))
    with pytest.raises(NotAvailable):
        await collect(inference, chat(message))


# -- prompts that do not fit --


async def test_the_oldest_messages_are_dropped_and_system_and_last_stay() -> None:
    runner = ScriptedRunner([answer("a")])
    inference, _, _ = service(runner, context_length=69)
    messages = [Message(role="system", content="S")]
    messages += [Message(role="user", content=f"{number:010d}") for number in range(10)]
    await collect(inference, chat(*messages))
    prompt = text_of(runner.started[0].prompt)
    assert prompt.startswith("<s>system:S\n")
    assert "0000000009" in prompt
    assert "0000000007" in prompt, "no more is dropped than must be"
    assert "0000000006" not in prompt
    assert len(runner.started[0].prompt) == 68


async def test_few_token_counts_are_needed_for_a_long_conversation() -> None:
    runner = ScriptedRunner([answer("a")])
    inference, _, _ = service(runner, context_length=512)
    messages = [Message(role="user", content="word " * (3 + number % 5)) for number in range(500)]
    await collect(inference, chat(*messages))
    assert len(runner.tokenized) <= 6


async def test_without_truncation_the_middle_is_cut() -> None:
    runner = ScriptedRunner([answer("a")])
    inference, _, _ = service(runner, context_length=40)
    messages = [Message(role="user", content=f"{number:010d}") for number in range(10)]
    await collect(inference, chat(*messages, truncate=False))
    prompt = text_of(runner.started[0].prompt)
    # num_keep 4 and the marker in front; 40 - (40 - 5) // 2 tokens in all.
    assert prompt.startswith("<s>user")
    assert prompt.endswith("9\nassistant:")
    assert len(runner.started[0].prompt) == 23


async def test_without_shift_a_long_prompt_is_refused_with_ollamas_words() -> None:
    inference, pool, _ = service(ScriptedRunner(), context_length=40)
    with pytest.raises(PromptTooLong) as caught:
        async with inference.generate(chat(Message(role="user", content="x" * 80), shift=False)):
            pytest.fail("the stream was opened")
    assert str(caught.value) == PROMPT_TOO_LONG
    assert pool.held == 0


async def test_shift_is_not_asked_of_a_model_that_cannot() -> None:
    runner = ScriptedRunner([answer("a"), answer("b")], facts=FACTS)
    inference, _, _ = service(runner)
    await collect(inference, chat())
    await collect(inference, chat(shift=False))
    assert [start.shift for start in runner.started] == [True, False]


# -- single prompts --


async def test_a_raw_prompt_is_sent_as_it_is_with_one_marker() -> None:
    runner = ScriptedRunner([answer("a"), answer("a")])
    inference, _, _ = service(runner)
    await collect(inference, text(TextPrompt(text="raw", raw=True)))
    await collect(inference, text(TextPrompt(text="<s>raw", raw=True)))
    assert text_of(runner.started[0].prompt) == "<s>raw"
    assert text_of(runner.started[1].prompt) == "<s>raw"


async def test_a_returned_context_continues_the_conversation() -> None:
    model = replace(MODEL, messages=(Message(role="user", content="seed"),))
    runner = ScriptedRunner([answer("one"), answer("two")])
    inference, _, _ = service(runner, models=Models({"scripted": model}))
    first = last(await collect(inference, text(TextPrompt(text="a"))))
    assert text_of(first.context) == "<s>user:seed\nuser:a\nassistant:one"
    again = TextPrompt(text="b", context=first.context)
    second = last(await collect(inference, text(again)))
    assert text_of(second.context) == text_of(first.context) + "user:b\nassistant:two"
    assert await inference.render(text(again)) == text_of(first.context) + "user:b\nassistant:"


async def test_a_context_with_unknown_tokens_is_refused() -> None:
    inference, _, _ = service(ScriptedRunner())
    with pytest.raises(InvalidRequest, match="context"):
        await collect(inference, text(TextPrompt(text="b", context=(-1,))))


async def test_an_empty_raw_prompt_is_refused() -> None:
    facts = ScriptedRunner().facts
    runner = ScriptedRunner(facts=_without_bos(facts))
    inference, _, _ = service(runner)
    with pytest.raises(InvalidRequest, match="empty"):
        await collect(inference, text(TextPrompt(text="", raw=True)))


def _without_bos(facts: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(facts, add_bos=False)


async def test_a_requested_template_is_used_and_a_bad_one_refused() -> None:
    inference, _, _ = service(ScriptedRunner())
    good = text(TextPrompt(text="a", template="[{{ .Prompt }}]{{ .Response }}"))
    assert await inference.render(good) == "[a]"
    with pytest.raises(TemplateError):
        await inference.render(text(TextPrompt(text="a", template="{{ if }}")))


async def test_a_long_template_is_compiled_beside_the_event_loop_and_once() -> None:
    source = PLAIN_JINJA + "{# " + "x" * 5000 + " #}"
    model = replace(MODEL, header=replace(MODEL.header, chat_template=source))
    inference, _, _ = service(ScriptedRunner(), models=Models({"scripted": model}))
    threads = trio.to_thread.current_default_thread_limiter()
    compile_jinja.cache_clear()
    with trio.testing.assert_checkpoints():
        assert await inference.render(chat()) == "user:hi\nassistant:"
    assert await inference.render(chat()) == "user:hi\nassistant:"
    assert compile_jinja.cache_info().misses == 1
    assert threads.borrowed_tokens == 0


async def test_load_unload_and_running_reach_the_runners() -> None:
    inference, pool, _ = service(ScriptedRunner())
    assert await inference.load("scripted", {"num_ctx": 8}, KeepAlive(None)) == 7
    assert pool.leases[0][1].num_ctx == 8
    assert pool.leases[0][2:] == (KeepAlive(None), False)
    await inference.unload("scripted")
    assert pool.stopped == [MODEL]
    assert inference.running() == ()


async def test_the_last_text_and_the_end_come_together() -> None:
    deltas = answer("yes")
    whole = Delta(
        sequence_id=0, index=2, tokens=letters("s"), text="s", finish="length", summary=SUMMARY
    )
    inference, _, _ = service(ScriptedRunner([[*deltas[:2], whole], [*deltas[:2], whole]]))
    async with inference.generate(chat()) as events:
        seen: list[tuple[str, Finished | None]] = []
        async for event in events:
            assert isinstance(event, TextDelta)
            seen.append((event.text, events.end()))
    assert [text for text, _ in seen] == ["y", "e", "s"]
    assert [end is None for _, end in seen] == [True, True, False]
    read_on = await collect(inference, chat())
    assert joined(read_on) == "yes"
    assert last(read_on).reason == "length"
