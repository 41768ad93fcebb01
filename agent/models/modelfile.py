"""Modelfiles: parsing, rendering, and the typing of PARAMETER values. Pure.

A value is the rest of its line, or stands in ``"..."`` or three quotes on each side and may then
span lines; nothing is escaped. A closing quote counts only at the end of a line, as in Ollama.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from agent.inference.options import OPTION_NAMES, OptionValue
from agent.models.errors import InvalidModelfile

CommandName = Literal[
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
]
_COMMANDS: Final = frozenset(get_args(CommandName))
_ROLES: Final = frozenset({"system", "user", "assistant"})
RETIRED_PARAMETERS: Final = frozenset(
    {
        "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock",
        "mirostat", "mirostat_tau", "mirostat_eta", "tfs_z", "numa",
    }
)  # fmt: skip
"""Accepted in old Modelfiles and without effect; Ollama warns and drops them."""

_INTEGER_PARAMETERS: Final = frozenset(
    {
        "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep",
        "seed", "num_predict", "top_k", "repeat_last_n",
    }
)  # fmt: skip
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_INTEGER: Final = re.compile(r"[+-]?[0-9]+")

_NOT_A_COMMAND: Final = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", '
    '"renderer", "parser", "parameter", "message", or "requires"'
)
_NOT_A_ROLE: Final = 'message role must be one of "system", "user", or "assistant"'


@dataclass(frozen=True, slots=True)
class Command:
    """One line (or block). ``key`` is the parameter's name or the message's role."""

    name: CommandName
    value: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Modelfile:
    """Commands in their order; at least one is FROM when parsed."""

    commands: tuple[Command, ...]

    def all(self, name: CommandName) -> tuple[str, ...]:
        return tuple(command.value for command in self.commands if command.name == name)

    def last(self, name: CommandName) -> str | None:
        values = self.all(name)
        return values[-1] if values else None

    def parameters(self) -> dict[str, OptionValue]:
        """Typed PARAMETER values without the retired ones. Raises InvalidModelfile."""
        return parse_parameters(
            (command.key, command.value) for command in self.commands if command.name == "parameter"
        )


def decode_modelfile(data: bytes) -> str:
    """Text of a Modelfile that may start with a UTF-8 or UTF-16 byte-order mark."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


def parse_modelfile(text: str) -> Modelfile:
    """Raises InvalidModelfile with Ollama's words, naming the line where it knows one."""
    lines = _LineReader(text.removeprefix("\ufeff"))
    commands: list[Command] = []
    while (line := lines.next()) is not None:
        stripped = line.lstrip(" \t")
        if not stripped or stripped.startswith("#"):
            continue
        commands.append(_command(stripped, lines))
    if not any(command.name == "from" for command in commands):
        raise InvalidModelfile("no FROM line")
    return Modelfile(tuple(commands))


def render_modelfile(modelfile: Modelfile) -> str:
    """Text that parses to the same commands, one per line."""
    return "".join(f"{_render(command)}\n" for command in modelfile.commands)


def parse_parameters(pairs: Iterable[tuple[str, str]]) -> dict[str, OptionValue]:
    """Texts to values of each option's type; ``stop`` collects all its values.

    Raises InvalidModelfile for an unknown name or a value of the wrong kind.
    """
    values: dict[str, OptionValue] = {}
    stops: list[str] = []
    for name, text in pairs:
        if name in RETIRED_PARAMETERS:
            continue
        if name not in OPTION_NAMES:
            raise InvalidModelfile(f"unknown parameter '{name}'")
        if name == "stop":
            stops.append(text)
            values[name] = tuple(stops)
        else:
            values[name] = _parameter(name, text)
    return values


def format_parameters(parameters: Mapping[str, OptionValue]) -> str:
    """``parameters`` of ``/api/show``: names padded to 30 columns, strings of lists quoted."""
    lines: list[str] = []
    for name, value in sorted(parameters.items()):
        if value is None:
            continue
        if isinstance(value, (str, int, float)):
            lines.append(f"{name:<30} {_format(value)}")
        else:
            lines.extend(f'{name:<30} "{item}"' for item in value)
    return "\n".join(lines)


def parameter_commands(parameters: Mapping[str, OptionValue]) -> tuple[Command, ...]:
    """PARAMETER lines that stand for these values."""
    commands: list[Command] = []
    for name, value in sorted(parameters.items()):
        if value is None:
            continue
        items = (_format(value),) if isinstance(value, (str, int, float)) else tuple(value)
        commands.extend(Command("parameter", item, name) for item in items)
    return tuple(commands)


class _LineReader:
    """Lines of a text, where a line may end in any of the three usual ways."""

    def __init__(self, text: str) -> None:
        self._lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if self._lines[-1] == "":
            self._lines.pop()
        self.number = 0

    def next(self) -> str | None:
        if self.number == len(self._lines):
            return None
        self.number += 1
        return self._lines[self.number - 1]


def _command(line: str, lines: _LineReader) -> Command:
    word, rest = _word(line)
    name = word.lower()
    if name not in _COMMANDS:
        raise InvalidModelfile(f"(line {lines.number}): {_NOT_A_COMMAND}")
    if rest is None:
        raise InvalidModelfile("unexpected EOF")
    key = ""
    if name in ("parameter", "message"):
        key, after = _word(rest.lstrip(" \t"))
        if name == "message" and key not in _ROLES:
            raise InvalidModelfile(f"(line {lines.number}): {_NOT_A_ROLE}")
        if after is None or not key:
            raise InvalidModelfile("unexpected EOF")
        rest = after
    return Command(cast("CommandName", name), _value(rest, lines), key)


def _word(text: str) -> tuple[str, str | None]:
    """The text up to the first space, and what follows it (None without a space)."""
    for index, character in enumerate(text):
        if character in " \t":
            return text[:index], text[index + 1 :]
    return text, None


def _value(first: str, lines: _LineReader) -> str:
    buffer = first
    while (value := _unquoted(buffer.strip(" \t\n"))) is None:
        line = lines.next()
        if line is None:
            raise InvalidModelfile("unexpected EOF")
        buffer = f"{buffer}\n{line}"
    return value


def _unquoted(text: str) -> str | None:
    """What stands between the quotes; None while the closing ones are missing."""
    if text.startswith('"""'):
        return text[3:-3] if len(text) >= 6 and text.endswith('"""') else None
    if text.startswith('"'):
        return text[1:-1] if len(text) >= 2 and text.endswith('"') else None
    return text


def _render(command: Command) -> str:
    words = [command.name.upper()]
    if command.key:
        words.append(command.key)
    words.append(_quoted(command.value))
    return " ".join(words)


def _quoted(value: str) -> str:
    if value and value == value.strip(" \t") and "\n" not in value and not value.startswith('"'):
        return value
    if '"' not in value and value:
        return f'"{value}"'
    return f'"""{value}"""'


def _parameter(name: str, text: str) -> OptionValue:
    if name in _INTEGER_PARAMETERS:
        if _INTEGER.fullmatch(text) is None or not -(2**63) <= int(text[:32]) < 2**63:
            raise InvalidModelfile(f"invalid int value {text}")
        return int(text[:32])
    if name == "use_mmap":
        if text not in _TRUE | _FALSE:
            raise InvalidModelfile(f"invalid bool value {text}")
        return text in _TRUE
    try:
        number = float(text)
    except ValueError:
        raise InvalidModelfile(f"invalid float value {text}") from None
    if number != number or abs(number) == float("inf"):
        raise InvalidModelfile(f"invalid float value {text}")
    return number


def _format(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)
