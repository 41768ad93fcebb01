"""``llamesh config show``: effective values and their origins, secrets hidden."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agent.config import SECRETS, Configuration, load


def run(environ: Mapping[str, str], flags: Mapping[str, str], *, as_json: bool) -> int:
    """Print the configuration; reads nothing but the configuration itself."""
    configuration = load(environ, flags)
    print(show_json(configuration) if as_json else show_text(configuration))
    return 0


def show_json(configuration: Configuration) -> str:
    """``{"settings": {key: {"value", "origin", "name"}}, "without_effect": [...]}``."""
    entries = {
        key: {"value": value, "origin": origin.kind, "name": origin.name or None}
        for key, value, origin in (
            (key, _plain(key, value), configuration.origins[key])
            for key, value in _values(configuration)
        )
    }
    answer = {"settings": entries, "without_effect": list(configuration.without_effect)}
    return json.dumps(answer, indent=2, ensure_ascii=False)


def show_text(configuration: Configuration) -> str:
    """Three aligned columns: key, value, origin."""
    rows = [
        (key, _text(_plain(key, value)), str(configuration.origins[key]))
        for key, value in _values(configuration)
    ]
    key_width = max(len(row[0]) for row in rows)
    value_width = min(48, max(len(row[1]) for row in rows))
    lines = [f"{key:<{key_width}}  {value:<{value_width}}  {origin}" for key, value, origin in rows]
    if configuration.without_effect:
        lines += ["", "without effect: " + ", ".join(configuration.without_effect)]
    return "\n".join(lines)


def _values(configuration: Configuration) -> list[tuple[str, object]]:
    settings = configuration.settings
    return [(f.name, getattr(settings, f.name)) for f in dataclasses.fields(settings)]


_WITHOUT_VALUE: Final = {"keep_alive_s": "forever", "go_template": "auto"}
"""What no value means, where it has a meaning."""


def _plain(key: str, value: object) -> str | int | float | bool | list[str] | None:
    match value:
        case str() if key in SECRETS:
            return "(hidden)"
        case Path():
            return str(value)
        case tuple():
            return [str(entry) for entry in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case float() if math.isinf(value):
            return "no limit"
        case None:
            return _WITHOUT_VALUE.get(key)
        case str() | bool() | int() | float():
            return value
        case _:
            raise AssertionError(f"{key} has a type this command cannot print")


def _text(value: str | float | bool | list[str] | None) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "true" if value else "false"
        case list():
            return ", ".join(value) or "-"
        case float():
            return f"{value:g}"
        case _:
            return str(value)
