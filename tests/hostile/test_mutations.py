"""The generator of hostile files keeps its promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.layout import read_layout
from tests.hostile.mutations import (
    SIZE_LIMIT_BYTES,
    HostileFile,
    hostile_files,
    replace_header,
    write_sound_file,
)
from tests.models import reference


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sound_file(tmp_path_factory.mktemp("hostile") / "sound.gguf")


@pytest.fixture(scope="module")
def files(sound: Path) -> list[HostileFile]:
    return list(hostile_files(sound.read_bytes()))


def test_there_are_at_least_two_hundred_files(files: list[HostileFile]) -> None:
    assert len(files) >= 200


def test_every_file_differs_from_every_other_and_from_the_sound_one(
    files: list[HostileFile], sound: Path
) -> None:
    assert len({file.name for file in files}) == len(files)
    contents = {file.data for file in files}
    assert len(contents) == len(files)
    assert sound.read_bytes() not in contents


def test_no_file_is_large(files: list[HostileFile]) -> None:
    assert max(len(file.data) for file in files) <= SIZE_LIMIT_BYTES


def test_the_files_are_the_same_in_every_run(files: list[HostileFile], sound: Path) -> None:
    assert list(hostile_files(sound.read_bytes())) == files


def test_the_file_they_start_from_is_sound(sound: Path) -> None:
    (answer,) = reference.greedy(sound, ["The quick"], limit=4, context=128)
    assert answer.tokens


def test_an_unchanged_header_is_rebuilt_byte_by_byte(sound: Path) -> None:
    data = sound.read_bytes()
    layout = read_layout(data)
    keys = data[24 : layout.tensors_at]
    tensors = data[layout.tensors_at : layout.tensors[-1].end]
    assert replace_header(data, layout, keys, len(layout.keys), tensors) == data
