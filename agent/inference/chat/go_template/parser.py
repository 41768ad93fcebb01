"""Tokens to tree, by recursive descent with a depth limit."""

from __future__ import annotations

import re
from typing import Final

from agent.inference.chat.errors import TemplateError, TemplateLimit
from agent.inference.chat.go_template import syntax
from agent.inference.chat.go_template.lexer import ActionPiece, Piece, TextPiece, Token, pieces

SOURCE_LIMIT_CHARACTERS: Final = 1 << 20
"""Longest template text; the longest known real one is a twentieth of it."""
DEPTH_LIMIT: Final = 64
"""Blocks within blocks, and parentheses within parentheses."""

FUNCTION_NAMES: Final = frozenset(
    {
        "and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "index", "slice", "len", "print",
        "printf", "println", "html", "js", "urlquery", "call", "json", "currentDate",
        "yesterdayDate", "toTypeScriptType",
    }
)  # fmt: skip

_ESCAPE: Final = re.compile(
    r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL
)
_SIMPLE_ESCAPES: Final = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", '"': '"', "'": "'",
}  # fmt: skip


def parse_document(source: str) -> syntax.Document:
    """Read a template. Raises TemplateError naming the line of the first mistake."""
    if len(source) > SOURCE_LIMIT_CHARACTERS:
        raise TemplateLimit(f"template is longer than {SOURCE_LIMIT_CHARACTERS} characters")
    return _Parser(source).document()


class _Parser:
    def __init__(self, source: str) -> None:
        self._pieces: list[Piece] = list(pieces(source))
        self._position = 0
        self._depth = 0
        self._loops = 0
        self._defined: dict[str, syntax.Block] = {}
        # Scopes of declared variables, so that a misspelt one is found before it is needed.
        self._variables: list[str] = ["$"]

    def document(self) -> syntax.Document:
        root, closing = self._block()
        if closing is not None:
            raise TemplateError(f"unexpected {{{{{_word(closing)}}}}}", closing.line)
        return syntax.Document(root, self._defined)

    # -- statements --

    def _block(self) -> tuple[syntax.Block, ActionPiece | None]:
        """Statements up to ``end`` or ``else``, which is taken and returned, or the end."""
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise TemplateLimit(f"blocks are nested deeper than {DEPTH_LIMIT}", self._line())
        statements: list[syntax.Statement] = []
        while self._position < len(self._pieces):
            piece = self._pieces[self._position]
            if isinstance(piece, TextPiece):
                self._position += 1
                statements.append(syntax.Text(piece.line, piece.text))
                continue
            first = piece.tokens[0]
            if first.kind == "identifier" and first.text in ("end", "else"):
                self._depth -= 1
                self._position += 1
                return tuple(statements), piece
            self._position += 1
            statement = self._statement(piece)
            if statement is not None:
                statements.append(statement)
        self._depth -= 1
        return tuple(statements), None

    def _line(self) -> int:
        at = min(self._position, len(self._pieces) - 1)
        return self._pieces[at].line if at >= 0 else 1

    def _statement(self, piece: ActionPiece) -> syntax.Statement | None:
        reader = _ActionReader(piece, self._variables)
        first = reader.peek()
        word = first.text if first.kind == "identifier" else ""
        line = piece.line
        if word in ("if", "with", "range"):
            reader.take()
            return self._control(word, reader, line)
        if word == "define":
            reader.take()
            self._define(reader.string_argument("define"), reader, line)
            return None
        if word == "block":
            reader.take()
            name = reader.string_argument("block")
            argument = reader.pipeline()
            reader.finish()
            self._define_body(name, line)
            return syntax.Include(line, name, argument)
        if word == "template":
            reader.take()
            name = reader.string_argument("template")
            argument = None if reader.at_end() else reader.pipeline()
            reader.finish()
            return syntax.Include(line, name, argument)
        if word in ("break", "continue"):
            reader.take()
            reader.finish()
            if not self._loops:
                raise TemplateError(f"{{{{{word}}}}} outside {{{{range}}}}", line)
            return syntax.Break(line) if word == "break" else syntax.Continue(line)
        pipeline = reader.pipeline()
        reader.finish()
        return syntax.Action(line, pipeline)

    def _define(self, name: str, reader: _ActionReader, line: int) -> None:
        reader.finish()
        self._define_body(name, line)

    def _define_body(self, name: str, line: int) -> None:
        outer_variables, outer_loops = self._variables, self._loops
        self._variables, self._loops = ["$"], 0
        body, closing = self._block()
        if closing is None or _word(closing) != "end":
            raise TemplateError(f"template {name!r} is not closed by {{{{end}}}}", line)
        self._finish_end(closing)
        self._variables, self._loops = outer_variables, outer_loops
        self._defined[name] = body

    def _finish_end(self, closing: ActionPiece) -> None:
        reader = _ActionReader(closing, self._variables)
        reader.take()
        reader.finish()

    def _control(self, word: str, reader: _ActionReader, line: int) -> syntax.Statement:
        mark = len(self._variables)
        subject = reader.pipeline(ranges=word == "range")
        reader.finish()
        if word == "range":
            self._loops += 1
        body, closing = self._block()
        if word == "range":
            self._loops -= 1
        if closing is None:
            raise TemplateError(f"{{{{{word}}}}} is not closed by {{{{end}}}}", line)
        otherwise: syntax.Block = ()
        if _word(closing) == "else":
            otherwise = self._otherwise(word, closing)
        else:
            self._finish_end(closing)
        del self._variables[mark:]
        if word == "if":
            return syntax.If(line, subject, body, otherwise)
        if word == "with":
            return syntax.With(line, subject, body, otherwise)
        return syntax.Range(line, subject, body, otherwise)

    def _otherwise(self, word: str, piece: ActionPiece) -> syntax.Block:
        reader = _ActionReader(piece, self._variables)
        reader.take()
        following = reader.peek()
        if following.kind == "identifier" and following.text == word and word in ("if", "with"):
            # ``else if`` shares the {{end}} of the statement it continues.
            reader.take()
            self._depth += 1
            if self._depth > DEPTH_LIMIT:
                raise TemplateLimit(f"blocks are nested deeper than {DEPTH_LIMIT}", piece.line)
            nested = self._control(word, reader, piece.line)
            self._depth -= 1
            return (nested,)
        reader.finish()
        block, closing = self._block()
        if closing is None or _word(closing) != "end":
            raise TemplateError("{{else}} is not closed by {{end}}", piece.line)
        self._finish_end(closing)
        return block


def _word(piece: ActionPiece) -> str:
    return piece.tokens[0].text


class _ActionReader:
    """Reads the tokens of one action."""

    def __init__(self, piece: ActionPiece, variables: list[str]) -> None:
        self._tokens = piece.tokens
        self._position = 0
        self._variables = variables
        self._depth = 0

    def peek(self) -> Token:
        return self._tokens[self._position]

    def take(self) -> Token:
        token = self._tokens[self._position]
        if token.kind != "end":
            self._position += 1
        return token

    def at_end(self) -> bool:
        return self.peek().kind == "end"

    def finish(self) -> None:
        token = self.peek()
        if token.kind != "end":
            raise TemplateError(f"unexpected {token.text!r}", token.line)

    def string_argument(self, word: str) -> str:
        token = self.take()
        if token.kind not in ("string", "raw"):
            raise TemplateError(f"{{{{{word}}}}} needs a quoted name", token.line)
        return _unquoted(token)

    def pipeline(self, *, ranges: bool = False) -> syntax.Pipeline:
        line = self.peek().line
        targets, declares = self._targets(ranges)
        commands: list[syntax.Command] = []
        while True:
            commands.append(self._command())
            if self.peek().kind != "pipe":
                break
            self.take()
        for command in commands[1:]:
            first = command.operands[0]
            if isinstance(first, (syntax.Literal, syntax.Dot)):
                raise TemplateError("a pipeline flows into something not a function", command.line)
        if declares:
            self._variables.extend(targets)
        return syntax.Pipeline(line, tuple(commands), targets, declares)

    def _targets(self, ranges: bool) -> tuple[tuple[str, ...], bool]:
        if self.peek().kind != "variable":
            return (), False
        following = self._tokens[self._position + 1]
        names = [self.peek().text]
        width = 2
        if ranges and following.kind == "comma":
            second = self._tokens[self._position + 2]
            if second.kind != "variable":
                raise TemplateError("range needs a variable after the comma", second.line)
            names.append(second.text)
            following = self._tokens[self._position + 3]
            width = 4
        if following.kind not in ("declare", "assign"):
            if len(names) == 2:
                raise TemplateError("range variables need := or =", following.line)
            return (), False
        self._position += width
        declares = following.kind == "declare"
        if not declares:
            for name in names:
                self._known(name, following.line)
        return tuple(names), declares

    def _known(self, name: str, line: int) -> None:
        if name not in self._variables:
            raise TemplateError(f"undefined variable {name!r}", line)

    def _command(self) -> syntax.Command:
        line = self.peek().line
        operands: list[syntax.Operand] = []
        while True:
            token = self.peek()
            if token.kind in ("end", "pipe", "close"):
                break
            if operands and not token.spaced:
                raise TemplateError(f"unexpected {token.text!r} after an operand", token.line)
            operands.append(self._operand())
        if not operands:
            raise TemplateError("missing value for command", line)
        if len(operands) > 1 and isinstance(
            operands[0], (syntax.Literal, syntax.Dot, syntax.Pipeline)
        ):
            raise TemplateError("cannot give arguments to something not a function", line)
        return syntax.Command(line, tuple(operands))

    def _operand(self) -> syntax.Operand:
        token = self.take()
        match token.kind:
            case "dot":
                return syntax.Dot(token.line)
            case "field":
                return syntax.Field(token.line, (token.text[1:], *self._fields()))
            case "variable":
                self._known(token.text, token.line)
                return syntax.Variable(token.line, token.text, self._fields())
            case "identifier":
                return self._identifier(token)
            case "string" | "raw":
                return syntax.Literal(token.line, _unquoted(token))
            case "char":
                text = _unescaped(token.text[1:-1], token.line)
                if len(text) != 1:
                    raise TemplateError("a character constant holds one character", token.line)
                return syntax.Literal(token.line, ord(text))
            case "number":
                return syntax.Literal(token.line, _number(token))
            case "open":
                return self._parenthesised(token)
            case "declare" | "assign" | "pipe" | "close" | "comma" | "end":
                raise TemplateError(f"unexpected {token.text or '}}'!r}", token.line)

    def _identifier(self, token: Token) -> syntax.Operand:
        if token.text in ("true", "false"):
            return syntax.Literal(token.line, token.text == "true")
        if token.text == "nil":
            return syntax.Literal(token.line, None)
        if token.text not in FUNCTION_NAMES:
            raise TemplateError(f"function {token.text!r} not defined", token.line)
        return syntax.FunctionName(token.line, token.text)

    def _parenthesised(self, token: Token) -> syntax.Operand:
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise TemplateLimit(f"parentheses are nested deeper than {DEPTH_LIMIT}", token.line)
        inner = self.pipeline()
        closing = self.take()
        if closing.kind != "close":
            raise TemplateError("unclosed left parenthesis", token.line)
        self._depth -= 1
        fields = self._fields()
        return syntax.Chain(token.line, inner, fields) if fields else inner

    def _fields(self) -> tuple[str, ...]:
        names: list[str] = []
        while self.peek().kind == "field" and not self.peek().spaced:
            names.append(self.take().text[1:])
        return tuple(names)


def _unquoted(token: Token) -> str:
    if token.kind == "raw":
        return token.text[1:-1]
    return _unescaped(token.text[1:-1], token.line)


def _unescaped(text: str, line: int) -> str:
    if "\\" not in text:
        return text

    def replace(found: re.Match[str]) -> str:
        escape = found.group(1)
        simple = _SIMPLE_ESCAPES.get(escape)
        if simple is not None:
            return simple
        if escape[0] in "xuU" and len(escape) > 1:
            code = int(escape[1:], 16)
        elif escape.isdigit():
            code = int(escape, 8)
        else:
            raise TemplateError(f"unknown escape \\{escape}", line)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise TemplateError(f"\\{escape} is not a character", line)
        return chr(code)

    return _ESCAPE.sub(replace, text)


def _number(token: Token) -> int | float:
    text = token.text.replace("_", "")
    try:
        if re.fullmatch(r"[+-]?\d+", text):
            return int(text, 8) if re.fullmatch(r"[+-]?0\d+", text) else int(text)
        if re.match(r"[+-]?0[xXbBoO]", text):
            return int(text, 0)
        return float(text)
    except ValueError as error:
        raise TemplateError(f"bad number {token.text!r}", token.line) from error
