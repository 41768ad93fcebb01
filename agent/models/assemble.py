"""From a stored manifest to an InstalledModel: layers read, capabilities found. Blocking."""

from __future__ import annotations

from typing import Final, cast

import msgspec

from agent.inference.options import OptionValue
from agent.inference.request import JsonValue, Message, ToolCall
from agent.models.capabilities import TemplateSource, find_capabilities
from agent.models.errors import UnusableModel
from agent.models.gguf_summary import parameter_size
from agent.models.installed import InstalledModel
from agent.models.manifest import (
    ADAPTER_TYPE,
    LICENSE_TYPE,
    MESSAGES_TYPE,
    MODEL_TYPE,
    PARAMETERS_TYPE,
    PROJECTOR_TYPE,
    PROMPT_TYPE,
    SYSTEM_TYPE,
    TEMPLATE_TYPE,
    Digest,
    Manifest,
    ModelConfig,
    decode_config,
    decode_json,
    parse_digest,
)
from agent.models.store import Store, StoredManifest
from agent.models.weights import WeightsIndex

TEXT_LAYER_LIMIT_BYTES: Final = 16 * 1024 * 1024


class StoredFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class StoredToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    function: StoredFunction
    id: str = ""


class StoredMessage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One entry of the messages layer, in the wire form of a chat; images are base64."""

    role: str
    content: str = ""
    thinking: str = ""
    images: tuple[bytes, ...] | None = ()
    tool_calls: tuple[StoredToolCall, ...] | None = ()
    tool_name: str = ""
    tool_call_id: str = ""

    @classmethod
    def of(cls, message: Message) -> StoredMessage:
        return cls(
            role=message.role,
            content=message.content,
            thinking=message.thinking,
            images=message.images,
            tool_calls=tuple(
                StoredToolCall(
                    StoredFunction(call.name, msgspec.Raw(msgspec.json.encode(call.arguments))),
                    call.id,
                )
                for call in message.tool_calls
            ),
            tool_name=message.tool_name,
            tool_call_id=message.tool_call_id,
        )

    def message(self) -> Message:
        return Message(
            role=self.role,
            content=self.content,
            thinking=self.thinking,
            images=self.images or (),
            tool_calls=tuple(
                ToolCall(
                    name=call.function.name,
                    arguments=_arguments(call.function.arguments),
                    id=call.id,
                )
                for call in self.tool_calls or ()
            ),
            tool_name=self.tool_name,
            tool_call_id=self.tool_call_id,
        )


def _arguments(raw: msgspec.Raw) -> dict[str, JsonValue]:
    document = msgspec.json.decode(raw)
    return cast("dict[str, JsonValue]", document) if isinstance(document, dict) else {}


_messages = msgspec.json.Decoder(tuple[StoredMessage, ...])
_parameters = msgspec.json.Decoder(dict[str, bool | int | float | str | tuple[str, ...] | None])


def read_config(store: Store, manifest: Manifest) -> ModelConfig:
    """The config blob; an empty one when the manifest has none. Raises UnusableModel."""
    if manifest.config is None:
        return ModelConfig()
    data = store.read_blob(Digest(manifest.config.digest), TEXT_LAYER_LIMIT_BYTES)
    try:
        return decode_config(data)
    except ValueError as error:
        raise UnusableModel(f"the config layer is unreadable: {error}") from error


def read_texts(store: Store, manifest: Manifest, *media_types: str) -> tuple[str, ...]:
    """Text layers of the given types, in order."""
    return tuple(
        store.read_blob(parse_digest(layer.digest), TEXT_LAYER_LIMIT_BYTES).decode(
            "utf-8", "replace"
        )
        for layer in manifest.of_type(*media_types)
    )


def read_parameters(store: Store, manifest: Manifest) -> dict[str, OptionValue]:
    """Merged parameter layers. Raises UnusableModel."""
    merged: dict[str, OptionValue] = {}
    for text in read_texts(store, manifest, PARAMETERS_TYPE):
        try:
            merged |= decode_json(_parameters, text)
        except ValueError as error:
            raise UnusableModel(f"the parameters layer is unreadable: {error}") from error
    return merged


def read_messages(store: Store, manifest: Manifest) -> tuple[Message, ...]:
    """Messages of a Modelfile. Raises UnusableModel."""
    found: list[Message] = []
    for text in read_texts(store, manifest, MESSAGES_TYPE):
        try:
            stored = decode_json(_messages, text)
        except ValueError as error:
            raise UnusableModel(f"the messages layer is unreadable: {error}") from error
        found.extend(message.message() for message in stored)
    return tuple(found)


def assemble(
    store: Store, weights: WeightsIndex, stored: StoredManifest, *, loadable: bool
) -> InstalledModel:
    """Everything a manifest names, read. With ``loadable`` the weights are translated if they
    must be; without it their path may not exist yet.

    Raises UnusableModel (also when translation is impossible), InvalidGguf, BlobNotFound.
    """
    manifest = stored.manifest
    config = read_config(store, manifest)
    if config.remote_host:
        raise UnusableModel(f"{stored.name.short} runs at {config.remote_host}, not here")
    layers = manifest.of_type(MODEL_TYPE)
    if len(layers) != 1:
        reason = "no GGUF weights" if not layers else "its weights in several files"
        raise UnusableModel(f"{stored.name.short} has {reason}, which cannot be served")
    weights_digest = parse_digest(layers[0].digest)
    path = weights.ensure(weights_digest) if loadable else weights.path(weights_digest)
    header = weights.read(weights_digest).summary
    templates = read_texts(store, manifest, TEMPLATE_TYPE, PROMPT_TYPE)
    systems = read_texts(store, manifest, SYSTEM_TYPE)
    projectors = tuple(
        weights.ensure(digest) if loadable else weights.path(digest)
        for digest in (parse_digest(layer.digest) for layer in manifest.of_type(PROJECTOR_TYPE))
    )
    source = template_source(config.llamesh_template_source)
    template = templates[-1] if templates else None
    family = config.model_family or header.architecture
    return InstalledModel(
        name=stored.name,
        digest=stored.digest,
        size_bytes=manifest.size_bytes,
        modified_at_s=stored.modified_at_s,
        weights_path=path,
        weights_digest=weights_digest,
        projector_paths=projectors,
        adapter_paths=tuple(
            store.blob_path(parse_digest(layer.digest)) for layer in manifest.of_type(ADAPTER_TYPE)
        ),
        header=header,
        capabilities=find_capabilities(
            header,
            template=template,
            source=source,
            overridden=config.llamesh_template_overridden,
            has_projector=bool(projectors),
            claimed=config.capabilities or (),
        ),
        template=template,
        template_source=source,
        template_overridden=config.llamesh_template_overridden,
        system=systems[-1] if systems else None,
        parameters=read_parameters(store, manifest),
        messages=read_messages(store, manifest),
        licenses=read_texts(store, manifest, LICENSE_TYPE),
        family=family,
        families=config.model_families or (family,),
        parameter_size=config.model_type or parameter_size(header.parameter_count),
        quantization=config.file_type or header.file_type,
        parent_model=config.llamesh_parent_model,
    )


def template_source(text: str) -> TemplateSource:
    """The per-model switch; anything unknown counts as ``auto``."""
    match text:
        case "go" | "jinja":
            return text
        case _:
            return "auto"
