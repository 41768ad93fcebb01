"""The catalog over a store in a temporary directory."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.inference.errors import NotAvailable
from agent.inference.request import Message, ToolCall
from agent.models import store
from agent.models.catalog import Catalog
from agent.models.create_request import CreateRequest, create_request_from_modelfile
from agent.models.errors import (
    BlobNotFound,
    CreateFailed,
    CreateRejected,
    DigestMismatch,
    DiskFull,
    InvalidName,
    ModelNotFound,
    StoreNotWritable,
)
from agent.settings import Settings
from tests.unit.models.ggufs import adapter_file, llama_file, sha256


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", models=tmp_path / "models", node_name="test")


@pytest.fixture
def catalog(settings: Settings) -> Catalog:
    return Catalog(settings)


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def upload(catalog: Catalog, data: bytes) -> str:
    digest = sha256(data)
    await catalog.receive_blob(digest, pieces(data), len(data))
    return digest


async def create(catalog: Catalog, request: CreateRequest) -> list[str]:
    return [progress.status async for progress in catalog.create(request)]


async def tiny(catalog: Catalog, tmp_path: Path, name: str = "tiny", **more: Any) -> str:
    digest = await upload(catalog, llama_file(tmp_path / "tiny.gguf"))
    await create(catalog, CreateRequest(model=name, files={"tiny.gguf": digest}, **more))
    return digest


async def test_a_model_created_from_an_uploaded_file_resolves(
    catalog: Catalog, settings: Settings, tmp_path: Path
) -> None:
    data = llama_file(tmp_path / "tiny.gguf")
    digest = await upload(catalog, data)
    lines = await create(
        catalog,
        CreateRequest(
            model="tiny", files={"tiny.gguf": digest}, system="Be brief.",
            parameters={"temperature": 0.5, "stop": ["x", "y"]},
            messages=(Message(role="user", content="hi"),), licenses=("free",),
        ),
    )  # fmt: skip
    assert lines[0] == "parsing GGUF"
    assert lines[1] == f"using existing layer {digest}"
    assert all(line.startswith("creating new layer sha256:") for line in lines[2:-2])
    assert lines[-2:] == ["writing manifest", "success"]

    model = await catalog.resolve("tiny")
    manifest = settings.models / "manifests/registry.ollama.ai/library/tiny/latest"
    assert model.digest == sha256(manifest.read_bytes()).removeprefix("sha256:")
    assert model.weights_path.read_bytes() == data
    assert model.system == "Be brief."
    assert model.parameters == {"stop": ("x", "y"), "temperature": 0.5}
    assert model.messages == (Message(role="user", content="hi"),)
    assert model.licenses == ("free",)
    assert model.header.block_count == 2
    assert (model.family, model.quantization) == ("llama", "F32")
    assert model.capabilities == {"completion"}
    config = json.loads(
        (
            settings.models
            / "blobs"
            / json.loads(manifest.read_bytes())["config"]["digest"].replace(":", "-")
        ).read_bytes()
    )
    assert config["model_format"] == "gguf"
    assert config["model_type"] == model.parameter_size
    assert config["rootfs"]["type"] == "layers"


async def test_names_match_without_regard_to_case_and_keep_their_case(
    catalog: Catalog, tmp_path: Path
) -> None:
    await tiny(catalog, tmp_path, "MyModel:V1")
    assert (await catalog.resolve("mymodel:v1")).name.short == "MyModel:V1"
    await create(catalog, CreateRequest(model="MYMODEL:v1", from_="mymodel:v1", system="s"))
    (model,) = await catalog.list()
    assert model.name.short == "MyModel:V1"
    assert model.system == "s"


async def test_unknown_and_impossible_names_are_told_apart(catalog: Catalog) -> None:
    with pytest.raises(ModelNotFound, match="model 'absent' not found"):
        await catalog.resolve("absent")
    with pytest.raises(InvalidName):
        await catalog.resolve("no spaces allowed")


async def test_a_warm_resolve_is_well_below_a_fifth_of_a_millisecond(
    catalog: Catalog, tmp_path: Path
) -> None:
    await tiny(catalog, tmp_path)
    first = await catalog.resolve("tiny")
    best = 1.0
    for _ in range(50):
        start = time.perf_counter()
        again = await catalog.resolve("tiny")
        best = min(best, time.perf_counter() - start)
        assert again is first
    assert best < 0.0002


async def test_a_changed_manifest_is_seen_by_the_next_resolve(
    catalog: Catalog, tmp_path: Path
) -> None:
    await tiny(catalog, tmp_path)
    before = await catalog.resolve("tiny")
    await create(catalog, CreateRequest(model="tiny", from_="tiny", system="new"))
    after = await catalog.resolve("tiny")
    assert (before.system, after.system) == (None, "new")


async def test_a_base_gives_what_the_request_leaves_out(catalog: Catalog, tmp_path: Path) -> None:
    await tiny(
        catalog, tmp_path, system="old", template="{{ .Prompt }}",
        parameters={"top_k": 3, "seed": 7},
    )  # fmt: skip
    await create(
        catalog, CreateRequest(model="child", from_="tiny", system="", parameters={"top_k": 9})
    )
    child = await catalog.resolve("child")
    assert child.system is None
    assert child.parameters == {"top_k": 9, "seed": 7}
    assert child.template == "{{ .Prompt }}"
    assert child.template_overridden
    assert child.parent_model == "tiny:latest"


async def test_the_same_template_again_is_no_override(
    catalog: Catalog, settings: Settings, tmp_path: Path
) -> None:
    await tiny(catalog, tmp_path)
    assert not (await catalog.resolve("tiny")).template_overridden
    await create(
        catalog, CreateRequest(model="tiny", from_="tiny", info={"llamesh.template": "go"})
    )
    assert (await catalog.resolve("tiny")).template_source == "go"
    with pytest.raises(CreateRejected, match="auto, go, jinja"):
        await create(
            catalog, CreateRequest(model="t", from_="tiny", info={"llamesh.template": "php"})
        )


async def test_a_bad_template_is_refused_with_its_reason(
    settings: Settings, tmp_path: Path
) -> None:
    def validate(text: str) -> None:
        raise ValueError(f"unclosed action in {text}")

    catalog = Catalog(settings, validate_template=validate)
    await tiny(catalog, tmp_path)
    with pytest.raises(CreateRejected, match=r"^template error: unclosed action"):
        await create(catalog, CreateRequest(model="t", from_="tiny", template="{{"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (CreateRequest(model="a b", from_="tiny"), "invalid model name"),
        (CreateRequest(model="m"), "neither 'from' or 'files' was specified"),
        (CreateRequest(model="m", from_="tiny", files={"a": "b"}), "'from' or 'files', not both"),
        (CreateRequest(model="m", files={"/abs.gguf": "sha256:" + "0" * 64}), "must be relative"),
        (CreateRequest(model="m", files={"a/../../b": "sha256:" + "0" * 64}), "must be relative"),
        (CreateRequest(model="m", files={"a.gguf": "sha256:12"}), "invalid digest format"),
        (CreateRequest(model="m", files={"a.gguf": "sha256:" + "0" * 64}), "not found: upload it"),
        (
            CreateRequest(model="m", from_="tiny", adapters={"a": "x", "b": "y"}),
            "only one adapter is currently supported",
        ),
        (
            CreateRequest(model="m", from_="tiny", parameters={"top_k": "many"}),
            'option "top_k" must be of type integer',
        ),
        (
            CreateRequest(model="m", from_="tiny", messages=(Message(role="king"),)),
            "message role must be one of",
        ),
    ],
)
async def test_impossible_requests_are_refused_with_words(
    catalog: Catalog, tmp_path: Path, request_: CreateRequest, message: str
) -> None:
    await tiny(catalog, tmp_path)
    with pytest.raises(CreateRejected, match=message):
        await create(catalog, request_)
    with pytest.raises((ModelNotFound, InvalidName)):
        await catalog.resolve(request_.model)


async def test_what_needs_a_registry_or_a_quantizer_is_not_available(
    catalog: Catalog, tmp_path: Path
) -> None:
    await tiny(catalog, tmp_path)
    with pytest.raises(NotAvailable, match="not in the local store"):
        await create(catalog, CreateRequest(model="m", from_="elsewhere"))
    with pytest.raises(NotAvailable, match="quantizing"):
        await create(catalog, CreateRequest(model="m", from_="tiny", quantize="q4_0"))


async def test_files_that_are_no_whole_gguf_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    junk = await upload(catalog, b"\x10\0\0\0\0\0\0\0{}")
    part = await upload(catalog, llama_file(tmp_path / "p.gguf", **{"split.count": 2}))
    broken = await upload(catalog, llama_file(tmp_path / "t.gguf")[:300])
    adapter = await upload(catalog, adapter_file(tmp_path / "a.gguf"))
    for files, message in (
        ({"model.safetensors": junk}, "safetensors models cannot be converted"),
        ({"model.gguf": junk}, "supplied file was not in GGUF format"),
        ({"m.gguf": part}, "split GGUF set"),
        ({"m.gguf": broken}, "invalid GGUF file m.gguf: the file ends at byte 300"),
        ({"m.gguf": adapter}, "is an adapter"),
    ):
        with pytest.raises(CreateRejected, match=message):
            await create(catalog, CreateRequest(model="m", files=files))


async def test_an_adapter_must_be_one_and_fit_the_base(catalog: Catalog, tmp_path: Path) -> None:
    weights = await tiny(catalog, tmp_path)
    good = await upload(catalog, adapter_file(tmp_path / "good.gguf"))
    other = await upload(catalog, adapter_file(tmp_path / "other.gguf", "qwen2"))
    await create(catalog, CreateRequest(model="m", from_="tiny", adapters={"a.gguf": good}))
    (path,) = (await catalog.resolve("m")).adapter_paths
    assert sha256(path.read_bytes()) == good
    with pytest.raises(CreateRejected, match="for qwen2 models, the base is llama"):
        await create(catalog, CreateRequest(model="n", from_="tiny", adapters={"a.gguf": other}))
    with pytest.raises(CreateRejected, match="not a LoRA adapter"):
        await create(catalog, CreateRequest(model="n", from_="tiny", adapters={"a.gguf": weights}))


async def test_deleting_removes_only_what_nobody_else_uses(
    catalog: Catalog, settings: Settings, tmp_path: Path
) -> None:
    weights = await tiny(catalog, tmp_path, "one", system="only one")
    await create(catalog, CreateRequest(model="two", from_="one", system="only two"))
    await catalog.delete("ONE")
    assert await catalog.has_blob(weights)
    assert not await catalog.has_blob(sha256(b"only one"))
    assert await catalog.has_blob(sha256(b"only two"))
    with pytest.raises(ModelNotFound):
        await catalog.delete("one")
    await catalog.delete("two")
    assert list((settings.models / "blobs").iterdir()) == []
    assert list((settings.models / "manifests").iterdir()) == []
    assert list((settings.home / "index").iterdir()) == []


async def test_nothing_is_removed_while_some_manifest_is_unreadable(
    catalog: Catalog, settings: Settings, tmp_path: Path
) -> None:
    weights = await tiny(catalog, tmp_path)
    broken = settings.models / "manifests/registry.ollama.ai/library/broken/latest"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    await catalog.delete("tiny")
    assert await catalog.has_blob(weights)


async def test_noprune_keeps_every_blob(settings: Settings, tmp_path: Path) -> None:
    from dataclasses import replace

    catalog = Catalog(replace(settings, noprune=True))
    weights = await tiny(catalog, tmp_path)
    await catalog.delete("tiny")
    assert await catalog.has_blob(weights)


async def test_a_copy_has_the_same_digest_and_its_own_life(
    catalog: Catalog, tmp_path: Path
) -> None:
    await tiny(catalog, tmp_path)
    await catalog.copy("tiny", "ns/other:v2")
    one, two = await catalog.resolve("tiny"), await catalog.resolve("ns/other:v2")
    assert one.digest == two.digest
    await catalog.delete("tiny")
    assert (await catalog.resolve("ns/other:v2")).weights_path.exists()
    with pytest.raises(ModelNotFound):
        await catalog.copy("absent", "x")


async def test_the_list_is_newest_first_and_survives_a_broken_model(
    catalog: Catalog, settings: Settings, tmp_path: Path
) -> None:
    await tiny(catalog, tmp_path, "old")
    await catalog.copy("old", "new")
    manifests = settings.models / "manifests/registry.ollama.ai/library"
    os.utime(manifests / "old/latest", (1000, 1000))
    (manifests / "broken").mkdir()
    (manifests / "broken/latest").write_text('{"schemaVersion": 2, "layers": "no"}')
    (manifests / "gone").mkdir()
    text = (
        (manifests / "old/latest")
        .read_text()
        .replace(sha256((tmp_path / "tiny.gguf").read_bytes()), "sha256:" + "0" * 64)
    )
    (manifests / "gone/latest").write_text(text)
    assert [model.name.short for model in await catalog.list()] == ["new:latest", "old:latest"]
    assert await catalog.list() == await Catalog(settings).list()


async def test_an_older_store_with_colons_in_blob_names_is_read(
    catalog: Catalog, settings: Settings, tmp_path: Path
) -> None:
    weights = await tiny(catalog, tmp_path)
    blobs = settings.models / "blobs"
    for path in list(blobs.iterdir()):
        path.rename(blobs / path.name.replace("-", ":"))
    model = await Catalog(settings).resolve("tiny")
    assert model.weights_path == blobs / weights
    assert await catalog.has_blob(weights.replace(":", "-"))


async def test_an_upload_with_other_content_leaves_nothing(
    catalog: Catalog, settings: Settings
) -> None:
    wrong = "sha256:" + "1" * 64
    with pytest.raises(DigestMismatch, match="digest mismatch, expected"):
        await catalog.receive_blob(wrong, pieces(b"x" * 5000), 5000)
    assert list((settings.models / "blobs").iterdir()) == []
    assert list((settings.home / "incoming").iterdir()) == []


async def test_a_second_upload_of_a_blob_is_not_even_read(catalog: Catalog) -> None:
    digest = await upload(catalog, b"data")

    async def never() -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""

    assert await catalog.receive_blob(digest, never(), 4) is False


async def test_an_upload_larger_than_the_disk_is_refused_before_reading(catalog: Catalog) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""

    with pytest.raises(DiskFull, match=r"1152921504606846976 bytes needed, \d+ bytes free"):
        await catalog.receive_blob("sha256:" + "2" * 64, never(), 1 << 60)


async def test_a_cancelled_upload_leaves_nothing(catalog: Catalog, settings: Settings) -> None:
    started = trio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * (1 << 21)
        started.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(catalog.receive_blob, "sha256:" + "3" * 64, slow(), None)
        await started.wait()
        assert len(list((settings.home / "incoming").iterdir())) == 1
        nursery.cancel_scope.cancel()
    assert list((settings.home / "incoming").iterdir()) == []
    assert list((settings.models / "blobs").iterdir()) == []


async def test_a_create_left_halfway_changes_nothing(catalog: Catalog, tmp_path: Path) -> None:
    await tiny(catalog, tmp_path)
    before = await catalog.resolve("tiny")
    generator = catalog.create(CreateRequest(model="tiny", from_="tiny", system="new"))
    async for progress in generator:
        if progress.status == "writing manifest":
            break
    await generator.aclose()
    assert await catalog.resolve("tiny") is before


async def test_a_layer_removed_during_a_create_is_noticed(catalog: Catalog, tmp_path: Path) -> None:
    await tiny(catalog, tmp_path)
    generator = catalog.create(CreateRequest(model="child", from_="tiny"))
    while (await anext(generator)).status != "writing manifest":
        pass
    await catalog.delete("tiny")
    with pytest.raises(CreateRejected, match="removed while"):
        await anext(generator)
    with pytest.raises(ModelNotFound):
        await catalog.resolve("child")


async def test_show_tells_what_clients_read(catalog: Catalog, tmp_path: Path) -> None:
    digest = await tiny(
        catalog, tmp_path, system="Say \"hi\".", template="{{ .System }}{{ .Prompt }}",
        parameters={"temperature": 0.7, "num_ctx": 64, "stop": ["</s>", "<|x|>"]},
    )  # fmt: skip
    details = await catalog.show("tiny")
    assert details.parameters.splitlines() == [
        "num_ctx                        64",
        'stop                           "</s>"',
        'stop                           "<|x|>"',
        "temperature                    0.7",
    ]
    info = details.model_info
    assert info["general.architecture"] == "llama"
    assert info["llama.context_length"] == 128
    assert info["llama.attention.layer_norm_rms_epsilon"] == 1e-6
    assert info["tokenizer.ggml.tokens"] is None
    assert info["general.parameter_count"] == details.model.header.parameter_count
    assert "general.name" not in info
    assert "tokenizer.chat_template" not in info
    assert details.tensors == ()
    assert f"FROM {details.model.weights_path}" in details.modelfile
    again = create_request_from_modelfile("again", details.modelfile)
    assert again.files == {"model-0.gguf": digest}
    assert again.system == 'Say "hi".'
    assert again.template == "{{ .System }}{{ .Prompt }}"
    assert again.parameters == {"num_ctx": 64, "stop": ("</s>", "<|x|>"), "temperature": 0.7}
    verbose = await catalog.show("tiny", verbose=True)
    assert verbose.model_info["tokenizer.ggml.tokens"] == list("abcdefgh")
    assert verbose.tensors[0].name == "token_embd.weight"
    assert verbose.tensors[0].shape == (16, 8)


def test_a_modelfile_as_text_names_models_and_blobs_but_no_files() -> None:
    digest = "sha256:" + "a" * 64
    assert create_request_from_modelfile("m", "FROM llama3:8b").from_ == "llama3:8b"
    assert create_request_from_modelfile("m", f"FROM @{digest}").files == {"model-0.gguf": digest}
    with pytest.raises(CreateRejected, match="upload the file with POST /api/blobs"):
        create_request_from_modelfile("m", "FROM ./model.gguf")


async def test_messages_keep_everything_they_carry(catalog: Catalog, tmp_path: Path) -> None:
    messages = (
        Message(role="user", content="look", images=(b"\x00\xff",)),
        Message(
            role="assistant", thinking="hm",
            tool_calls=(ToolCall(name="f", arguments={"a": [1, {"b": None}]}, id="c1"),),
        ),
        Message(role="tool", content="3", tool_name="f", tool_call_id="c1"),
    )  # fmt: skip
    await tiny(catalog, tmp_path, messages=messages)
    assert (await catalog.resolve("tiny")).messages == messages


def assert_whole(settings: Settings) -> int:
    """No manifest names a missing blob, and nothing is left half-written."""
    count = 0
    for path in (settings.models / "manifests").glob("*/*/*/*"):
        manifest = json.loads(path.read_bytes())
        for layer in (*manifest["layers"], manifest["config"]):
            blob = settings.models / "blobs" / layer["digest"].replace(":", "-")
            assert sha256(blob.read_bytes()) == layer["digest"]
        count += 1
    return count


class Crash(BaseException):
    """Stands for the process ending at once."""


async def test_a_crash_at_any_sync_leaves_every_model_whole(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tiny(Catalog(settings), tmp_path, system="old")
    real = os.fsync
    crashes = 0
    for survived in range(100):
        left = survived

        def fsync(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Crash
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        request = CreateRequest(
            model="tiny", from_="tiny", system=f"new {survived}", parameters={"seed": survived}
        )
        try:
            await create(Catalog(settings), request)
        except Crash:
            crashes += 1
            assert_whole(settings)
        else:
            break
    assert crashes > 4
    monkeypatch.undo()
    assert assert_whole(settings) == 1
    assert (await Catalog(settings).resolve("tiny")).system == f"new {crashes}"


async def test_changes_at_the_same_time_leave_every_model_whole(
    catalog: Catalog, settings: Settings, tmp_path: Path
) -> None:
    await tiny(catalog, tmp_path)

    async def churn(number: int) -> None:
        for turn in range(4):
            name = f"m{(number + turn) % 3}"
            with suppress(ModelNotFound, NotAvailable, CreateRejected):
                if turn == 2:
                    await catalog.delete(name)
                else:
                    await create(
                        catalog, CreateRequest(model=name, from_="tiny", system=f"s{turn}")
                    )

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(churn, number)
    assert assert_whole(settings) >= 1
    for model in await catalog.list():
        assert (await catalog.resolve(model.name.full)).digest == model.digest


async def test_the_same_upload_twice_at_once_is_one_blob(
    catalog: Catalog, settings: Settings
) -> None:
    data = b"y" * 100_000

    async def slowly() -> AsyncIterator[bytes]:
        async for piece in pieces(data, 5000):
            await trio.lowlevel.checkpoint()
            yield piece

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(catalog.receive_blob, sha256(data), slowly(), len(data))
    (blob,) = (settings.models / "blobs").iterdir()
    assert blob.read_bytes() == data
    assert list((settings.home / "incoming").iterdir()) == []


async def test_a_blob_that_vanished_is_noticed_by_the_next_resolve(
    catalog: Catalog, tmp_path: Path
) -> None:
    digest = await tiny(catalog, tmp_path)
    model = await catalog.resolve("tiny")
    model.weights_path.unlink()
    with pytest.raises(BlobNotFound, match=digest):
        await catalog.resolve("tiny")


async def test_another_agent_on_the_store_is_waited_for(
    catalog: Catalog, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tiny(catalog, tmp_path)
    monkeypatch.setattr(store, "LOCK_WAIT_S", 0.0)
    with (settings.models / ".llamesh.lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StoreNotWritable, match="another agent"):
            await catalog.delete("tiny")
        with pytest.raises(CreateFailed, match="another agent"):
            await create(catalog, CreateRequest(model="child", from_="tiny"))
    await catalog.delete("tiny")
