"""Manifests and config blobs, from Go and from strangers."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.models.errors import InvalidDigest
from agent.models.manifest import (
    MODEL_TYPE,
    ModelConfig,
    decode_config,
    decode_manifest,
    digest_of,
    encode_config,
    encode_manifest,
    parse_digest,
)

DIGEST = "sha256:" + "ab" * 32
LAYER = {"mediaType": MODEL_TYPE, "digest": DIGEST, "size": 5}


def document(**changes: object) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "mediaType": "x", "config": LAYER, "layers": [LAYER], **changes}
    ).encode()


def test_a_manifest_reads_and_writes_in_ollamas_form() -> None:
    manifest = decode_manifest(document(layers=[{**LAYER, "from": "/x", "unknown": 1}]))
    assert manifest.size_bytes == 10
    assert manifest.of_type(MODEL_TYPE)[0].from_ == "/x"
    written = json.loads(encode_manifest(manifest))
    assert set(written) == {"schemaVersion", "mediaType", "config", "layers"}
    assert written["layers"] == [{**LAYER, "from": "/x"}]
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_null_lists_of_go_are_empty() -> None:
    assert decode_manifest(document(layers=None)).layers == ()
    config = b'{"model_families": null, "rootfs": {"type": "layers", "diff_ids": null}}'
    assert decode_config(config).model_families is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        document(schemaVersion=1),
        document(layers=[{**LAYER, "digest": "sha256:../../../etc/passwd"}]),
        document(config={**LAYER, "size": -1}),
        document(layers="many"),
        b'{"schemaVersion": 2, "x": ' + b"[" * 200_000,
    ],
)
def test_a_broken_manifest_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_manifest(data)


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_no_bytes_do_worse_than_a_value_error(data: bytes) -> None:
    for decode in (decode_manifest, decode_config):
        try:
            decode(data)
        except ValueError:
            continue


def test_a_config_blob_always_tells_its_platform() -> None:
    written = json.loads(encode_config(ModelConfig(model_family="llama")))
    assert written == {
        "model_family": "llama",
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    assert decode_config(msgspec.json.encode(written)) == ModelConfig(model_family="llama")


def test_digests_are_checked_and_brought_to_one_form() -> None:
    assert parse_digest("sha256-" + "AB" * 32) == DIGEST
    assert digest_of(b"").startswith("sha256:e3b0c442")
    for text in ("", "sha256:", DIGEST + "0", "md5:" + "ab" * 32, DIGEST + "\n", f"x{DIGEST}"):
        with pytest.raises(InvalidDigest, match="invalid digest format"):
            parse_digest(text)
