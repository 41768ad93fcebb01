"""Ollama's store layout, written from its description and not with the agent's own code."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG_TYPE: Final = "application/vnd.docker.container.image.v1+json"
_LAYER_TYPE: Final = "application/vnd.ollama.image."


def add_blob(store: Path, content: bytes | Path) -> tuple[str, int]:
    """Put bytes, or a copy of a file, among the blobs; returns digest and size."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    blob = store / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, blob)
    else:
        blob.write_bytes(data)
    return f"sha256:{digest}", len(data)


def add_model(
    store: Path,
    name: str,
    weights: Path | bytes,
    *,
    adapter: Path | None = None,
    template: str | None = None,
    system: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    family: str = "llama",
    namespace: str = "library",
    host: str = "registry.ollama.ai",
) -> Path:
    """Install ``weights`` as ``name`` (``model`` or ``model:tag``); returns the manifest."""
    model, _, tag = name.partition(":")
    contents: list[tuple[str, bytes | Path]] = [("model", weights)]
    if adapter is not None:
        contents.append(("adapter", adapter))
    if template is not None:
        contents.append(("template", template.encode()))
    if system is not None:
        contents.append(("system", system.encode()))
    if parameters is not None:
        contents.append(("params", json.dumps(parameters).encode()))
    layers: list[dict[str, Any]] = []
    for kind, content in contents:
        digest, size = add_blob(store, content)
        layers.append({"mediaType": _LAYER_TYPE + kind, "digest": digest, "size": size})
    config = {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": "1M",
        "file_type": "F16",
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }
    digest, size = add_blob(store, json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": {"mediaType": _CONFIG_TYPE, "digest": digest, "size": size},
        "layers": layers,
    }
    path = store / "manifests" / host / namespace / model / (tag or "latest")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return path
