"""Properties of names and Modelfiles."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from agent.models.errors import InvalidGguf, InvalidModelfile, InvalidName
from agent.models.gguf import parse_bytes
from agent.models.modelfile import parse_modelfile, render_modelfile
from agent.models.names import ModelName, parse_name

first = st.sampled_from("abcXYZ019_")
part = st.builds(
    lambda head, tail: head + tail, first, st.text(st.sampled_from("abXY01_-."), max_size=79)
)
namespace = part.map(lambda text: text.replace(".", "-"))
host = st.builds(lambda name, port: f"{name}:{port}" if port else name, part, st.integers(0, 65535))
names = st.builds(ModelName, host, namespace, part, part)


@given(names)
def test_a_full_name_reads_back(name: ModelName) -> None:
    assert parse_name(name.full) == name
    assert parse_name(f"https://{name.full}") == name


@given(names, st.booleans(), st.booleans(), st.booleans())
def test_a_short_name_reads_back(
    name: ModelName, default_host: bool, default_namespace: bool, default_tag: bool
) -> None:
    shorter = ModelName(
        "registry.ollama.ai" if default_host else name.host,
        "library" if default_namespace else name.namespace,
        name.model,
        "latest" if default_tag else name.tag,
    )
    assert parse_name(shorter.short) == shorter
    assert len(shorter.short) <= len(shorter.full)
    assert shorter.short.endswith(f":{shorter.tag}")


@given(names)
def test_keys_ignore_case_and_nothing_else(name: ModelName) -> None:
    other = ModelName(*(piece.swapcase() for piece in
                        (name.host, name.namespace, name.model, name.tag)))  # fmt: skip
    assert other.key == name.key
    assert ModelName(name.host, name.namespace, name.model, f"{name.tag}x").key != name.key


@given(st.text())
def test_any_text_is_a_name_or_is_refused(text: str) -> None:
    try:
        name = parse_name(text)
    except InvalidName:
        pass
    else:
        assert parse_name(name.full) == name
        assert "/" not in name.model + name.tag + name.namespace
        assert not {"..", "."} & {name.model, name.tag, name.namespace, name.host}


lines = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.builds(
            lambda word, value: f"{word} {value}",
            st.sampled_from(
                ["FROM", "from", "SYSTEM", "Template", "LICENSE", "PARAMETER stop",
                 "PARAMETER top_k", "MESSAGE user", "MESSAGE assistant", "ADAPTER", "#"]
            ),
            st.text(st.sampled_from('ab "\t\n\r#\\é'), max_size=20),
        ),
        st.builds(
            lambda word, value: f'{word} """{value}"""',
            st.sampled_from(["FROM", "SYSTEM", "MESSAGE system"]),
            st.text(st.sampled_from('ab "\t\n#'), max_size=20),
        ),
    ),
    max_size=8,
).map("\n".join)  # fmt: skip


@given(lines)
def test_a_modelfile_renders_to_text_that_reads_the_same(text: str) -> None:
    try:
        modelfile = parse_modelfile(text)
    except InvalidModelfile:
        return
    assert parse_modelfile(render_modelfile(modelfile)) == modelfile


@given(st.text())
def test_a_value_in_triple_quotes_is_kept(value: str) -> None:
    value = value.replace("\r", "").replace('"', "'")
    modelfile = parse_modelfile(f'FROM a\nSYSTEM """{value}"""')
    assert modelfile.last("system") == value
    assert parse_modelfile(render_modelfile(modelfile)).last("system") == value


@given(st.text())
def test_no_text_crashes_the_modelfile_parser(text: str) -> None:
    for candidate in (text, f"FROM a\n{text}", f"FROM a\nPARAMETER {text}"):
        with suppress(InvalidModelfile):
            parse_modelfile(candidate).parameters()


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_header_parser(data: bytes) -> None:
    for candidate in (data, b"GGUF\x03\0\0\0" + data):
        with suppress(InvalidGguf):
            parse_bytes(candidate)
