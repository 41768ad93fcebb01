"""Text assembly: UTF-8 across tokens, stop strings, continuation."""

from __future__ import annotations

import time

import pytest

from agent.inference.text import TextAssembler


def feed(assembler: TextAssembler, *pieces: bytes) -> list[str]:
    return [assembler.push(piece) for piece in pieces]


def test_ascii_passes_straight_through() -> None:
    assembler = TextAssembler()
    assert feed(assembler, b"Hello", b"", b" world") == ["Hello", "", " world"]
    assert assembler.finish() == ""
    assert not assembler.stopped


def test_a_character_split_over_tokens_is_released_whole() -> None:
    assembler = TextAssembler()
    assert feed(assembler, b"a\xf0", b"\x9f", b"\x98", b"\x80b") == ["a", "", "", "😀b"]
    assert not assembler.holding


def test_ascii_after_an_unfinished_character_shows_the_replacement_first() -> None:
    assembler = TextAssembler()
    assert feed(assembler, b"\xf0\x9f", b"x") == ["", "\ufffdx"]


def test_an_impossible_byte_is_replaced_at_once() -> None:
    assembler = TextAssembler()
    assert feed(assembler, b"\xff", b"\xe2\x28\xa1", b"\xed\xa0x") == [
        "\ufffd",
        "\ufffd(\ufffd",
        "\ufffd\ufffdx",
    ]


def test_an_unfinished_character_becomes_a_replacement_when_generation_ends() -> None:
    assembler = TextAssembler()
    assert assembler.push(b"ok\xe2\x82") == "ok"
    assert assembler.holding
    assert assembler.finish() == "\ufffd"
    assert assembler.finish() == ""


def test_a_stop_string_across_tokens_is_cut_and_never_shown() -> None:
    assembler = TextAssembler(["<|end|>"])
    assert feed(assembler, b"hi <", b"|en", b"d|", b"> more") == ["hi ", "", "", ""]
    assert assembler.stopped
    assert assembler.push(b"more") == ""
    assert assembler.finish() == ""


def test_a_false_beginning_of_a_stop_string_is_released_when_it_fails() -> None:
    assembler = TextAssembler(["<|end|>"])
    assert feed(assembler, b"a<|", b"en", b"x<|") == ["a", "", "<|enx"]
    assert assembler.finish() == "<|"
    assert not assembler.stopped


def test_a_failed_beginning_may_hold_a_later_beginning() -> None:
    assembler = TextAssembler(["aab"])
    assert feed(assembler, b"aa", b"a", b"a", b"b") == ["", "a", "a", ""]
    assert assembler.stopped


def test_the_first_completed_stop_string_counts() -> None:
    assembler = TextAssembler(["abcd", "bc"])
    assert assembler.push(b"xabcd") == "xa"
    assert assembler.stopped


def test_of_stop_strings_completed_together_the_longest_is_cut() -> None:
    assembler = TextAssembler(["c", "abc"])
    assert assembler.push(b"xab") == "x"
    assert assembler.push(b"c") == ""
    assert assembler.stopped


def test_a_stop_string_inside_a_longer_unfinished_one_is_found() -> None:
    assembler = TextAssembler(["abcde", "cd"])
    assert feed(assembler, b"abc", b"d") == ["", "ab"]
    assert assembler.stopped


def test_empty_stop_strings_are_ignored() -> None:
    assembler = TextAssembler(["", ""])
    assert assembler.push(b"text") == "text"
    assert not assembler.stopped


def test_a_stop_string_of_characters_that_share_bytes_does_not_match_half_a_character() -> None:
    # é is C3 A9 and è is C3 A8: the shared first byte is no match.
    assembler = TextAssembler(["é!"])
    assert feed(assembler, b"\xc3", b"\xa8!", b"\xc3", b"\xa9", b"!") == ["", "è!", "", "", ""]
    assert assembler.stopped


def test_a_stop_string_that_can_never_appear_does_no_harm() -> None:
    assembler = TextAssembler(["\ud800"])
    assert assembler.push("é".encode()) == "é"


def test_a_continued_sequence_gives_exactly_the_missing_text() -> None:
    assembler = TextAssembler(["STOP"], delivered_characters=4)
    assert feed(assembler, b"a\xc3", b"\xa9b", b"cd", b" ST", b"x") == ["", "", "d", " ", "STx"]


def test_a_continuation_may_end_where_it_began() -> None:
    assembler = TextAssembler(delivered_characters=3)
    assert feed(assembler, b"abc", b"d") == ["", "d"]


def test_nothing_can_be_pushed_after_the_end() -> None:
    assembler = TextAssembler()
    assembler.finish()
    with pytest.raises(ValueError, match="after finish"):
        assembler.push(b"x")


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        TextAssembler(delivered_characters=-1)


def test_many_long_overlapping_stop_strings_cost_linear_time() -> None:
    stops = ["a" * n + "b" for n in range(1, 400, 4)]
    assembler = TextAssembler(stops)
    begin = time.perf_counter()
    for _ in range(20_000):
        assembler.push(b"a")
    assert time.perf_counter() - begin < 2.0
    assert assembler.push(b"b") == ""
    assert assembler.stopped
