"""Decimal notation between two bounds as grammar, exactly. Pure.

A bounded number is written without exponent and with a bounded number of digits. Every text
the grammar matches lies within the bounds; the texts left out are only longer spellings.
"""

from __future__ import annotations

from typing import Final

from agent.inference.grammar.gbnf import (
    EMPTY,
    NEVER,
    Characters,
    Expression,
    Grammar,
    Literal,
    Repetition,
    choose,
    concatenate,
    optional,
)

OPEN_DIGITS: Final = 19
"""Digits before the point on a side without bound, enough for 64-bit integers."""
SIGNIFICANT_DIGITS: Final = 15
"""Decimals of up to 15 digits stay distinct as binary floating point numbers (IEEE 754)."""

_DIGIT: Final = Characters(((0x30, 0x39),))
_MINUS: Final = Literal("-")


def any_integer() -> Expression:
    """An integer of up to 19 digits."""
    rest = Repetition(_DIGIT, 0, OPEN_DIGITS - 1)
    positive = concatenate(_digits(1, 9), rest)
    return choose((Literal("0"), concatenate(optional(_MINUS), positive)))


def any_number() -> Expression:
    """A number that a double can hold: up to 19 digits, 20 places, exponents -307 to 289."""
    whole = choose((Literal("0"), concatenate(_digits(1, 9), Repetition(_DIGIT, 0, 18))))
    fraction = optional(concatenate(Literal("."), Repetition(_DIGIT, 1, 20)))
    two = Repetition(_DIGIT, 1, 2)
    hundreds = concatenate(Literal("1"), Repetition(_DIGIT, 2, 2))
    large = choose((two, hundreds, concatenate(Literal("2"), _digits(0, 8), _DIGIT)))
    small = choose(
        (
            two,
            concatenate(_digits(1, 2), Repetition(_DIGIT, 2, 2)),
            concatenate(Literal("30"), _digits(0, 7)),
        )
    )
    power = choose((concatenate(optional(Literal("+")), large), concatenate(_MINUS, small)))
    exponent = optional(concatenate(Characters(((0x45, 0x45), (0x65, 0x65))), power))
    return concatenate(optional(_MINUS), whole, fraction, exponent)


def between(grammar: Grammar, low: int | None, high: int | None, places: int) -> Expression:
    """Numbers of at most ``places`` digits after the point from ``low`` to ``high`` inclusive.

    Both bounds are in units of the last place. None is an open side: numbers reach one digit
    further than the other bound, and at least ``OPEN_DIGITS`` digits before the point.
    """
    known = max((len(str(abs(bound))) for bound in (low, high) if bound is not None), default=0)
    edge = 10 ** max(OPEN_DIGITS + places, known + 1) - 1
    first = -edge if low is None else low
    last = edge if high is None else high
    if first > last:
        return NEVER
    digits = _DigitRanges(grammar, places)
    options: list[Expression] = []
    if last >= 0:
        options.append(digits.non_negative(max(first, 0), last))
    if first < 0:
        options.append(concatenate(_MINUS, digits.non_negative(max(-last, 1), -first)))
    return choose(options)


def _digits(low: int, high: int) -> Expression:
    if low > high:
        return NEVER
    return Characters(((0x30 + low, 0x30 + high),))


def _repeat(low: int, high: int) -> Expression:
    return Repetition(_DIGIT, low, high) if high else EMPTY


class _DigitRanges:
    """Non-negative numbers given as integers in units of the last place."""

    def __init__(self, grammar: Grammar, places: int) -> None:
        self._grammar = grammar
        self._places = places

    def non_negative(self, first: int, last: int) -> Expression:
        """Texts from ``first`` to ``last`` without leading zeros."""
        unit = 10**self._places
        low, low_rest = divmod(first, unit)
        high, high_rest = divmod(last, unit)
        if not self._places:
            return self._integers(low, high)
        low_digits = str(low_rest).zfill(self._places)
        high_digits = str(high_rest).zfill(self._places)
        any_fraction = optional(concatenate(Literal("."), _repeat(1, self._places)))
        if low == high:
            return concatenate(Literal(str(low)), self._fraction(low_digits, high_digits))
        inner_low = low if low_rest == 0 else low + 1
        inner_high = high if high_rest == unit - 1 else high - 1
        options: list[Expression] = []
        if low_rest:
            fraction = self._fraction(low_digits, "9" * self._places)
            options.append(concatenate(Literal(str(low)), fraction))
        if inner_low <= inner_high:
            options.append(concatenate(self._integers(inner_low, inner_high), any_fraction))
        if high_rest != unit - 1:
            fraction = self._fraction("0" * self._places, high_digits)
            options.append(concatenate(Literal(str(high)), fraction))
        return choose(options)

    def _integers(self, low: int, high: int) -> Expression:
        """Integers from ``low`` to ``high``; lengths that are wholly inside share one option."""
        options: list[Expression] = []
        if low == 0:
            options.append(Literal("0"))
            low = 1
        shortest, longest = len(str(low)), len(str(high))
        if low > high:
            return choose(options)
        if shortest == longest:
            options.append(self._same_length(str(low), str(high)))
            return choose(options)
        if low != 10 ** (shortest - 1):
            options.append(self._same_length(str(low), "9" * shortest))
            shortest += 1
        whole_to = longest if high == 10**longest - 1 else longest - 1
        if shortest <= whole_to:
            options.append(concatenate(_digits(1, 9), _repeat(shortest - 1, whole_to - 1)))
        if whole_to < longest:
            options.append(self._same_length("1" + "0" * (longest - 1), str(high)))
        return choose(options)

    def _same_length(self, low: str, high: str) -> Expression:
        """Digit texts of one length from ``low`` to ``high``."""
        length = len(low)
        if low == "0" * length and high == "9" * length:
            return _repeat(length, length)
        low_digit, high_digit = int(low[0]), int(high[0])
        if length == 1:
            return _digits(low_digit, high_digit)
        if low_digit == high_digit:
            return concatenate(Literal(low[0]), self._same_length(low[1:], high[1:]))
        options: list[Expression] = []
        if low[1:].strip("0"):
            rest = self._same_length(low[1:], "9" * (length - 1))
            options.append(concatenate(Literal(low[0]), rest))
            low_digit += 1
        last: Expression | None = None
        if high[1:].strip("9"):
            rest = self._same_length("0" * (length - 1), high[1:])
            last = concatenate(Literal(high[0]), rest)
            high_digit -= 1
        if low_digit <= high_digit:
            options.append(
                concatenate(_digits(low_digit, high_digit), _repeat(length - 1, length - 1))
            )
        if last is not None:
            options.append(last)
        return self._grammar.define(choose(options))

    def _fraction(self, low: str, high: str) -> Expression:
        """Nothing or a point and digits, worth from ``low`` to ``high``."""
        digits = self._places_from(low, high)
        with_point = concatenate(Literal("."), digits)
        return with_point if low.strip("0") else optional(with_point)

    def _places_from(self, low: str, high: str) -> Expression:
        """At least one digit; missing digits count as zeros."""
        length = len(low)
        low_digit, high_digit = int(low[0]), int(high[0])
        if low == "0" * length and high == "9" * length:
            return _repeat(1, length)

        def more(digit: Expression, low_rest: str, high_rest: str) -> Expression:
            if not low_rest:
                return digit
            following = self._places_from(low_rest, high_rest)
            return concatenate(digit, following if low_rest.strip("0") else optional(following))

        zeros, nines = "0" * (length - 1), "9" * (length - 1)
        if low_digit == high_digit:
            return more(Literal(low[0]), low[1:], high[1:])
        options = [
            more(Literal(low[0]), low[1:], nines),
            more(_digits(low_digit + 1, high_digit - 1), zeros, nines),
            more(Literal(high[0]), zeros, high[1:]),
        ]
        return self._grammar.define(choose(options))
