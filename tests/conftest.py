"""Fixtures that every kind of test shares. Models are generated once per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent import builtin
from tests.models.library import ModelLibrary
from tests.models.live_node import LiveNode
from tests.models.ollama_store import add_model

NodeFactory = Callable[..., LiveNode]


@pytest.fixture(scope="session")
def model_library(tmp_path_factory: pytest.TempPathFactory) -> ModelLibrary:
    return ModelLibrary(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_llama(model_library: ModelLibrary) -> Path:
    """Random llama-architecture model with chat template; answers are meaningless but fixed."""
    return model_library.llama


@pytest.fixture(scope="session")
def tiny_llama_q8(model_library: ModelLibrary) -> Path:
    return model_library.llama_q8


@pytest.fixture(scope="session")
def tiny_adapter(model_library: ModelLibrary) -> Path:
    """LoRA adapter that fits ``tiny_llama``."""
    return model_library.adapter


@pytest.fixture(scope="session")
def tiny_embedding(model_library: ModelLibrary) -> Path:
    return model_library.embedding


@pytest.fixture(scope="session")
def tiny_reranker(model_library: ModelLibrary) -> Path:
    return model_library.reranker


@pytest.fixture(scope="session")
def builtin_model() -> Path:
    """The trained model with known answers."""
    return builtin.MODEL_PATH


@pytest.fixture(scope="session")
def chat_model() -> str:
    """Name of the trained model in every store made by these fixtures."""
    return builtin.NAME


@pytest.fixture(scope="session")
def embedding_model() -> str:
    return "tiny-embedding"


@pytest.fixture(scope="session")
def model_store(
    tmp_path_factory: pytest.TempPathFactory,
    model_library: ModelLibrary,
    builtin_model: Path,
    chat_model: str,
    embedding_model: str,
) -> Path:
    """Ollama-layout store shared by read-only tests."""
    store = tmp_path_factory.mktemp("store")
    fill_store(store, model_library, builtin_model, chat_model, embedding_model)
    return store


def fill_store(
    store: Path, library: ModelLibrary, trained: Path, chat_name: str, embedding_name: str
) -> None:
    """Install the trained model, the tiny llama and both encoders."""
    add_model(store, chat_name, trained)
    add_model(store, "tiny-llama", library.llama)
    add_model(store, "tiny-llama:q8_0", library.llama_q8)
    add_model(store, "tiny-llama:adapted", library.llama, adapter=library.adapter)
    add_model(store, embedding_name, library.embedding, family="bert")
    add_model(store, "tiny-reranker", library.reranker, family="bert")


@pytest.fixture
def private_store(
    tmp_path: Path,
    model_library: ModelLibrary,
    builtin_model: Path,
    chat_model: str,
    embedding_model: str,
) -> Path:
    """A store of the test's own, to write into."""
    store = tmp_path / "store"
    fill_store(store, model_library, builtin_model, chat_model, embedding_model)
    return store


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory, model_store: Path) -> Iterator[LiveNode]:
    """One live node for all tests that leave it as they found it."""
    home = tmp_path_factory.mktemp("node") / "home"
    with LiveNode(home=home, models=model_store) as live:
        yield live


@pytest.fixture(scope="session")
def node_url(node: LiveNode) -> str:
    return node.url


@pytest.fixture
def start_node(tmp_path: Path, private_store: Path) -> Iterator[NodeFactory]:
    """Start nodes of the test's own: ``start_node("--flag", environment={...})``."""
    count = 0
    with ExitStack() as running:

        def start(
            *arguments: str,
            environment: Mapping[str, str] | None = None,
            models: Path | None = None,
        ) -> LiveNode:
            nonlocal count
            count += 1
            live = LiveNode(
                home=tmp_path / f"node-{count}",
                models=models or private_store,
                arguments=arguments,
                environment=environment or {},
            )
            return running.enter_context(live)

        yield start
