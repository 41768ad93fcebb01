"""The tree of a parsed Go template. Every node knows its line, counted from 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# -- operands --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dot:
    line: int


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant; ``None`` is ``nil``."""

    line: int
    value: bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Field:
    """``.A.B`` on the current dot."""

    line: int
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """``$name.A.B``; the name keeps its dollar sign."""

    line: int
    name: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FunctionName:
    line: int
    name: str


@dataclass(frozen=True, slots=True)
class Chain:
    """Fields of a parenthesised pipeline: ``(index .A 0).B``."""

    line: int
    base: Pipeline
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """A function or a value, and its arguments."""

    line: int
    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands whose results flow to the right, into ``targets`` if there are any."""

    line: int
    commands: tuple[Command, ...]
    targets: tuple[str, ...] = ()
    declares: bool = False
    """``:=`` rather than ``=``."""


Operand = Dot | Literal | Field | Variable | FunctionName | Chain | Pipeline

# -- statements ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    line: int
    pipeline: Pipeline


@dataclass(frozen=True, slots=True)
class If:
    line: int
    condition: Pipeline
    body: Block
    otherwise: Block


@dataclass(frozen=True, slots=True)
class With:
    line: int
    subject: Pipeline
    body: Block
    otherwise: Block


@dataclass(frozen=True, slots=True)
class Range:
    line: int
    subject: Pipeline
    body: Block
    otherwise: Block


@dataclass(frozen=True, slots=True)
class Include:
    """``template "name" pipeline``."""

    line: int
    name: str
    argument: Pipeline | None


@dataclass(frozen=True, slots=True)
class Break:
    line: int


@dataclass(frozen=True, slots=True)
class Continue:
    line: int


Statement = Text | Action | If | With | Range | Include | Break | Continue
Block = tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A whole template: its root and what it defines by name."""

    root: Block
    defined: Mapping[str, Block]

    def variables_used(self) -> frozenset[str]:
        """Lower-cased names of all fields the template mentions, whatever they hang on."""
        names: set[str] = set()
        for block in (self.root, *self.defined.values()):
            names.update(name.lower() for name in _block_names(block))
        return frozenset(names)


def _block_names(block: Block) -> Iterator[str]:
    for statement in block:
        match statement:
            case Action():
                yield from _pipeline_names(statement.pipeline)
            case If():
                yield from _pipeline_names(statement.condition)
                yield from _block_names(statement.body)
                yield from _block_names(statement.otherwise)
            case With() | Range():
                yield from _pipeline_names(statement.subject)
                yield from _block_names(statement.body)
                yield from _block_names(statement.otherwise)
            case Include():
                if statement.argument is not None:
                    yield from _pipeline_names(statement.argument)
            case Text() | Break() | Continue():
                pass


def _pipeline_names(pipeline: Pipeline) -> Iterator[str]:
    for command in pipeline.commands:
        for operand in command.operands:
            match operand:
                case Field() | Variable():
                    yield from operand.path
                case Chain():
                    yield from _pipeline_names(operand.base)
                    yield from operand.path
                case Pipeline():
                    yield from _pipeline_names(operand)
                case Dot() | Literal() | FunctionName():
                    pass


def cut_after_response(block: Block) -> Block:
    """``block`` up to and including the first place that prints ``.Response``.

    The last turn of a legacy template ends there: what follows would close the answer that
    the model has yet to write. Conditions that only ask about ``.Response`` do not count.
    """
    return _cut(block)[0]


def _cut(block: Block) -> tuple[Block, bool]:
    kept: list[Statement] = []
    for statement in block:
        found = False
        match statement:
            case Action():
                kept.append(statement)
                found = "Response" in _pipeline_names(statement.pipeline)
            case If():
                body, found = _cut(statement.body)
                otherwise, found_otherwise = _cut(statement.otherwise)
                # A cut in the first branch drops the second one: it comes later in the text.
                kept.append(
                    If(statement.line, statement.condition, body, () if found else otherwise)
                )
                found = found or found_otherwise
            case With():
                body, found = _cut(statement.body)
                otherwise, found_otherwise = _cut(statement.otherwise)
                kept.append(
                    With(statement.line, statement.subject, body, () if found else otherwise)
                )
                found = found or found_otherwise
            case Range():
                body, found = _cut(statement.body)
                otherwise, found_otherwise = _cut(statement.otherwise)
                kept.append(
                    Range(statement.line, statement.subject, body, () if found else otherwise)
                )
                found = found or found_otherwise
            case Text() | Include() | Break() | Continue():
                kept.append(statement)
        if found:
            return tuple(kept), True
    return tuple(kept), False
