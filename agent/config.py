"""The effective configuration: defaults < ``config.toml`` < environment < flags.

``FIELDS`` is the one table: every entry is a ``Settings`` field, a key of ``config.toml``, a flag
of ``llamesh serve`` (``--cpu-threads``), an environment variable ``LLAMESH_CPU_THREADS``, and
where Ollama has the same setting also its ``OLLAMA_*`` variable. Everything but ``load`` is
pure: the environment, the file's text and the machine's facts are arguments.
"""

from __future__ import annotations

import difflib
import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, cast

from agent import config_values as values
from agent.config_values import BadValue, RawValue, Reader
from agent.settings import Settings

CONFIG_FILE: Final = "config.toml"
HOME_VARIABLE: Final = "LLAMESH_HOME"
SECRETS: Final = frozenset({"admin_token"})
FILE_LIMIT_BYTES: Final = 1 << 20

OriginKind = Literal["default", "file", "environment", "flag"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from; ``name`` is the file, variable or flag."""

    kind: OriginKind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


@dataclass
class ConfigError(Exception):
    """A key or value that cannot be used: what was written where, and what is allowed."""

    key: str
    value: str | None
    allowed: str
    origin: Origin

    def __str__(self) -> str:
        where = str(self.origin) if self.origin.name != self.key else self.origin.kind
        shown = "" if self.value is None else f" = {self.value!r}"
        return f"{self.key}{shown} ({where}): {self.allowed}"


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts of this machine and user that defaults depend on."""

    user_home: Path
    working_directory: Path
    hostname: str
    cpu_cores: int
    """Physical cores this process may run on."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings, and where each came from."""

    settings: Settings
    origins: Mapping[str, Origin]
    without_effect: tuple[str, ...]
    """``OLLAMA_*`` variables that are set and change nothing."""


@dataclass(frozen=True, slots=True)
class Field:
    """How one setting is read. ``variables`` are tried in order after ``LLAMESH_<NAME>``."""

    name: str
    help: str
    reader: Reader
    variables: tuple[tuple[str, Reader], ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "LLAMESH_" + self.name.upper()


def _field(
    name: str, help_text: str, reader: Reader, *variables: str | tuple[str, Reader]
) -> Field:
    pairs = tuple(v if isinstance(v, tuple) else (v, reader) for v in variables)
    return Field(name, help_text, reader, pairs)


# ``home``, ``models`` and ``host`` have readers of their own in ``resolve``.
_TEXT: Final[Reader] = lambda raw: raw  # noqa: E731
FIELDS: Final[tuple[Field, ...]] = (
    _field("home", "directory of everything a node keeps", _TEXT),
    _field("models", "model store in Ollama's layout", _TEXT, "OLLAMA_MODELS"),
    _field("node_name", "name of this node (default: the host name)", values.node_name),
    _field("host", "API address, HOST or HOST:PORT", values.address, "OLLAMA_HOST"),
    _field("port", "API port; 0 takes any free one", values.whole_number(0, 65535), "OLLAMA_PORT"),
    _field("auth", "who may use a non-loopback address", values.one_of("open", "token")),
    _field("admin_token", "token of the admin routes", values.secret, "OLLAMA_ADMIN_TOKEN"),
    _field("origins", "further CORS origins, comma separated", values.origins, "OLLAMA_ORIGINS"),
    _field(
        "log_level",
        "debug, info, warning or error",
        values.one_of("debug", "info", "warning", "error"),
        ("OLLAMA_DEBUG", values.debug_level),
    ),
    _field("log_format", "text or json", values.one_of("text", "json")),
    _field("ollama_version", "Ollama version that /api/version claims", values.version),
    _field(
        "cpu_threads",
        "CPU threads of all runners together (default: physical cores)",
        values.whole_number(1, 4096),
    ),
    _field(
        "cpu_wait",
        "how CPU threads wait between steps: spin, or passive where nodes share a machine",
        values.one_of("spin", "passive"),
    ),
    _field(
        "context_length",
        "context of a model in tokens; 0 decides by memory",
        values.whole_number(0, 1 << 30),
        "OLLAMA_CONTEXT_LENGTH",
    ),
    _field(
        "keep_alive_s",
        "how long an idle model stays loaded; negative is forever",
        values.keep_alive_s,
        "OLLAMA_KEEP_ALIVE",
    ),
    _field(
        "load_timeout_s",
        "longest time a load may make no progress; 0 is no limit",
        values.load_timeout_s,
        "OLLAMA_LOAD_TIMEOUT",
    ),
    _field(
        "max_loaded_models",
        "models loaded at once; 0 decides by memory",
        values.whole_number(0, 1 << 20),
        "OLLAMA_MAX_LOADED_MODELS",
    ),
    _field(
        "max_queue",
        "requests that may wait; more are answered 503",
        values.whole_number(1, 1 << 20),
        "OLLAMA_MAX_QUEUE",
    ),
    _field(
        "num_parallel",
        "slots of each model; 0 decides by memory, up to 16",
        values.whole_number(0, 1024),
        "OLLAMA_NUM_PARALLEL",
    ),
    _field(
        "kv_cache_type",
        "type of the KV cache",
        values.one_of("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"),
        "OLLAMA_KV_CACHE_TYPE",
    ),
    _field("flash_attention", "auto, on or off", values.flash_attention, "OLLAMA_FLASH_ATTENTION"),
    _field(
        "gpu_overhead_bytes",
        "GPU memory left free on every GPU",
        values.size_bytes(0),
        "OLLAMA_GPU_OVERHEAD",
    ),
    _field(
        "sched_spread",
        "spread every model over all GPUs",
        values.boolean,
        "OLLAMA_SCHED_SPREAD",
    ),
    _field("noprune", "keep blobs that no model uses", values.boolean, "OLLAMA_NOPRUNE"),
    _field(
        "go_template",
        "prefer Go TEMPLATE layers (true), never use them (false), or auto",
        values.optional_boolean,
        "OLLAMA_GO_TEMPLATE",
    ),
    _field("host_cache_bytes", "RAM per runner for idle prompt caches", values.size_bytes(0)),
    _field("grace_period_s", "how long streams may finish after SIGTERM", values.span_s),
    _field("body_limit_bytes", "largest JSON request body", values.size_bytes(1024)),
)
_BY_NAME: Final = {field.name: field for field in FIELDS}
_HONOURED: Final = frozenset(name for field in FIELDS for name, _ in field.variables)


def resolve(
    *,
    environ: Mapping[str, str],
    flags: Mapping[str, str],
    file_text: str | None,
    machine: Machine,
) -> Configuration:
    """The effective configuration. Raises ConfigError.

    ``flags`` maps field names to the text given; ``file_text`` is the content of
    ``config.toml`` in the directory ``home_directory`` names, or ``None`` without one.
    """
    home, home_origin = home_directory(environ, flags, machine)
    found: dict[str, object] = {"home": home}
    origins: dict[str, Origin] = {"home": home_origin}

    def take(field: Field, reader: Reader, raw: RawValue, key: str, origin: Origin) -> None:
        if field.name == "models":
            base = home if origin.kind == "file" else machine.working_directory
            reader = values.directory(machine.user_home, base)
        value = _read(field, reader, raw, key, origin)
        if isinstance(value, values.Address):
            if value.port is not None:
                found["port"], origins["port"] = value.port, origin
            value = value.host
        found[field.name], origins[field.name] = value, origin

    for name, raw in _file_values(file_text, home / CONFIG_FILE):
        take(_BY_NAME[name], _BY_NAME[name].reader, raw, name, Origin("file", CONFIG_FILE))
    _refuse_unknown_variables(environ)
    for field in FIELDS[1:]:
        # The last one read wins, so LLAMESH_* stands after the OLLAMA_* of the same field.
        for variable, reader in (*field.variables, (field.variable, field.reader)):
            text = values.trim(environ.get(variable, ""))
            if text:
                take(field, reader, text, variable, Origin("environment", variable))
    for field in FIELDS[1:]:
        if field.name in flags:
            take(field, field.reader, flags[field.name], field.flag, Origin("flag", field.flag))

    settings = _with_defaults(found, home_origin, machine)
    origins = {field.name: origins.get(field.name, Origin("default")) for field in fields(Settings)}
    _check_auth(settings, origins)
    without_effect = tuple(
        sorted(name for name in environ if name.startswith("OLLAMA_") and name not in _HONOURED)
    )
    return Configuration(settings, origins, without_effect)


def home_directory(
    environ: Mapping[str, str], flags: Mapping[str, str], machine: Machine
) -> tuple[Path, Origin]:
    """The node's home and who chose it. Raises ConfigError."""
    reader = values.directory(machine.user_home, machine.working_directory)
    text = values.trim(environ.get(HOME_VARIABLE, ""))
    if "home" in flags:
        raw, key, origin = flags["home"], "--home", Origin("flag", "--home")
    elif text:
        raw, key, origin = text, HOME_VARIABLE, Origin("environment", HOME_VARIABLE)
    else:
        return machine.user_home / ".llamesh", Origin("default")
    home = _read(_BY_NAME["home"], reader, raw, key, origin)
    assert isinstance(home, Path)
    return home, origin


def _with_defaults(found: dict[str, object], home_origin: Origin, machine: Machine) -> Settings:
    home = found["home"]
    assert isinstance(home, Path)
    moved = home_origin.kind != "default"
    store = home / "models" if moved else machine.user_home / ".ollama" / "models"
    defaults: dict[str, object] = {
        "models": store,
        "node_name": values.node_name_from(machine.hostname),
        "cpu_threads": machine.cpu_cores,
    }
    # Every reader returns its field's type; the table's types are checked by a test.
    return Settings(**cast("Any", {**defaults, **found}))


def _read(field: Field, reader: Reader, raw: RawValue, key: str, origin: Origin) -> object:
    try:
        return reader(raw)
    except BadValue as problem:
        shown = "(hidden)" if field.name in SECRETS else str(raw)
        raise ConfigError(key, shown, f"allowed is {problem}", origin) from None


def _file_values(text: str | None, path: Path) -> list[tuple[str, RawValue]]:
    if text is None:
        return []
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(
            str(path), None, f"is not valid TOML: {problem}", Origin("file", CONFIG_FILE)
        ) from None
    pairs: list[tuple[str, RawValue]] = []
    for key, value in table.items():
        origin = Origin("file", CONFIG_FILE)
        if key == "home":
            allowed = f"cannot stand in the file that lies in it; set {HOME_VARIABLE} or --home"
            raise ConfigError(key, str(value), allowed, origin)
        if key not in _BY_NAME:
            raise ConfigError(key, None, _unknown(key, [*_BY_NAME][1:], "key"), origin)
        raw = _raw(value)
        if raw is None:
            allowed = "a text, number, true, false or a list of texts is allowed"
            raise ConfigError(key, str(value), allowed, origin)
        pairs.append((key, raw))
    return pairs


def _raw(value: object) -> RawValue | None:
    match value:
        case bool() | int() | float() | str():
            return value
        case list():
            entries = cast("list[object]", value)
            texts = [entry for entry in entries if isinstance(entry, str)]
            return texts if len(texts) == len(entries) else None
        case _:
            return None


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = [field.variable for field in FIELDS]
    for name in sorted(environ):
        if name.startswith("LLAMESH_") and name not in known:
            origin = Origin("environment", name)
            raise ConfigError(name, None, _unknown(name, known, "variable"), origin)


def _unknown(name: str, known: list[str], noun: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
    return f"unknown {noun}; {hint}"


def _check_auth(settings: Settings, origins: Mapping[str, Origin]) -> None:
    if settings.auth == "token":
        reason = (
            "users and tokens do not exist in this release, so nobody could log in; "
            "allowed is open, for networks where every machine may use this node"
        )
        raise ConfigError("auth", "token", reason, origins["auth"])
    if settings.auth is None and not values.is_loopback(settings.host):
        reason = (
            "an address other than loopback lets the network use this node without a login; "
            "choose that with --auth open (LLAMESH_AUTH=open), or listen on 127.0.0.1"
        )
        raise ConfigError("host", settings.host, reason, origins["host"])


def this_machine() -> Machine:
    """Read the facts; ``cpu_cores`` counts physical cores this process may use."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    physical = psutil.cpu_count(logical=False)
    cores = max(1, min(n for n in (usable, physical) if n))
    return Machine(Path.home(), Path.cwd(), socket.gethostname(), cores)


def load(environ: Mapping[str, str], flags: Mapping[str, str]) -> Configuration:
    """Read the configuration file and resolve. Raises ConfigError."""
    machine = this_machine()
    home, _ = home_directory(environ, flags, machine)
    return resolve(
        environ=environ, flags=flags, file_text=_read_file(home / CONFIG_FILE), machine=machine
    )


def _read_file(path: Path) -> str | None:
    origin = Origin("file", CONFIG_FILE)
    try:
        with path.open("rb") as file:
            content = file.read(FILE_LIMIT_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise ConfigError(str(path), None, f"cannot be read: {problem.strerror}", origin) from None
    if len(content) > FILE_LIMIT_BYTES:
        raise ConfigError(str(path), None, f"is over {FILE_LIMIT_BYTES} bytes", origin)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError(str(path), None, "is not UTF-8 text", origin) from None
