"""The inside of JSON strings as grammar: code points, escapes, keys. Pure.

Free strings may spell a character in every way JSON has; where characters are compared
(patterns, keys) each has exactly one spelling, so that no two spellings can be confused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agent.inference.grammar.gbnf import (
    EMPTY,
    Characters,
    Expression,
    Grammar,
    Literal,
    Range,
    Reference,
    Repetition,
    choose,
    concatenate,
)

QUOTE: Final = Literal('"')
CODE_POINTS: Final[tuple[Range, ...]] = ((0x00, 0xD7FF), (0xE000, 0x10FFFF))
"""Everything UTF-8 can hold: no surrogates."""

_RAW: Final = Characters(((0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, 0x10FFFF)))
_HEX: Final = Characters(((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)))
_SHORT_ESCAPES: Final = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}


_SHARING_DEPTH: Final = 16
"""Branchings of a set of fixed texts that are shared; the rest is listed."""


def _set(characters: str) -> Characters:
    return Characters(tuple((ord(c), ord(c)) for c in characters))


def any_character(grammar: Grammar) -> Reference:
    """One code point in any spelling; surrogate escapes only as a pair."""
    escape = choose(
        (
            _set('"\\/bfnrt'),
            concatenate(
                Literal("u"),
                choose(
                    (
                        concatenate(_set("0123456789abcefABCEF"), Repetition(_HEX, 3, 3)),
                        concatenate(
                            _set("dD"),
                            choose(
                                (
                                    concatenate(_set("01234567"), Repetition(_HEX, 2, 2)),
                                    concatenate(
                                        _set("89abAB"),
                                        Repetition(_HEX, 2, 2),
                                        Literal("\\u"),
                                        _set("dD"),
                                        _set("cdefCDEF"),
                                        Repetition(_HEX, 2, 2),
                                    ),
                                )
                            ),
                        ),
                    )
                ),
            ),
        )
    )
    return grammar.define(choose((_RAW, concatenate(Literal("\\"), grammar.define(escape)))))


def quoted(text: str) -> Literal:
    """The one spelling of a fixed string, quotes included."""
    return Literal('"' + "".join(map(_spelling, text)) + '"')


def _spelling(character: str) -> str:
    short = _SHORT_ESCAPES.get(character)
    if short is not None:
        return short
    raw = character >= " " and not "\ud800" <= character <= "\udfff"
    return character if raw else f"\\u{ord(character):04x}"


def any_of(grammar: Grammar, texts: Iterable[str], depth: int = 0) -> Expression:
    """One of fixed texts, with common beginnings shared: each open option is a parse to follow."""
    groups: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        groups.setdefault(text[:1], []).append(text)
    options: list[Expression] = []
    for group in groups.values():
        if len(group) == 1 or depth == _SHARING_DEPTH:
            options.extend(map(Literal, group))
            continue
        shared = _common_beginning(min(group), max(group))
        rest = any_of(grammar, (text[len(shared) :] for text in group), depth + 1)
        options.append(concatenate(Literal(shared), grammar.define(rest)))
    return choose(options)


def _common_beginning(first: str, last: str) -> str:
    for index, character in enumerate(first):
        if last[index : index + 1] != character:
            return first[:index]
    return first


def one_of(ranges: Iterable[Range]) -> Expression:
    """One code point of a set, in its one spelling."""
    wanted = normalise(ranges)
    raw = intersect(wanted, _RAW.ranges)
    letters: list[Range] = []
    digits: dict[str, list[Range]] = {}
    for low, high in intersect(wanted, ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C))):
        for code_point in range(low, high + 1):
            spelling = _spelling(chr(code_point))
            last = ord(spelling[-1])
            if len(spelling) == 2:
                letters.append((last, last))
            else:
                digits.setdefault(spelling[1:-1], []).append((last, last))
    # One backslash for all escapes: every option is a parse to follow.
    escapes = [
        *([Characters(normalise(letters))] if letters else []),
        *(concatenate(Literal(u), Characters(normalise(last))) for u, last in digits.items()),
    ]
    return choose(
        [
            *([Characters(raw)] if raw else []),
            *([concatenate(Literal("\\"), choose(escapes))] if escapes else []),
        ]
    )


def free_key(grammar: Grammar, taken: Iterable[str]) -> Expression:
    """A quoted object key that is none of ``taken``."""
    anything = grammar.define(grammar.repeat(grammar.define(one_of(CODE_POINTS)), 0, None))
    branches: dict[str, set[str]] = {"": set()}
    for name in sorted(set(taken)):
        for index, character in enumerate(name):
            branches.setdefault(name[:index], set()).add(character)
            branches.setdefault(name[: index + 1], set())
    ends = frozenset(taken)
    rules: dict[str, Expression] = {}
    for prefix in sorted(branches, key=len, reverse=True):
        following = branches[prefix]
        others = subtract(CODE_POINTS, [(ord(c), ord(c)) for c in following])
        options: list[Expression] = [] if prefix in ends else [EMPTY]
        options.append(concatenate(one_of(others), anything))
        options.extend(
            concatenate(Literal(_spelling(character)), rules[prefix + character])
            for character in sorted(following)
        )
        rules[prefix] = grammar.define(choose(options))
    return concatenate(QUOTE, rules[""], QUOTE)


def normalise(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Sorted, without overlaps or neighbours."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def subtract(ranges: Iterable[Range], removed: Iterable[Range]) -> tuple[Range, ...]:
    """Code points of the first set that are not in the second."""
    return intersect(normalise(ranges), _complement(normalise(removed)))


def _complement(ranges: tuple[Range, ...]) -> tuple[Range, ...]:
    gaps: list[Range] = []
    begin = 0
    for low, high in ranges:
        if begin < low:
            gaps.append((begin, low - 1))
        begin = high + 1
    return (*gaps, (begin, 0x10FFFF)) if begin <= 0x10FFFF else tuple(gaps)


def intersect(first: Iterable[Range], second: Iterable[Range]) -> tuple[Range, ...]:
    """Code points in both sets, each sorted and without overlaps."""
    others = tuple(second)
    return tuple(
        (max(low, other_low), min(high, other_high))
        for low, high in first
        for other_low, other_high in others
        if max(low, other_low) <= min(high, other_high)
    )
