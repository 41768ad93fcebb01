"""Modelfile syntax, its error texts, and typed parameters."""

from __future__ import annotations

import codecs

import pytest

from agent.models.errors import InvalidModelfile
from agent.models.modelfile import (
    Command,
    decode_modelfile,
    format_parameters,
    parse_modelfile,
    render_modelfile,
)

WHOLE = '''\
# a comment
FROM llama3:8b

parameter temperature 0.5
PARAMETER num_ctx 4096
PARAMETER stop "<|end|>"
PARAMETER stop ###
PARAMETER use_mmap false
TEMPLATE """{{ .System }}
{{ .Prompt }} "quoted" """
SYSTEM "You are
a pirate."
ADAPTER ./a.gguf
LICENSE """
Free.
"""
MESSAGE user hello there
MESSAGE assistant """hi
you"""
RENDERER qwen3
PARSER qwen3
REQUIRES 0.14.0
'''


def test_every_command_is_read() -> None:
    modelfile = parse_modelfile(WHOLE)
    assert modelfile.last("from") == "llama3:8b"
    assert modelfile.parameters() == {
        "temperature": 0.5,
        "num_ctx": 4096,
        "stop": ("<|end|>", "###"),
        "use_mmap": False,
    }
    assert modelfile.last("template") == '{{ .System }}\n{{ .Prompt }} "quoted" '
    assert modelfile.last("system") == "You are\na pirate."
    assert modelfile.last("license") == "\nFree.\n"
    assert modelfile.commands[-5:-3] == (
        Command("message", "hello there", "user"),
        Command("message", "hi\nyou", "assistant"),
    )
    assert parse_modelfile(render_modelfile(modelfile)) == modelfile


def test_windows_line_ends_and_byte_order_marks_are_read() -> None:
    text = 'FROM a\r\nSYSTEM """x\r\ny"""\r\n'
    expected = (Command("from", "a"), Command("system", "x\ny"))
    for data in (
        text.encode(),
        codecs.BOM_UTF8 + text.encode(),
        codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    ):
        assert parse_modelfile(decode_modelfile(data)).commands == expected


def test_a_hash_inside_a_value_is_no_comment() -> None:
    assert parse_modelfile("FROM a\nSYSTEM be # brief").last("system") == "be # brief"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no FROM line"),
        ("SYSTEM x", "no FROM line"),
        (
            "FROM a\nBADCOMMAND x",
            '(line 2): command must be one of "from", "license", "template", "system", "adapter", '
            '"draft", "renderer", "parser", "parameter", "message", or "requires"',
        ),
        (
            "FROM a\nMESSAGE king hi",
            '(line 2): message role must be one of "system", "user", or "assistant"',
        ),
        ("FROM", "unexpected EOF"),
        ("FROM a\nPARAMETER top_k", "unexpected EOF"),
        ("FROM a\nMESSAGE user", "unexpected EOF"),
        ('FROM a\nSYSTEM """open', "unexpected EOF"),
        ('FROM a\nSYSTEM "open\nmore', "unexpected EOF"),
    ],
)
def test_errors_have_the_words_clients_know(text: str, message: str) -> None:
    with pytest.raises(InvalidModelfile) as caught:
        parse_modelfile(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense 1", "unknown parameter 'nonsense'"),
        ("top_k 1.5", "invalid int value 1.5"),
        ("num_ctx 99999999999999999999", "invalid int value 99999999999999999999"),
        ("temperature warm", "invalid float value warm"),
        ("temperature nan", "invalid float value nan"),
        ("use_mmap perhaps", "invalid bool value perhaps"),
    ],
)
def test_parameter_values_must_have_their_type(line: str, message: str) -> None:
    with pytest.raises(InvalidModelfile) as caught:
        parse_modelfile(f"FROM a\nPARAMETER {line}").parameters()
    assert str(caught.value) == message


def test_retired_parameters_are_dropped() -> None:
    assert parse_modelfile("FROM a\nPARAMETER mirostat 1").parameters() == {}


def test_parameters_are_shown_in_columns() -> None:
    assert format_parameters({"use_mmap": True, "top_p": 0.9, "num_gpu": None}) == (
        "top_p                          0.9\nuse_mmap                       true"
    )
