"""Making a model: from another one or from uploaded GGUF files, layer by layer.

Each function blocks and is called in a thread; ``Catalog.create`` puts the lines of progress
between them. Nothing is visible under the new name before ``commit``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Final

import msgspec

from agent.inference.errors import InferenceError, NotAvailable
from agent.inference.options import DEFAULT_OPTIONS, OptionValue, apply_options
from agent.models.assemble import (
    TEXT_LAYER_LIMIT_BYTES,
    StoredMessage,
    read_config,
    read_parameters,
    read_texts,
)
from agent.models.create_request import CreateRequest
from agent.models.errors import (
    BlobNotFound,
    CreateRejected,
    InvalidDigest,
    InvalidGguf,
    InvalidName,
    ModelError,
)
from agent.models.gguf import MAGIC, GgufHeader
from agent.models.gguf_summary import parameter_size
from agent.models.installed import GgufSummary
from agent.models.manifest import (
    ADAPTER_TYPE,
    CONFIG_TYPE,
    LICENSE_TYPE,
    MANIFEST_TYPE,
    MESSAGES_TYPE,
    MODEL_TYPE,
    PARAMETERS_TYPE,
    PROJECTOR_TYPE,
    PROMPT_TYPE,
    SYSTEM_TYPE,
    TEMPLATE_TYPE,
    Digest,
    Layer,
    Manifest,
    ModelConfig,
    RootFilesystem,
    encode_config,
    encode_manifest,
    parse_digest,
)
from agent.models.names import ModelName, parse_name
from agent.models.store import Store
from agent.models.weights import WeightsIndex

ROLES: Final = ("system", "user", "assistant", "tool")
_SPLIT_NAME: Final = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)

ValidateTemplate = Callable[[str], None]
"""Raises any error whose text says what is wrong with a template."""


@dataclass(slots=True)
class Plan:
    """A model in the making. ``texts`` are layers that are still to be written."""

    name: ModelName
    config: ModelConfig
    layers: list[Layer]
    texts: list[tuple[str, bytes]] = field(default_factory=list[tuple[str, bytes]])


def plan(
    store: Store, weights: WeightsIndex, request: CreateRequest, validate: ValidateTemplate
) -> Plan:
    """Check the whole request and collect the layers. Writes nothing.

    Raises CreateRejected for what the caller can fix, NotAvailable for what this release lacks.
    """
    try:
        name = parse_name(request.model)
    except InvalidName:
        raise CreateRejected("invalid model name") from None
    if request.quantize:
        raise NotAvailable("quantizing at create is not available in this release")
    if request.from_ and request.files:
        raise CreateRejected("give 'from' or 'files', not both")
    if request.from_:
        made = _from_model(store, name, request)
    elif request.files:
        made = _from_files(store, weights, name, request)
    else:
        raise CreateRejected("neither 'from' or 'files' was specified")
    _add_adapter(store, weights, made, request)
    _replace_texts(store, made, request, validate)
    made.config = _configured(made, request)
    return made


def commit(store: Store, made: Plan) -> None:
    """Write the config and then the manifest. Hold the store's lock.

    Raises CreateRejected if a blob was removed meanwhile; the old model is untouched then.
    """
    layers = list(made.layers)
    for media_type, data in made.texts:
        # Written before, but another model's removal may have taken it since.
        digest, _ = store.write_blob(data)
        layers.append(Layer(media_type, digest, len(data)))
    config = msgspec.structs.replace(
        made.config,
        rootfs=RootFilesystem(diff_ids=tuple(layer.digest for layer in layers)),
    )
    data = encode_config(config)
    digest, _ = store.write_blob(data)
    manifest = Manifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        config=Layer(CONFIG_TYPE, digest, len(data)),
        layers_=tuple(layers),
    )
    try:
        store.write_manifest(store.find_name(made.name) or made.name, encode_manifest(manifest))
    except BlobNotFound as error:
        raise CreateRejected(f"{error}: it was removed while the model was being made") from error


def _from_model(store: Store, name: ModelName, request: CreateRequest) -> Plan:
    assert request.from_ is not None
    try:
        wanted = parse_name(request.from_)
    except InvalidName:
        raise CreateRejected("invalid model name") from None
    found = store.find_name(wanted)
    stored = store.read_manifest(found) if found is not None else None
    if stored is None:
        raise NotAvailable(
            f"model '{request.from_}' is not in the local store, and pulling from a registry is "
            "not available in this release"
        )
    config = read_config(store, stored.manifest)
    config = msgspec.structs.replace(config, llamesh_parent_model=stored.name.short)
    return Plan(name, config, list(stored.manifest.layers))


def _from_files(
    store: Store, weights: WeightsIndex, name: ModelName, request: CreateRequest
) -> Plan:
    layers: list[Layer] = []
    config: ModelConfig | None = None
    for path, digest, header in _headers(store, request.files.items()):
        layer = Layer(MODEL_TYPE, digest, header.file_bytes)
        match header.text("general.type"), header.architecture:
            case ("projector" | "mmproj", _) | (_, "clip"):
                layers.append(Layer(PROJECTOR_TYPE, digest, header.file_bytes))
            case "adapter", _:
                raise CreateRejected(f"{path} is an adapter: name it in 'adapters', not 'files'")
            case "vocab", _:
                raise CreateRejected(f"{path} holds a vocabulary without weights")
            case _:
                if (header.integer("split.count") or 0) > 1 or _SPLIT_NAME.search(path):
                    raise CreateRejected(
                        f"{path} is part of a split GGUF set: merge the parts first "
                        "(llama-gguf-split --merge) and upload the whole file"
                    )
                if config is not None:
                    raise CreateRejected("only one model file can be given, besides projectors")
                try:
                    config = _weights_config(weights.read(digest).summary)
                except InvalidGguf as error:
                    raise CreateRejected(f"invalid GGUF file {path}: {error}") from error
                layers.insert(0, layer)
    if config is None:
        raise CreateRejected("no files provided to convert")
    return Plan(name, config, layers)


def _headers(
    store: Store, files: Iterable[tuple[str, str]]
) -> Iterable[tuple[str, Digest, GgufHeader]]:
    for path, text in files:
        if (
            PurePosixPath(path).is_absolute()
            or PureWindowsPath(path).is_absolute()
            or ".." in PurePosixPath(path.replace("\\", "/")).parts
        ):
            raise CreateRejected("file path must be relative")
        try:
            digest = parse_digest(text)
        except InvalidDigest as error:
            raise CreateRejected(str(error)) from None
        if not store.has_blob(digest):
            raise CreateRejected(
                f'blob "{digest}" not found: upload it with POST /api/blobs/{digest} first'
            )
        with store.blob_path(digest).open("rb") as file:
            magic = file.read(len(MAGIC))
        if magic != MAGIC:
            if path.lower().endswith(".safetensors"):
                raise CreateRejected(
                    "safetensors models cannot be converted here: convert the model to GGUF "
                    "(llama.cpp's convert_hf_to_gguf.py) and upload that file"
                )
            raise CreateRejected("supplied file was not in GGUF format")
        try:
            yield path, digest, store.read_header(digest)
        except InvalidGguf as error:
            raise CreateRejected(f"invalid GGUF file {path}: {error}") from error


def _weights_config(summary: GgufSummary) -> ModelConfig:
    return ModelConfig(
        model_format="gguf",
        model_family=summary.architecture,
        model_families=(summary.architecture,),
        model_type=parameter_size(summary.parameter_count),
        file_type=summary.file_type,
        context_length=summary.context_length,
        embedding_length=summary.embedding_length,
    )


def _add_adapter(store: Store, weights: WeightsIndex, made: Plan, request: CreateRequest) -> None:
    if not request.adapters:
        return
    if len(request.adapters) > 1:
        raise CreateRejected("only one adapter is currently supported")
    base = next((layer for layer in made.layers if layer.media_type == MODEL_TYPE), None)
    for path, digest, header in _headers(store, request.adapters.items()):
        kind = header.text("general.type"), header.text("adapter.type")
        if kind != ("adapter", "lora"):
            raise CreateRejected(f"{path} is not a LoRA adapter in GGUF format")
        if base is not None:
            try:
                wanted = weights.read(parse_digest(base.digest)).summary.architecture
            except (InvalidGguf, BlobNotFound) as error:
                raise CreateRejected(f"the base model is unreadable: {error}") from error
            if header.architecture and header.architecture != wanted:
                raise CreateRejected(
                    f"the adapter is for {header.architecture} models, the base is {wanted}"
                )
        made.layers = [layer for layer in made.layers if layer.media_type != ADAPTER_TYPE]
        made.layers.append(Layer(ADAPTER_TYPE, digest, header.file_bytes))


def _replace_texts(
    store: Store, made: Plan, request: CreateRequest, validate: ValidateTemplate
) -> None:
    base = Manifest(schema_version=2, layers_=tuple(made.layers))
    if request.template:
        try:
            validate(request.template)
        except (ModelError, InferenceError, ValueError) as error:
            raise CreateRejected(f"template error: {error}") from error
        before = read_texts(store, base, TEMPLATE_TYPE, PROMPT_TYPE)
        if not before or before[-1] != request.template:
            made.config = msgspec.structs.replace(made.config, llamesh_template_overridden=True)
        _replace(made, (TEMPLATE_TYPE, PROMPT_TYPE), [request.template.encode()])
    if request.system is not None:
        _replace(made, (SYSTEM_TYPE,), [request.system.encode()] if request.system else [])
    if request.licenses:
        _replace(made, (LICENSE_TYPE,), [text.encode() for text in request.licenses])
    if request.parameters:
        merged = read_parameters(store, base) | _checked_parameters(request)
        kept = {key: value for key, value in sorted(merged.items()) if value is not None}
        _replace(made, (PARAMETERS_TYPE,), [msgspec.json.encode(kept)])
    if request.messages:
        for message in request.messages:
            if message.role not in ROLES:
                raise CreateRejected(f"message role must be one of {', '.join(ROLES)}")
        stored = [StoredMessage.of(message) for message in request.messages]
        _replace(made, (MESSAGES_TYPE,), [msgspec.json.encode(stored)])
    if any(len(data) > TEXT_LAYER_LIMIT_BYTES for _, data in made.texts):
        raise CreateRejected(f"a text is longer than {TEXT_LAYER_LIMIT_BYTES} bytes")


def _checked_parameters(request: CreateRequest) -> dict[str, OptionValue]:
    try:
        apply_options(DEFAULT_OPTIONS, request.parameters)
    except InferenceError as error:
        raise CreateRejected(str(error)) from error
    return dict(request.parameters)


def _replace(made: Plan, media_types: tuple[str, ...], texts: list[bytes]) -> None:
    made.layers = [layer for layer in made.layers if layer.media_type not in media_types]
    made.texts.extend((media_types[0], data) for data in texts)


def _configured(made: Plan, request: CreateRequest) -> ModelConfig:
    config = made.config
    source = request.info.get("llamesh.template")
    if source is not None:
        if source not in ("auto", "go", "jinja"):
            raise CreateRejected("llamesh.template must be one of auto, go, jinja")
        config = msgspec.structs.replace(config, llamesh_template_source=str(source))
    return msgspec.structs.replace(
        config,
        renderer=request.renderer or config.renderer,
        parser=request.parser or config.parser,
        requires=request.requires or config.requires,
    )
