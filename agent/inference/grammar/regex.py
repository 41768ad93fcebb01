"""The regular part of ECMA 262 regular expressions, compiled to the inside of a JSON string. Pure.

A pattern without ``^`` or ``$`` may be surrounded by any text, as JSON Schema defines it.
``\\d`` and ``\\w`` are ASCII as in ECMA 262; the negated classes and ``.`` leave out the
characters on which common validators disagree. Everything that is not regular, or depends on a
position, is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.inference.errors import InvalidFormat
from agent.inference.grammar.gbnf import (
    COUNT_LIMIT,
    NEVER,
    Expression,
    Grammar,
    Range,
    choose,
    concatenate,
)
from agent.inference.grammar.strings import CODE_POINTS, intersect, normalise, one_of, subtract

PATTERN_LENGTH_LIMIT: Final = 4096
GROUP_DEPTH_LIMIT: Final = 50
OPEN_POSITION_LIMIT: Final = 500
"""Places of an ambiguous pattern; each may be a parse of its own at the same time."""

_DIGITS: Final[tuple[Range, ...]] = ((0x30, 0x39),)
_WORD: Final[tuple[Range, ...]] = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Final[tuple[Range, ...]] = ((0x09, 0x0D), (0x20, 0x20))
_ALL_SPACE: Final[tuple[Range, ...]] = (
    (0x09, 0x0D),
    (0x1C, 0x20),
    (0x85, 0x85),
    (0xA0, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x202F, 0x202F),
    (0x205F, 0x205F),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),
)
_ASCII: Final[tuple[Range, ...]] = ((0x00, 0x7F),)
_WITHOUT_DIGITS: Final[tuple[Range, ...]] = ((0x00, 0x2F), (0x3A, 0x65F), (0x3040, 0xA61F))
"""Blocks that hold no decimal digit of any script."""
_DOT: Final = subtract(CODE_POINTS, [(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)])
_CLASSES: Final[dict[str, tuple[Range, ...]]] = {
    "d": _DIGITS,
    "D": _WITHOUT_DIGITS,
    "w": _WORD,
    "W": intersect(subtract(CODE_POINTS, _WORD), _ASCII),
    "s": _SPACE,
    "S": subtract(CODE_POINTS, _ALL_SPACE),
}
_CONTROL: Final = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "0": 0x00}
_QUANTIFIERS: Final[dict[str, tuple[int, int | None]]] = {
    "*": (0, None),
    "+": (1, None),
    "?": (0, 1),
}


@dataclass(frozen=True, slots=True)
class OneOf:
    """One code point out of inclusive ranges."""

    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Sequence:
    """All parts in order."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of the options."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """``item`` from ``low`` to ``high`` times; ``high`` None is without end."""

    item: Node
    low: int
    high: int | None


Node = OneOf | Sequence | Either | Repeat
_ANYTHING: Final = Repeat(OneOf(CODE_POINTS), 0, None)


def parse_pattern(pattern: str, path: str) -> Node:
    """The strings (code points) that match a ``pattern``. Raises InvalidFormat."""
    if len(pattern) > PATTERN_LENGTH_LIMIT:
        raise InvalidFormat(
            f'format: {path}: "pattern" is longer than {PATTERN_LENGTH_LIMIT} characters'
        )
    return _Parser(pattern, path).parse()


def compile_pattern(
    grammar: Grammar, node: Node, low: int, high: int | None, path: str
) -> Expression:
    """The inside of a JSON string that matches and has ``low`` to ``high`` code points.

    Raises InvalidFormat when the lengths cannot be combined with the pattern exactly.
    """
    fitted = _fit(node, low, high)
    if fitted is None:
        raise InvalidFormat(
            f'format: {path}: "minLength" and "maxLength" can be combined with this "pattern" '
            f'or "format" only when it has a single part of variable length; put the lengths '
            f"into the pattern"
        )
    if not _look(fitted).decided and _positions(fitted) > OPEN_POSITION_LIMIT:
        raise InvalidFormat(
            f'format: {path}: "pattern" is ambiguous and expands to more than '
            f"{OPEN_POSITION_LIMIT} places"
        )
    return _compile(grammar, fitted)


@dataclass(frozen=True, slots=True)
class _Look:
    """What one character of look-ahead can tell about a node.

    ``first`` may begin it, ``onward`` may continue a text that already matches it. ``decided``
    when the next character always tells which part it belongs to, as in the one-unambiguous
    expressions of Brüggemann-Klein and Wood (Information and Computation 142(2), 1998).
    """

    first: tuple[Range, ...]
    onward: tuple[Range, ...]
    empty: bool
    decided: bool


def _look(node: Node) -> _Look:
    match node:
        case OneOf(ranges):
            return _Look(ranges, (), empty=False, decided=True)
        case Sequence(parts):
            whole = _Look((), (), empty=True, decided=True)
            for part in parts:
                own = _look(part)
                whole = _Look(
                    normalise((*whole.first, *own.first)) if whole.empty else whole.first,
                    normalise((*own.onward, *((*whole.onward, *own.first) if own.empty else ()))),
                    empty=whole.empty and own.empty,
                    decided=whole.decided
                    and own.decided
                    and not intersect(whole.onward, own.first),
                )
            return whole
        case Either(options):
            looks = [_look(option) for option in options]
            first: tuple[Range, ...] = ()
            decided = True
            for own in looks:
                decided = decided and own.decided and not intersect(first, own.first)
                first = normalise((*first, *own.first))
            empty = any(own.empty for own in looks)
            onward = [
                *(bounds for own in looks for bounds in own.onward),
                *(first if empty else ()),
            ]
            return _Look(first, normalise(onward), empty=empty, decided=decided)
        case Repeat(item, low, high):
            own = _look(item)
            again = high != 1 and bool(intersect(own.onward, own.first))
            onward = normalise((*own.onward, *(own.first if low != high else ())))
            return _Look(
                own.first, onward, empty=low == 0 or own.empty, decided=own.decided and not again
            )


def _positions(node: Node) -> int:
    """Characters of the node with every counted repetition written out."""
    match node:
        case OneOf():
            return 1
        case Sequence(children) | Either(children):
            return sum(map(_positions, children))
        case Repeat(item, low, high):
            return _positions(item) * max(1, low if high is None else high)


def lengths(node: Node) -> tuple[int, int | None]:
    """The least and the greatest number of code points; None without limit."""
    match node:
        case OneOf():
            return 1, 1
        case Sequence(parts):
            low, high = 0, 0
            for part in parts:
                part_low, part_high = lengths(part)
                low += part_low
                high = None if high is None or part_high is None else high + part_high
            return low, high
        case Either(options):
            found = [lengths(option) for option in options]
            highs = [high for _, high in found]
            known = [high for high in highs if high is not None]
            return min(low for low, _ in found), max(known) if len(known) == len(highs) else None
        case Repeat(item, low, high):
            item_low, item_high = lengths(item)
            if high == 0 or item_high == 0:
                return item_low * low, 0
            return item_low * low, None if high is None or item_high is None else item_high * high


def _fit(node: Node, low: int, high: int | None) -> Node | None:
    """The node limited to some lengths; None when that cannot be done exactly."""
    least, most = lengths(node)
    if least >= low and (high is None or (most is not None and most <= high)):
        return node
    match node:
        case Repeat(item, times_low, times_high):
            size, size_most = lengths(item)
            if size != size_most or size == 0:
                return None
            new_low = max(times_low, -(-low // size))
            limits = (times_high, None if high is None else high // size)
            known = [limit for limit in limits if limit is not None]
            new_high = min(known) if known else None
            if new_high is not None and new_high < new_low:
                return Either(())
            return Repeat(item, new_low, new_high)
        case Sequence(parts):
            variable = [i for i, part in enumerate(parts) if len(set(lengths(part))) > 1]
            if len(variable) != 1:
                return None if variable else Either(())
            place = variable[0]
            fixed = sum(lengths(part)[0] for i, part in enumerate(parts) if i != place)
            if high is not None and high < fixed:
                return Either(())
            fitted = _fit(parts[place], max(0, low - fixed), None if high is None else high - fixed)
            if fitted is None:
                return None
            return Sequence((*parts[:place], fitted, *parts[place + 1 :]))
        case Either(options):
            fitted_options = [_fit(option, low, high) for option in options]
            if None in fitted_options:
                return None
            return Either(tuple(option for option in fitted_options if option is not None))
        case OneOf():
            return Either(())


def _compile(grammar: Grammar, node: Node) -> Expression:
    match node:
        case OneOf(ranges):
            return one_of(ranges)
        case Sequence(parts):
            return concatenate(*(_compile(grammar, part) for part in parts))
        case Either(options):
            if not options:
                return NEVER
            return grammar.define(choose([_compile(grammar, option) for option in options]))
        case Repeat(item, low, high):
            return grammar.repeat(_compile(grammar, item), low, high)


class _Parser:
    def __init__(self, pattern: str, path: str) -> None:
        self._pattern = pattern
        self._path = path
        self._at = 0
        self._depth = 0

    def parse(self) -> Node:
        options = [self._anchored()]
        while self._take("|"):
            options.append(self._anchored())
        if self._at < len(self._pattern):
            raise self._error("an unmatched )")
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _anchored(self) -> Node:
        begins = self._take("^")
        inner = self._sequence()
        ends = self._take("$")
        if ends and self._peek() not in ("", "|", ")"):
            raise self._error("an anchor inside the pattern")
        return Sequence((*(() if begins else (_ANYTHING,)), inner, *(() if ends else (_ANYTHING,))))

    def _alternatives(self) -> Node:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while (character := self._peek()) not in ("", "|", ")"):
            if character == "$" and self._depth == 0:
                break
            if character in ("^", "$"):
                raise self._error("an anchor inside the pattern")
            parts.append(self._quantified(self._atom()))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _quantified(self, item: Node) -> Node:
        bounds = self._quantifier()
        if bounds is None:
            return item
        self._take("?")  # a lazy quantifier matches the same strings
        if self._peek() == "+":
            raise self._error("a possessive quantifier")
        if self._peek() in ("*", "?") or self._counted_ahead():
            raise self._error("a quantifier after a quantifier")
        low, high = bounds
        if lengths(item)[0] == 0 and high != 1 and lengths(item)[1] != 0:
            raise self._error("a repeated part that can be empty")
        return Repeat(item, low, high)

    def _quantifier(self) -> tuple[int, int | None] | None:
        simple = _QUANTIFIERS.get(self._peek())
        if simple is not None:
            self._at += 1
            return simple
        if not self._counted_ahead():
            return None
        end = self._pattern.index("}", self._at)
        low_text, comma, high_text = self._pattern[self._at + 1 : end].partition(",")
        self._at = end + 1
        if max(len(low_text), len(high_text)) > len(str(COUNT_LIMIT)):
            raise self._error("a repetition count that is too large")
        low = int(low_text)
        high = (int(high_text) if high_text else None) if comma else low
        if high is not None and high < low:
            raise self._error("a repetition whose bounds are swapped")
        return low, high

    def _counted_ahead(self) -> bool:
        if self._peek() != "{":
            return False
        end = self._pattern.find("}", self._at)
        if end < 0:
            return False
        low, comma, high = self._pattern[self._at + 1 : end].partition(",")
        digits = low.isascii() and low.isdigit()
        return digits and (not comma or not high or (high.isascii() and high.isdigit()))

    def _atom(self) -> Node:
        character = self._next()
        match character:
            case ".":
                return OneOf(_DOT)
            case "(":
                return self._group()
            case "[":
                return OneOf(self._set())
            case "\\":
                return OneOf(self._escape(in_set=False))
            case "*" | "+" | "?":
                raise self._error("a quantifier without anything to repeat")
            case "{" | "}" | "]":
                raise self._error(f"an unescaped {character}")
            case _:
                return self._single(ord(character))

    def _single(self, code_point: int) -> Node:
        return OneOf(intersect(((code_point, code_point),), CODE_POINTS))

    def _group(self) -> Node:
        if self._take("?"):
            self._group_kind()
        self._depth += 1
        if self._depth > GROUP_DEPTH_LIMIT:
            raise self._error(f"groups nested more than {GROUP_DEPTH_LIMIT} deep")
        inner = self._alternatives()
        self._depth -= 1
        if not self._take(")"):
            raise self._error("an unmatched (")
        return inner

    def _group_kind(self) -> None:
        if self._take(":"):
            return
        for prefix, name in (
            ("<=", "lookbehind"),
            ("<!", "lookbehind"),
            ("=", "lookahead"),
            ("!", "lookahead"),
            (">", "an atomic group"),
        ):
            if self._pattern.startswith(prefix, self._at):
                raise self._error(name)
        self._take("P")
        end = self._pattern.find(">", self._at)
        if not self._take("<") or not self._pattern[self._at : end].isidentifier():
            raise self._error("a group with flags")
        self._at = end + 1

    def _set(self) -> tuple[Range, ...]:
        negated = self._take("^")
        members: list[Range] = []
        while not self._take("]"):
            first = self._set_member(negated=negated)
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                last = self._set_member(negated=negated)
                if not _is_single(first) or not _is_single(last):
                    raise self._error("a range between classes")
                low, high = first[0][0], last[0][0]
                if low > high:
                    raise self._error("a range whose bounds are swapped")
                members.append((low, high))
            else:
                members.extend(first)
        wanted = normalise(members)
        return subtract(CODE_POINTS, wanted) if negated else intersect(wanted, CODE_POINTS)

    def _set_member(self, *, negated: bool) -> tuple[Range, ...]:
        character = self._next()
        if not character:
            raise self._error("an unmatched [")
        if character == "\\":
            members = self._escape(in_set=True)
            # What a negated set leaves out must be out for every validator.
            opposite = self._pattern[self._at - 1].upper()
            is_class = not _is_single(members)
            return subtract(CODE_POINTS, _CLASSES[opposite]) if negated and is_class else members
        return ((ord(character), ord(character)),)

    def _escape(self, *, in_set: bool) -> tuple[Range, ...]:
        character = self._next()
        if character in _CLASSES:
            if in_set and character.isupper():
                raise self._error(f"\\{character} in a set")
            return _CLASSES[character]
        if character == "0" and self._peek().isdigit():
            raise self._error("an octal escape")
        if character == "b" and in_set:
            return ((0x08, 0x08),)
        if character in _CONTROL:
            return ((_CONTROL[character], _CONTROL[character]),)
        match character:
            case "x":
                return self._hexadecimal(2)
            case "u":
                return self._hexadecimal(4)
            case "":
                raise self._error("a trailing backslash")
            case "b" | "B":
                raise self._error("a word boundary")
            case "A" | "Z" | "z" | "G":
                raise self._error(f"the anchor \\{character}")
            case "k":
                raise self._error("a backreference")
            case "p" | "P":
                raise self._error("a Unicode property class")
            case _ if character.isdigit():
                raise self._error("a backreference")
            case _ if character.isalpha() or character == "_":
                raise self._error(f"the escape \\{character}")
            case _:
                return ((ord(character), ord(character)),)

    def _hexadecimal(self, length: int) -> tuple[Range, ...]:
        digits = self._pattern[self._at : self._at + length]
        if len(digits) != length or any(d not in "0123456789abcdefABCDEF" for d in digits):
            raise self._error("an incomplete hexadecimal escape")
        self._at += length
        code_point = int(digits, 16)
        if 0xD800 <= code_point <= 0xDFFF:
            raise self._error("a surrogate escape")
        return ((code_point, code_point),)

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        character = self._peek()
        self._at += len(character)
        return character

    def _take(self, wanted: str) -> bool:
        taken = self._peek() == wanted
        self._at += taken
        return taken

    def _error(self, what: str) -> InvalidFormat:
        return InvalidFormat(
            f'format: {self._path}: "pattern" has {what} near character {self._at}, '
            f"which is not supported"
        )


def _is_single(ranges: tuple[Range, ...]) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]
