"""Everything ``/api/show`` tells of a model. Blocking, because headers are read in full."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.inference.request import JsonValue, Message
from agent.models.assemble import read_config
from agent.models.ggml_types import TENSOR_TYPES
from agent.models.gguf import GgufArray, GgufHeader, GgufValue, ValueType
from agent.models.installed import Capability, InstalledModel
from agent.models.manifest import parse_digest
from agent.models.modelfile import (
    Command,
    Modelfile,
    format_parameters,
    parameter_commands,
    render_modelfile,
)
from agent.models.store import Store, StoredManifest, read_gguf_header

LONG_ARRAY: Final = 5
"""Arrays with more elements are left out unless asked for."""
_HIDDEN: Final = frozenset({"general.name", "tokenizer.chat_template"})


@dataclass(frozen=True, slots=True)
class TensorDetails:
    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowDetails:
    """Answer to a show request; ``model`` carries name, family, sizes and dates."""

    model: InstalledModel
    modelfile: str
    parameters: str
    template: str
    system: str
    license: str
    messages: tuple[Message, ...]
    model_info: Mapping[str, JsonValue]
    projector_info: Mapping[str, JsonValue]
    tensors: tuple[TensorDetails, ...]
    """Empty unless verbose."""
    capabilities: frozenset[Capability]
    modified_at_s: float
    renderer: str
    parser: str
    requires: str


def describe(
    store: Store, stored: StoredManifest, model: InstalledModel, *, verbose: bool
) -> ShowDetails:
    """Raises what reading the model's files raises: BlobNotFound, InvalidGguf, UnusableModel."""
    config = read_config(store, stored.manifest)
    header = store.read_header(parse_digest(model.weights_digest))
    projector_info: dict[str, JsonValue] = {}
    if model.projector_paths and model.projector_paths[0].exists():
        projector = read_gguf_header(model.projector_paths[0])
        projector_info = _information(projector, verbose=verbose)
    return ShowDetails(
        model=model,
        modelfile=_modelfile(store, model, config.renderer, config.parser, config.requires),
        parameters=format_parameters(model.parameters),
        template=model.template or model.header.chat_template or "",
        system=model.system or "",
        license="\n".join(model.licenses),
        messages=model.messages,
        model_info=_information(header, verbose=verbose),
        projector_info=projector_info,
        tensors=_tensors(header) if verbose else (),
        capabilities=model.capabilities,
        modified_at_s=model.modified_at_s,
        renderer=config.renderer,
        parser=config.parser,
        requires=config.requires,
    )


def _modelfile(
    store: Store, model: InstalledModel, renderer: str, parser: str, requires: str
) -> str:
    weights = store.blob_path(parse_digest(model.weights_digest))
    commands = [Command("from", str(weights))]
    commands += (Command("adapter", str(path)) for path in model.adapter_paths)
    if model.template is not None:
        commands.append(Command("template", model.template))
    if renderer:
        commands.append(Command("renderer", renderer))
    if parser:
        commands.append(Command("parser", parser))
    if model.system:
        commands.append(Command("system", model.system))
    commands += parameter_commands(model.parameters)
    commands += (Command("license", text) for text in model.licenses)
    if requires:
        commands.append(Command("requires", requires))
    commands += (Command("message", message.content, message.role) for message in model.messages)
    head = (
        f"# Modelfile of {model.name.short}, written by llamesh.\n"
        "# A model of your own can build on this one; its first line is then:\n"
        f"# FROM {model.name.short}\n\n"
    )
    return head + render_modelfile(Modelfile(tuple(commands)))


def _information(header: GgufHeader, *, verbose: bool) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {
        key: _value(header, key, value, verbose=verbose)
        for key, value in header.values.items()
        if key not in _HIDDEN
    }
    found["general.parameter_count"] = sum(tensor.elements for tensor in header.tensors)
    return found


def _value(header: GgufHeader, key: str, value: GgufValue, *, verbose: bool) -> JsonValue:
    if not isinstance(value.value, GgufArray):
        if value.type == ValueType.FLOAT32 and isinstance(value.value, float):
            return _shortest(value.value)
        return _finite(value.value) if isinstance(value.value, float) else value.value
    array = value.value
    if array.count > LONG_ARRAY and not verbose:
        return None
    strings = header.strings(key)
    if strings is not None:
        return [text.decode("utf-8", "replace") for text in strings]
    numbers = header.numbers(key) or ()
    if array.element == ValueType.BOOL:
        return [bool(number) for number in numbers]
    if array.element == ValueType.FLOAT32:
        return [_shortest(number) for number in numbers]
    return [_finite(number) if isinstance(number, float) else number for number in numbers]


def _shortest(number: float) -> JsonValue:
    """The shortest decimal that is this 32-bit number: 1e-06, not 9.999999974752427e-07."""
    if (finite := _finite(number)) is None:
        return None
    for digits in range(6, 9):
        candidate = float(f"{number:.{digits}g}")
        if _as_float32(candidate) == number:
            return candidate
    return finite


def _as_float32(number: float) -> float | None:
    try:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])
    except OverflowError:
        return None


def _finite(number: float) -> float | None:
    """JSON has no infinities."""
    return number if number == number and abs(number) != float("inf") else None


def _tensors(header: GgufHeader) -> tuple[TensorDetails, ...]:
    return tuple(
        TensorDetails(tensor.name, TENSOR_TYPES[tensor.type].name, tensor.dimensions)
        for tensor in header.tensors
    )
