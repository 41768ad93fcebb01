"""Somebody else's Ollama directory: served as it is, and left as it was."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.asking import CHAT, GREEDY, Asker, asking, known, known_body
from tests.conftest import NodeFactory
from tests.models.live_node import LiveNode

WITHOUT_ROOT_RIGHTS = (
    "setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all",
)  # fmt: skip


def digest_of(folder: Path) -> str:
    """Over every path, kind, mode, modification time and content below ``folder``."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        line: list[object] = [path.relative_to(folder), status.st_mode, status.st_mtime_ns]
        if path.is_file():
            line.append(hashlib.sha256(path.read_bytes()).hexdigest())
        total.update(repr(line).encode())
    return total.hexdigest()


async def use_everything(asker: Asker) -> None:
    """All that a client does who changes nothing."""
    tags = (await asker.http.get("/api/tags")).json()["models"]
    assert len(tags) >= 6
    for row in tags:
        shown = await asker.post("/api/show", {"model": row["name"], "verbose": True})
        assert shown.status_code == 200
    name = "capital-france-ask"
    assert await asker.text("/api/chat", known_body(name)) == known(name)[1]
    for name in ("tiny-llama", "tiny-llama:q8_0", "tiny-llama:adapted"):
        await asker.generate(model=name, prompt="Hi", options=GREEDY | {"num_predict": 2})
    await asker.ask("/api/embed", {"model": "tiny-embedding", "input": ["a", "b"]})
    assert (await asker.http.get("/api/ps")).status_code == 200


async def test_serving_changes_nothing_in_the_store(
    start_node: NodeFactory, private_store: Path
) -> None:
    before = digest_of(private_store)
    node = start_node()
    async with asking(node) as asker:
        await use_everything(asker)
    assert node.stop() == 0
    assert digest_of(private_store) == before


@contextmanager
def unwritable(folder: Path) -> Generator[None]:
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(modes[path] & 0o555)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(modes[path])


async def test_a_read_only_store_is_served_and_changes_are_refused_in_words(
    tmp_path: Path, private_store: Path
) -> None:
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which(WITHOUT_ROOT_RIGHTS[0]) is None:
            pytest.skip("root may write everywhere, and setpriv is missing")
        prefix = WITHOUT_ROOT_RIGHTS
    live = LiveNode(home=tmp_path / "home", models=private_store, prefix=prefix)
    data = b"some bytes"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with unwritable(private_store), live:
        before = digest_of(private_store)
        async with asking(live) as asker:
            await use_everything(asker)
            refusals = {
                "create": await asker.post(
                    "/api/create", {"model": "new", "from": CHAT, "system": "Hi", "stream": False}
                ),
                "copy": await asker.post("/api/copy", {"source": CHAT, "destination": "new"}),
                "delete": await asker.http.request("DELETE", "/api/delete", json={"model": CHAT}),
                "blob": await asker.http.post(f"/api/blobs/{digest}", content=data),
            }
            streamed = await asker.post(
                "/api/create", {"model": "new", "from": CHAT, "system": "Hi"}
            )
            for name, answer in refusals.items():
                assert answer.status_code == 500, (name, answer.text)
                assert "Permission denied" in answer.json()["error"], name
                assert "internal error" not in answer.json()["error"], name
            assert "Permission denied" in streamed.text.splitlines()[-1]
            assert await asker.text("/api/chat", known_body("count-10")) == known("count-10")[1]
        assert digest_of(private_store) == before
