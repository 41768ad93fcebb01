"""Grammar expressions, the rules made of them, and their GBNF text. Pure.

Everything llama.cpp's grammar engine cannot take is refused here, before it sees the text:
left recursion and chains of references so long that its recursive check overflows the stack,
too many rules or elements, and repetition counts beyond what it expands (it silently reads a
maximum above 2000 as "no maximum"). Large counts are therefore built from blocks whose size
grows by a constant factor, so that the text stays logarithmic in the count and few parses run
side by side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from agent.inference.errors import InvalidFormat

RULE_LIMIT: Final = 20_000
ELEMENT_LIMIT: Final = 100_000
"""Elements as llama.cpp stores them, after it has expanded every repetition."""
CHAIN_LIMIT: Final = 2_000
"""Rules entered one through the other without a character read; 20 000 overflow its stack."""
COUNT_LIMIT: Final = 2**53
_BLOCK: Final = 64
_INLINE_RANGES: Final = 4
"""A repeated character class is copied by llama.cpp; larger ones get a rule of their own."""

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Literal:
    """These characters, one after the other."""

    text: str


@dataclass(frozen=True, slots=True)
class Characters:
    """One code point out of inclusive ranges."""

    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """Another rule."""

    name: str


@dataclass(frozen=True, slots=True)
class Concatenation:
    """All parts in order; without parts the empty text."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the options; without options nothing matches."""

    options: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Repetition:
    """``item`` from ``low`` to ``high`` times; ``high`` None is without end."""

    item: Expression
    low: int
    high: int | None


Expression = Literal | Characters | Reference | Concatenation | Choice | Repetition

EMPTY: Final = Concatenation(())
NEVER: Final = Choice(())


def concatenate(*parts: Expression) -> Expression:
    """The parts in order, simplified; NEVER if a part is."""
    flat: list[Expression] = []
    for part in parts:
        if part == NEVER:
            return NEVER
        if isinstance(part, Concatenation):
            flat.extend(part.parts)
        elif isinstance(part, Literal) and flat and isinstance(last := flat[-1], Literal):
            flat[-1] = Literal(last.text + part.text)
        elif part != Literal(""):
            flat.append(part)
    return flat[0] if len(flat) == 1 else Concatenation(tuple(flat))


def choose(options: Iterable[Expression]) -> Expression:
    """One of the options, without repeats and without those that match nothing."""
    distinct: dict[Expression, None] = {}
    for option in options:
        inner = option.options if isinstance(option, Choice) else (option,)
        distinct.update(dict.fromkeys(inner))
    return next(iter(distinct)) if len(distinct) == 1 else Choice(tuple(distinct))


def optional(item: Expression) -> Expression:
    """The item or nothing."""
    return EMPTY if item in (EMPTY, NEVER) else Repetition(item, 0, 1)


class Grammar:
    """Rules under construction. Equal expressions share one rule.

    Raises InvalidFormat as soon as a limit is passed.
    """

    def __init__(self) -> None:
        self._rules: dict[str, Expression] = {}
        self._names: dict[Expression, Reference] = {}
        self._reserved = 0
        self._elements = 0

    def define(self, expression: Expression) -> Reference:
        """A rule for the expression."""
        if isinstance(expression, Reference):
            return expression
        known = self._names.get(expression)
        if known is None:
            known = self.reserve()
            self._names[expression] = known
            self.fill(known, expression)
        return known

    def reserve(self) -> Reference:
        """A rule that is filled later, so that it can refer to itself."""
        self._reserved += 1
        if self._reserved > RULE_LIMIT:
            raise InvalidFormat(f"format: the schema needs more than {RULE_LIMIT} grammar rules")
        return Reference(f"r{self._reserved}")

    def fill(self, rule: Reference, expression: Expression) -> None:
        """Give a reserved rule its expression, once."""
        self._elements += _elements(expression)
        if self._elements > ELEMENT_LIMIT:
            raise InvalidFormat(
                f"format: the schema needs more than {ELEMENT_LIMIT} grammar elements"
            )
        self._rules[rule.name] = expression

    def repeat(self, item: Expression, low: int, high: int | None) -> Expression:
        """``item`` from ``low`` to ``high`` times, for counts of any size; never ambiguous when
        the item is not."""
        if high is not None and high < low:
            return NEVER
        if max(low, high or 0) > COUNT_LIMIT:
            raise InvalidFormat(f"format: a count is larger than {COUNT_LIMIT}")
        if high == 0:
            return EMPTY
        if item == NEVER:
            return NEVER if low else EMPTY
        if low == high == 1:
            return item
        if not isinstance(item, Characters) or len(item.ranges) > _INLINE_RANGES:
            item = self.define(item)
        if high is None and low <= _BLOCK:
            return Repetition(item, low, None)
        if high is not None and high <= 2 * _BLOCK:
            return Repetition(item, low, high)
        tail = Repetition(item, 0, None) if high is None else self._at_most(item, high - low)
        return concatenate(self._exactly(item, low), tail)

    def _exactly(self, item: Expression, count: int) -> Expression:
        parts: list[Expression] = []
        while count:
            count, rest = divmod(count, _BLOCK)
            if rest:
                parts.append(Repetition(item, rest, rest))
            if count:
                item = self.define(Repetition(item, _BLOCK, _BLOCK))
        return concatenate(*reversed(parts))

    def _at_most(self, item: Expression, count: int) -> Expression:
        """Whole blocks, then less than a block: each number of items has one parse."""
        if count == 0:
            return EMPTY
        if count <= 2 * _BLOCK:
            return Repetition(item, 0, count)
        block: Expression = item
        size = 1
        while size * _BLOCK <= count:
            block = self.define(Repetition(block, _BLOCK, _BLOCK))
            size *= _BLOCK
        blocks, rest = divmod(count, size)
        less = self.define(self._at_most(item, size - 1))
        following = self.define(self._at_most(item, rest))
        for _ in range(blocks):
            following = self.define(choose((concatenate(block, following), less)))
        return following

    def render(self, root: Expression) -> str:
        """GBNF text whose start rule is ``root``.

        Options that no finite text can satisfy are left out. Raises InvalidFormat when nothing
        is left or the rules call each other without reading a character.
        """
        rules = {"root": root, **self._rules}
        productive = _productive(rules)
        if "root" not in productive:
            raise InvalidFormat("format: no finite JSON value can satisfy the schema")
        alive = {
            name: pruned
            for name, expression in rules.items()
            if name in productive and (pruned := _prune(expression, productive)) is not None
        }
        reachable = _reachable(alive)
        kept = {name: expression for name, expression in alive.items() if name in reachable}
        _check_chains(kept)
        return "".join(f"{name} ::= {_text(body)}\n" for name, body in kept.items())


def references(expression: Expression) -> Iterator[str]:
    """Names of the rules an expression mentions."""
    match expression:
        case Reference(name):
            yield name
        case Concatenation(children) | Choice(children):
            for child in children:
                yield from references(child)
        case Repetition(item):
            yield from references(item)
        case Literal() | Characters():
            pass


def _elements(expression: Expression) -> int:
    match expression:
        case Literal(text):
            return len(text)
        case Characters(ranges):
            return 2 * len(ranges)
        case Reference():
            return 1
        case Concatenation(parts):
            return sum(map(_elements, parts))
        case Choice(options):
            return 2 + sum(1 + _elements(option) for option in options)
        case Repetition(item, low, high):
            times = low + 1 if high is None else high
            return times * (_elements(item) + 3)


def _productive(rules: Mapping[str, Expression]) -> set[str]:
    """Rules that match at least one finite text."""
    users: dict[str, set[str]] = {}
    for name, expression in rules.items():
        for mentioned in references(expression):
            users.setdefault(mentioned, set()).add(name)
    found: set[str] = set()
    waiting = deque(rules)
    while waiting:
        name = waiting.popleft()
        if name not in found and _prune(rules[name], found) is not None:
            found.add(name)
            waiting.extend(users.get(name, ()))
    return found


def _prune(expression: Expression, productive: set[str]) -> Expression | None:
    """The expression without what cannot match; None when nothing remains."""
    match expression:
        case Reference(name):
            return expression if name in productive else None
        case Concatenation(parts):
            kept = [_prune(part, productive) for part in parts]
            return None if None in kept else concatenate(*(part for part in kept if part))
        case Choice(options):
            left = [kept for option in options if (kept := _prune(option, productive))]
            return choose(left) if left else None
        case Repetition(item, low, high):
            inner = _prune(item, productive)
            if inner is None:
                return None if low else EMPTY
            return Repetition(inner, low, high)
        case Literal() | Characters():
            return expression


def _reachable(rules: Mapping[str, Expression]) -> set[str]:
    found = {"root"}
    waiting = ["root"]
    while waiting:
        for name in references(rules[waiting.pop()]):
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _check_chains(rules: Mapping[str, Expression]) -> None:
    """Refuse left recursion and long chains of rules entered without reading a character."""
    empty = _may_be_empty(rules)
    enters = {name: set(_first_rules(body, empty)) for name, body in rules.items()}
    callers = dict.fromkeys(rules, 0)
    for called in enters.values():
        for name in called:
            callers[name] += 1
    depth = dict.fromkeys(rules, 1)
    ready = deque(name for name, count in callers.items() if count == 0)
    done = 0
    while ready:
        caller = ready.popleft()
        done += 1
        for name in enters[caller]:
            depth[name] = max(depth[name], depth[caller] + 1)
            callers[name] -= 1
            if callers[name] == 0:
                ready.append(name)
    if done < len(rules):
        raise InvalidFormat("format: the schema refers to itself without a value in between")
    if max(depth.values()) > CHAIN_LIMIT:
        raise InvalidFormat(f"format: the schema chains more than {CHAIN_LIMIT} grammar rules")


def _may_be_empty(rules: Mapping[str, Expression]) -> set[str]:
    users: dict[str, set[str]] = {}
    for name, expression in rules.items():
        for mentioned in references(expression):
            users.setdefault(mentioned, set()).add(name)
    found: set[str] = set()
    waiting = deque(rules)
    while waiting:
        name = waiting.popleft()
        if name not in found and _is_empty(rules[name], found):
            found.add(name)
            waiting.extend(users.get(name, ()))
    return found


def _is_empty(expression: Expression, empty: set[str]) -> bool:
    match expression:
        case Literal(text):
            return not text
        case Characters():
            return False
        case Reference(name):
            return name in empty
        case Concatenation(parts):
            return all(_is_empty(part, empty) for part in parts)
        case Choice(options):
            return any(_is_empty(option, empty) for option in options)
        case Repetition(item, low):
            return low == 0 or _is_empty(item, empty)


def _first_rules(expression: Expression, empty: set[str]) -> Iterator[str]:
    match expression:
        case Reference(name):
            yield name
        case Concatenation(parts):
            for part in parts:
                yield from _first_rules(part, empty)
                if not _is_empty(part, empty):
                    break
        case Choice(options):
            for option in options:
                yield from _first_rules(option, empty)
        case Repetition(item):
            yield from _first_rules(item, empty)
        case Literal() | Characters():
            pass


def _text(expression: Expression) -> str:
    match expression:
        case Literal(text):
            return '"' + "".join(map(_literal_character, text)) + '"'
        case Characters(ranges):
            return "[" + "".join(map(_range, ranges)) + "]"
        case Reference(name):
            return name
        case Concatenation(parts):
            return " ".join(map(_part, parts)) if parts else '""'
        case Choice(options):
            return " | ".join(map(_text, options))
        case Repetition(item, low, high):
            return _item(item) + _count(low, high)


def _part(expression: Expression) -> str:
    return f"({_text(expression)})" if isinstance(expression, Choice) else _text(expression)


def _item(expression: Expression) -> str:
    simple = isinstance(expression, (Characters, Reference))
    return _text(expression) if simple else f"({_text(expression)})"


def _count(low: int, high: int | None) -> str:
    match low, high:
        case 0, None:
            return "*"
        case 1, None:
            return "+"
        case 0, 1:
            return "?"
        case _, None:
            return f"{{{low},}}"
        case _:
            return f"{{{low}}}" if low == high else f"{{{low},{high}}}"


def _literal_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if " " <= character <= "~" else _escape(ord(character))


def _range(bounds: Range) -> str:
    low, high = bounds
    return (
        _class_character(low)
        if low == high
        else f"{_class_character(low)}-{_class_character(high)}"
    )


def _class_character(code_point: int) -> str:
    character = chr(code_point)
    return character if character.isascii() and character.isalnum() else _escape(code_point)


def _escape(code_point: int) -> str:
    if code_point < 0x100:
        return f"\\x{code_point:02X}"
    return f"\\u{code_point:04X}" if code_point < 0x10000 else f"\\U{code_point:08X}"
