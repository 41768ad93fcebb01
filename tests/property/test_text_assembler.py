"""However bytes are cut into tokens, and wherever a sequence continues, the text is the same."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from agent.inference.text import TextAssembler

ALPHABET = "abé€😀\ufffd"
pieces_of_bytes = st.lists(
    st.one_of(
        st.sampled_from([character.encode() for character in ALPHABET]),
        st.binary(max_size=3),
    ),
    max_size=16,
).map(b"".join)
stop_lists = st.lists(st.text(ALPHABET, max_size=4), max_size=4)


def reference(data: bytes, stops: list[str]) -> str:
    """The whole text, cut before the stop string that is completed first."""
    text = data.decode("utf-8", "replace")
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if stop and text[:end].endswith(stop)]
        if lengths:
            return text[: end - max(lengths)]
    return text


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(borders)]


def run(assembler: TextAssembler, pieces: list[bytes]) -> list[str]:
    return [*(assembler.push(piece) for piece in pieces), assembler.finish()]


@given(pieces_of_bytes, stop_lists, st.lists(st.integers(0, 48), max_size=12))
def test_releases_join_to_the_reference_for_every_split(
    data: bytes, stops: list[str], cuts: list[int]
) -> None:
    assembler = TextAssembler(stops)
    assert "".join(run(assembler, split(data, cuts))) == reference(data, stops)


@given(pieces_of_bytes, stop_lists)
def test_byte_by_byte_nothing_is_taken_back_and_nothing_is_held_needlessly(
    data: bytes, stops: list[str]
) -> None:
    assembler = TextAssembler(stops)
    expected = reference(data, stops)
    shown = ""
    for index in range(len(data)):
        shown += assembler.push(data[index : index + 1])
        assert expected.startswith(shown)
        if assembler.stopped:
            break
        seen = data[: index + 1].decode("utf-8", "replace")
        if not assembler.holding:
            assert shown == seen
        elif (held := seen[len(shown) :]) and not held.endswith("\ufffd"):
            assert any(stop.startswith(held) and stop != held for stop in stops)


@given(
    pieces_of_bytes,
    stop_lists,
    st.lists(st.integers(0, 48), max_size=8),
    st.lists(st.integers(0, 48), max_size=8),
)
def test_every_continuation_point_gives_exactly_the_missing_text(
    data: bytes, stops: list[str], cuts: list[int], other_cuts: list[int]
) -> None:
    expected = reference(data, stops)
    releases = run(TextAssembler(stops), split(data, cuts))
    delivered = 0
    for release in releases:
        delivered += len(release)
        continued = TextAssembler(stops, delivered_characters=delivered)
        assert "".join(run(continued, split(data, other_cuts))) == expected[delivered:]


@given(pieces_of_bytes, st.lists(st.integers(0, 48), max_size=12))
def test_without_stops_the_text_is_the_decoded_bytes(data: bytes, cuts: list[int]) -> None:
    assembler = TextAssembler()
    assert "".join(run(assembler, split(data, cuts))) == data.decode("utf-8", "replace")
