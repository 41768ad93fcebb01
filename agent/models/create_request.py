"""What a create request asks for, also when it comes as the text of a Modelfile. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from agent.inference.options import OptionValue
from agent.inference.request import Message
from agent.models.errors import CreateRejected, InvalidDigest
from agent.models.manifest import parse_digest
from agent.models.modelfile import parse_modelfile

_SEMANTIC_VERSION = re.compile(r"v?\d+(\.\d+(\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?)?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """A new model from another one or from uploaded files. None means "as the base has it"."""

    model: str
    from_: str | None = None
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    """Path to digest; the paths are only names."""
    adapters: Mapping[str, str] = field(default_factory=dict[str, str])
    template: str | None = None
    licenses: tuple[str, ...] = ()
    system: str | None = None
    """Empty removes the base's."""
    parameters: Mapping[str, OptionValue] = field(default_factory=dict[str, OptionValue])
    messages: tuple[Message, ...] = ()
    quantize: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    info: Mapping[str, object] = field(default_factory=dict[str, object])
    """``llamesh.template`` chooses the template: ``auto``, ``go`` or ``jinja``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateProgress:
    """One line of progress. Sizes in bytes."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


def create_request_from_modelfile(name: str, text: str) -> CreateRequest:
    """A Modelfile sent as text, as older clients do.

    FROM and ADAPTER may name a blob of the store, as ``@sha256:...`` or as a path that ends in
    the blob's name. Raises InvalidModelfile for the text and CreateRejected for other paths.
    """
    modelfile = parse_modelfile(text)
    files: dict[str, str] = {}
    from_: str | None = None
    for value in modelfile.all("from"):
        digest = _blob_reference(value, "FROM")
        if digest is None:
            from_ = value
        else:
            files[f"model-{len(files)}.gguf"] = digest
    adapters: dict[str, str] = {}
    for value in modelfile.all("adapter"):
        digest = _blob_reference(value, "ADAPTER")
        if digest is None:
            raise CreateRejected(_upload_hint("ADAPTER", value))
        adapters[f"adapter-{len(adapters)}.gguf"] = digest
    if modelfile.all("draft"):
        raise CreateRejected("DRAFT models are not supported")
    requires = modelfile.last("requires") or ""
    if requires and _SEMANTIC_VERSION.fullmatch(requires) is None:
        raise CreateRejected("requires must be a valid semver (e.g. 0.14.0)")
    return CreateRequest(
        model=name,
        from_=from_,
        files=files,
        adapters=adapters,
        template=modelfile.last("template"),
        licenses=modelfile.all("license"),
        system=modelfile.last("system"),
        parameters=modelfile.parameters(),
        messages=tuple(
            Message(role=command.key, content=command.value)
            for command in modelfile.commands
            if command.name == "message"
        ),
        renderer=modelfile.last("renderer") or "",
        parser=modelfile.last("parser") or "",
        requires=requires.removeprefix("v"),
    )


def _blob_reference(value: str, command: str) -> str | None:
    """The digest a FROM or ADAPTER value stands for; None when it is a model's name."""
    try:
        return parse_digest(PurePosixPath(value.replace("\\", "/")).name.removeprefix("@"))
    except InvalidDigest:
        pass
    is_path = value.startswith(("/", "./", "../", "~", ".\\", "..\\", "@"))
    if is_path or value.lower().endswith((".gguf", ".bin", ".safetensors")):
        raise CreateRejected(_upload_hint(command, value))
    return None


def _upload_hint(command: str, value: str) -> str:
    return (
        f"{command} {value}: files on the client's machine cannot be read; upload the file with "
        f"POST /api/blobs/sha256:<digest> and name it in 'files' (or write {command} "
        "@sha256:<digest>)"
    )
