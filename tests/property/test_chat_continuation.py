"""Bookkeeping of answers and prompts: what a continued or shortened one must keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.inference.continuation import (
    IDENTICAL_TOKENS_LIMIT,
    AnswerLedger,
    SequenceBroken,
    Stopwatch,
)
from agent.inference.errors import PromptTooLong
from agent.inference.prompt_fitting import DropSearch, cut_middle
from agent.inference.protocol import Delta

CHUNKS = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=4), st.text(max_size=4)), max_size=20
)


def deltas(chunks: list[tuple[list[int], str]]) -> list[Delta]:
    result: list[Delta] = []
    index = 0
    for tokens, text in chunks:
        result.append(Delta(sequence_id=0, index=index, tokens=tuple(tokens), text=text))
        index += len(tokens)
    return result


@given(CHUNKS)
def test_the_ledger_holds_exactly_what_was_delivered(chunks: list[tuple[list[int], str]]) -> None:
    ledger = AnswerLedger()
    for delta in deltas(chunks):
        ledger.accept(delta)
    assert ledger.tokens == [token for tokens, _ in chunks for token in tokens]
    assert ledger.characters == sum(len(text) for _, text in chunks)


@given(CHUNKS, st.integers(1, 5), st.booleans())
def test_a_gap_or_repeat_is_refused_and_changes_nothing(
    chunks: list[tuple[list[int], str]], distance: int, ahead: bool
) -> None:
    ledger = AnswerLedger()
    for delta in deltas(chunks):
        ledger.accept(delta)
    index = len(ledger.tokens) + (distance if ahead else -distance)
    before = (list(ledger.tokens), ledger.characters)
    with pytest.raises(SequenceBroken):
        ledger.accept(Delta(sequence_id=0, index=index, tokens=(1,), text="x"))
    assert (ledger.tokens, ledger.characters) == before


@given(st.lists(st.integers(0, 1), max_size=120), st.integers(1, 7))
def test_stuck_means_more_than_the_limit_of_equal_tokens_in_a_row(
    tokens: list[int], chunk: int
) -> None:
    ledger = AnswerLedger()
    for start in range(0, len(tokens), chunk):
        part = tuple(tokens[start : start + chunk])
        ledger.accept(Delta(sequence_id=0, index=start, tokens=part, text=""))
        if ledger.stuck:
            break
    seen = "".join(map(str, ledger.tokens))
    run = IDENTICAL_TOKENS_LIMIT + 1
    assert ledger.stuck == ("0" * run in seen or "1" * run in seen)


@given(st.lists(st.lists(st.integers(0, 1000), max_size=5), min_size=1, max_size=4))
def test_observed_times_never_exceed_the_time_that_passed(attempts: list[list[int]]) -> None:
    watch = Stopwatch()
    now = 0
    for waits in attempts:
        watch.start(now)
        for wait in waits:
            now += wait
            watch.observe(now)
        watch.stop_observed(now)
        watch.stop_observed(now)
    assert watch.prompt_ns + watch.eval_ns == now


@given(st.integers(0, 200), st.integers(2, 100), st.integers(-1, 120))
def test_cutting_the_middle_keeps_head_and_tail_and_fits(
    length: int, context: int, keep: int
) -> None:
    tokens = tuple(range(length))
    cut = cut_middle(tokens, context=context, keep=keep)
    if length <= context - 1:
        assert cut == tokens
        return
    assert len(cut) <= context - 1
    head = min(context - 2 if keep < 0 else keep, context - 2)
    assert cut[:head] == tokens[:head]
    tail = cut[head:]
    assert tail
    assert tail == tokens[length - len(tail) :]
    assert len(cut) == context - max((context - head) // 2, 1)


def test_a_context_that_holds_nothing_refuses() -> None:
    with pytest.raises(PromptTooLong):
        cut_middle((1, 2, 3), context=1, keep=0)


@given(
    st.lists(st.integers(0, 50), max_size=60).map(lambda sizes: sizes * 9),
    st.integers(0, 100),
    st.integers(0, 13_000),
    st.floats(0.1, 3),
)
def test_the_search_finds_the_fewest_messages_to_drop(
    sizes: list[int], fixed: int, limit: int, density: float
) -> None:
    def count(dropped: int) -> int:
        # Tokens need not follow characters evenly, only never grow with a dropped message.
        return fixed + sum(int(size * density) for size in sizes[dropped:])

    search = DropSearch(sizes, limit=limit)
    tries = 0
    while (dropped := search.next_try()) is not None:
        search.record(dropped, count(dropped))
        tries += 1
        assert tries <= 2 + 2 * len(sizes).bit_length()
    fitting = [dropped for dropped in range(len(sizes) + 1) if count(dropped) <= limit]
    assert search.best == (fitting[0] if fitting else len(sizes))
