"""The vocabulary is loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.grammar.sampler import Vocabulary


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    loaded = Vocabulary(tmp_path_factory.mktemp("vocabulary") / "bytes.gguf")
    yield loaded
    loaded.close()
