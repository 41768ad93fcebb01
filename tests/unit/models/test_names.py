"""Model names: the suffix that means "not hosted", and what is written back."""

from __future__ import annotations

import pytest

from agent.models.errors import InvalidName
from agent.models.names import ModelName, parse_name
from agent.models.store import Store


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("m", "m:latest"),
        ("m:local", "m:latest"),
        ("m:LOCAL", "m:latest"),
        ("m:7b:local", "m:7b"),
        ("user/m:local", "user/m:latest"),
        ("http://host:5000/user/m:local", "host:5000/user/m:latest"),
        ("m:localized", "m:localized"),
        ("local", "local:latest"),
        ("m:local:local", "m:local:local"),
    ],
)
def test_the_local_suffix_is_no_part_of_the_name(text, short):
    assert parse_name(text).short == short
    assert parse_name(short) == parse_name(text)


def test_a_tag_called_local_is_written_so_that_it_is_found_again():
    name = ModelName("registry.ollama.ai", "library", "m", "local")
    assert parse_name(name.short) == parse_name(name.full) == name


@pytest.mark.parametrize("text", [":local", "m::local", "m@sha256:abc", "a/b/c/d", ""])
def test_what_remains_must_be_a_name(text):
    with pytest.raises(InvalidName):
        parse_name(text)


def test_a_store_lists_a_tag_called_local_under_its_own_name(tmp_path):
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "m" / "local"
    manifest.parent.mkdir(parents=True)
    manifest.write_bytes(b"{}")
    assert [name.tag for name in Store(tmp_path, tmp_path / "incoming").names()] == ["local"]
