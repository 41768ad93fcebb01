"""Template text to tokens: plain text and the insides of ``{{ ... }}``.

Syntax as documented for Go's text/template package: trim markers need a blank between dash
and content, a comment stands alone in its action, blanks separate arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from agent.inference.chat.errors import TemplateError

TokenKind = Literal[
    "string", "raw", "char", "number", "field", "dot", "variable", "identifier",
    "declare", "assign", "pipe", "open", "close", "comma", "end",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    """``spaced`` says whether a blank stands before it, which decides between an argument and
    a field of what came before."""

    kind: TokenKind
    text: str
    line: int
    spaced: bool


@dataclass(frozen=True, slots=True)
class TextPiece:
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class ActionPiece:
    """The tokens between the braces; the last one is always ``end``."""

    line: int
    tokens: tuple[Token, ...]


Piece = TextPiece | ActionPiece

_BLANK: Final = " \t\r\n"
_TOKEN: Final = re.compile(
    r"""
      (?P<string>"(?:\\.|[^"\\\n])*")
    | (?P<raw>`[^`]*`)
    | (?P<char>'(?:\\.|[^'\\\n])+')
    | (?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+
        |(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?))
    | (?P<field>\.[^\W\d]\w*)
    | (?P<dot>\.)
    | (?P<variable>\$\w*)
    | (?P<identifier>[^\W\d]\w*)
    | (?P<declare>:=)
    | (?P<assign>=)
    | (?P<pipe>\|)
    | (?P<open>\()
    | (?P<close>\))
    | (?P<comma>,)
    """,
    re.VERBOSE,
)
_KINDS: Final[dict[str, TokenKind]] = {
    "string": "string", "raw": "raw", "char": "char", "number": "number", "field": "field",
    "dot": "dot", "variable": "variable", "identifier": "identifier", "declare": "declare",
    "assign": "assign", "pipe": "pipe", "open": "open", "close": "close", "comma": "comma",
}  # fmt: skip


def pieces(source: str) -> Iterator[Piece]:
    """Cut ``source`` at its actions, applying trim markers and dropping comments.

    Raises TemplateError for an action that does not end or holds an unknown character.
    """
    position = 0
    line = 1
    trim = False
    while True:
        start = source.find("{{", position)
        raw_text = source[position:] if start < 0 else source[position:start]
        text = raw_text.lstrip(_BLANK) if trim else raw_text
        text_line = line + raw_text[: len(raw_text) - len(text)].count("\n")
        if start < 0:
            if text:
                yield TextPiece(text_line, text)
            return
        inside = start + 2
        if source[inside : inside + 1] == "-" and source[inside + 1 : inside + 2] in set(_BLANK):
            inside += 1
            text = text.rstrip(_BLANK)
        if text:
            yield TextPiece(text_line, text)
        line += raw_text.count("\n")
        action_line = line
        comment = _comment_end(source, inside, action_line)
        if comment is not None:
            position, trim = comment
        else:
            tokens, position, trim = _tokens(source, inside, action_line)
            yield ActionPiece(action_line, tokens)
        line += source.count("\n", start, position)


def _comment_end(source: str, inside: int, line: int) -> tuple[int, bool] | None:
    start = inside
    while source[start : start + 1] and source[start] in _BLANK:
        start += 1
    if not source.startswith("/*", start):
        return None
    close = source.find("*/", start + 2)
    if close < 0:
        raise TemplateError("unclosed comment", line)
    end = close + 2
    after = end
    while source[after : after + 1] and source[after] in _BLANK:
        after += 1
    if source.startswith("-}}", after) and after > end:
        return after + 3, True
    if source.startswith("}}", end):
        return end + 2, False
    raise TemplateError("comment ends before closing delimiter", line)


def _tokens(source: str, inside: int, line: int) -> tuple[tuple[Token, ...], int, bool]:
    tokens: list[Token] = []
    position = inside
    spaced = False
    while True:
        if position >= len(source):
            raise TemplateError("unclosed action", line)
        character = source[position]
        if character in _BLANK:
            if character == "\n":
                line += 1
            spaced = True
            position += 1
            continue
        if spaced and source.startswith("-}}", position):
            tokens.append(Token("end", "", line, spaced))
            return tuple(tokens), position + 3, True
        if source.startswith("}}", position):
            tokens.append(Token("end", "", line, spaced))
            return tuple(tokens), position + 2, False
        found = _TOKEN.match(source, position)
        if found is None or found.lastgroup is None:
            if character in "\"'`":
                raise TemplateError("unterminated quoted string", line)
            raise TemplateError(f"unexpected {character!r} in an action", line)
        tokens.append(Token(_KINDS[found.lastgroup], found.group(), line, spaced))
        line += found.group().count("\n")
        spaced = False
        position = found.end()
