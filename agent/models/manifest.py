"""Manifests and config blobs: the Docker v2 subset that Ollama's store uses. Pure.

A model's digest is the sha256 of its manifest's bytes as they lie on disk, so bytes that came
from elsewhere are never written again from the parsed form.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NewType, TypeVar

import msgspec

from agent.models.errors import InvalidDigest

Document = TypeVar("Document")
Digest = NewType("Digest", str)
"""``sha256:`` and 64 lower-case hex digits."""

MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE: Final = "application/vnd.docker.container.image.v1+json"
_LAYER_PREFIX: Final = "application/vnd.ollama.image."
MODEL_TYPE: Final = _LAYER_PREFIX + "model"
PROJECTOR_TYPE: Final = _LAYER_PREFIX + "projector"
ADAPTER_TYPE: Final = _LAYER_PREFIX + "adapter"
TEMPLATE_TYPE: Final = _LAYER_PREFIX + "template"
PROMPT_TYPE: Final = _LAYER_PREFIX + "prompt"
"""An older name for the template layer."""
SYSTEM_TYPE: Final = _LAYER_PREFIX + "system"
PARAMETERS_TYPE: Final = _LAYER_PREFIX + "params"
MESSAGES_TYPE: Final = _LAYER_PREFIX + "messages"
LICENSE_TYPE: Final = _LAYER_PREFIX + "license"
TENSOR_TYPE: Final = _LAYER_PREFIX + "tensor"

MANIFEST_LIMIT_BYTES: Final = 4 * 1024 * 1024
_DIGEST: Final = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


class Layer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One blob of a model. ``from_`` names the file it was made of, ``name`` a tensor."""

    media_type: str = msgspec.field(name="mediaType")
    digest: str
    size: int
    from_: str = msgspec.field(name="from", default="")
    name: str = ""


class Manifest(msgspec.Struct, frozen=True):
    """The list of a model's blobs."""

    schema_version: int = msgspec.field(name="schemaVersion")
    media_type: str = msgspec.field(name="mediaType", default=MANIFEST_TYPE)
    config: Layer | None = None
    layers_: tuple[Layer, ...] | None = msgspec.field(name="layers", default=())
    """None where Go wrote an empty list as null; read ``layers``."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.layers_ or ()

    @property
    def blobs(self) -> tuple[Layer, ...]:
        """Every layer, the config last."""
        return self.layers if self.config is None else (*self.layers, self.config)

    @property
    def size_bytes(self) -> int:
        return sum(layer.size for layer in self.blobs)

    def of_type(self, *media_types: str) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.media_type in media_types)


class RootFilesystem(msgspec.Struct, frozen=True):
    type: str = "layers"
    diff_ids: tuple[str, ...] | None = ()


class ModelConfig(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The config blob. Keys of ours start with ``llamesh_``; others are Ollama's."""

    model_format: str = ""
    model_family: str = ""
    model_families: tuple[str, ...] | None = None
    model_type: str = ""
    file_type: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    capabilities: tuple[str, ...] | None = None
    context_length: int = 0
    embedding_length: int = 0
    base_name: str = ""
    remote_host: str = ""
    remote_model: str = ""
    llamesh_template_source: str = ""
    llamesh_template_overridden: bool = False
    llamesh_parent_model: str = ""
    architecture: str = "amd64"
    os: str = "linux"
    rootfs: RootFilesystem = msgspec.field(default_factory=RootFilesystem)


_manifest_decoder = msgspec.json.Decoder(Manifest)
_config_decoder = msgspec.json.Decoder(ModelConfig)


def decode_manifest(data: bytes) -> Manifest:
    """Raises ValueError (msgspec's errors are some) for anything that is no such manifest."""
    manifest = decode_json(_manifest_decoder, data)
    if manifest.schema_version != 2:
        raise ValueError(f"manifest schema version {manifest.schema_version} is not supported")
    for layer in manifest.blobs:
        try:
            parse_digest(layer.digest)
        except InvalidDigest as error:
            raise ValueError(f"layer with the invalid digest '{layer.digest}'") from error
        if layer.size < 0:
            raise ValueError(f"layer {layer.digest} with a negative size")
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest)


def decode_config(data: bytes) -> ModelConfig:
    """Raises ValueError when the bytes are no config blob."""
    return decode_json(_config_decoder, data)


def decode_json(decoder: msgspec.json.Decoder[Document], data: bytes | str) -> Document:
    """``decoder.decode`` that raises nothing but ValueError, however deep the nesting."""
    try:
        return decoder.decode(data)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def encode_config(config: ModelConfig) -> bytes:
    """``architecture``, ``os`` and ``rootfs`` are always written, as Ollama does."""
    document: dict[str, object] = msgspec.to_builtins(config)
    document |= {
        "architecture": config.architecture,
        "os": config.os,
        "rootfs": msgspec.to_builtins(config.rootfs),
    }
    return msgspec.json.encode(document)


def parse_digest(text: str) -> Digest:
    """Accepts ``sha256:hex`` and the file-name form ``sha256-hex``. Raises InvalidDigest."""
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise InvalidDigest("invalid digest format")
    return Digest(f"sha256:{match[1].lower()}")


def digest_of(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
