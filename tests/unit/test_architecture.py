"""The shape of the code: who may import whom, what is pure, and what no file may contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agent", "api", "consensus", "p2p")
COMPOSITION_ROOT = "agent/cli/serve.py"

ALLOWED = {
    "api": {"api", "agent"},
    "agent": {"agent", "consensus", "p2p"},
    "consensus": {"consensus"},
    "p2p": {"p2p"},
}

PURE = (
    "agent/inference/grammar/*",
    "agent/inference/chat/*",
    "agent/inference/options.py",
    "agent/inference/request.py",
    "agent/inference/protocol.py",
    "agent/inference/text.py",
    "agent/inference/memory.py",
    "agent/inference/engine/schedule.py",
    "agent/models/names.py",
    "agent/models/manifest.py",
    "agent/models/gguf.py",
    "agent/models/dialect.py",
    "agent/models/modelfile.py",
    "agent/models/capabilities.py",
    "agent/models/installed.py",
    "agent/settings.py",
    "agent/config_values.py",
)
IMPURE_MODULES = frozenset(
    {
        "trio", "socket", "time", "random", "secrets", "threading", "subprocess", "multiprocessing",
        "asyncio", "os", "shutil", "tempfile", "signal", "select", "ssl", "http", "urllib.request",
        "httpx", "psutil", "llama_cpp", "structlog", "logging",
    }
)  # fmt: skip
IMPURE_CALLS = frozenset({"open", "input", "print", "exec", "eval"})
IMPURE_METHODS = frozenset(
    {
        "read_bytes", "read_text", "write_bytes", "write_text", "mkdir", "unlink", "iterdir",
        "now", "utcnow", "today", "time_ns", "monotonic", "perf_counter", "getenv",
    }
)  # fmt: skip

ENGINE = ("agent/inference/llama/*", "agent/inference/engine/*", "agent/inference/runner/*")

LINE_LIMIT = 550
LONG_FILES = {
    "agent/inference/pool.py": "one state machine of lanes, leases, reservations and eviction",
}
"""Files over the limit, and the reason why they are not split."""

BANNED_NAMES = frozenset({"utils", "util", "common", "helpers", "helper", "manager", "misc"})
BANNED_WORDS = ("TO" + "DO", "FIX" + "ME", "X" + "XX")


def sources(*folders: str) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    )


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def imports(tree: ast.AST, package: str = "") -> Iterator[tuple[int, str]]:
    """Line and full name of every import, wherever it stands; of ``from a import b``, ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def package_of(name: str) -> str:
    return ".".join(Path(name).parent.parts)


def wrong_directions(name: str, source: str) -> list[str]:
    """Imports of our own packages that the direction forbids."""
    own = Path(name).parts[0]
    allowed = ALLOWED[own] | ({"api"} if name == COMPOSITION_ROOT else set())
    return [
        f"{name}:{line} imports {target}"
        for line, target in imports(ast.parse(source), package_of(name))
        if (top := target.partition(".")[0]) in {*PACKAGES, "simulations", "tests"}
        and top not in allowed
    ]


def impurities(name: str, source: str) -> list[str]:
    """Effects a pure module reaches for."""
    tree = ast.parse(source)
    found = [
        f"{name}:{line} imports {target}"
        for line, target in imports(tree, package_of(name))
        if any(f"{target}.".startswith(f"{module}.") for module in IMPURE_MODULES)
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            found.append(f"{name}:{node.lineno} calls {node.func.id}")
        if isinstance(node.func, ast.Attribute) and node.func.attr in IMPURE_METHODS:
            found.append(f"{name}:{node.lineno} calls .{node.func.attr}")
    return found


def test_packages_import_in_one_direction() -> None:
    wrong = [
        finding
        for path in sources(*PACKAGES)
        for finding in wrong_directions(relative(path), path.read_text())
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("agent/node.py", "import api.server"),
        ("agent/node.py", "def f():\n    from api import server"),
        ("agent/cli/main.py", "from ...api import server"),
        ("consensus/log.py", "from agent.settings import Settings"),
        ("p2p/host.py", "import consensus"),
        ("api/app.py", "import consensus.log"),
        ("api/app.py", "from tests.models import library"),
    ],
)
def test_a_wrong_direction_is_found(name: str, source: str) -> None:
    assert wrong_directions(name, source)


def test_allowed_directions_are_not_reported() -> None:
    assert not wrong_directions(COMPOSITION_ROOT, "from api.server import serve")
    assert not wrong_directions("api/app.py", "import agent.settings, trio")
    assert not wrong_directions("agent/node.py", "from . import settings\nimport consensus")


def test_pure_modules_have_no_effects() -> None:
    found = [
        finding
        for path in sources(*PACKAGES)
        if matches(relative(path), PURE)
        for finding in impurities(relative(path), path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import trio",
        "import os.path",
        "from random import Random",
        "def f():\n    import time",
        "open('x')",
        "from pathlib import Path\nPath('x').read_bytes()",
        "from datetime import datetime\ndatetime.now()",
    ],
)
def test_an_effect_in_a_pure_module_is_found(source: str) -> None:
    assert impurities("agent/settings.py", source)


def test_only_the_engine_imports_llama_cpp() -> None:
    wrong = [
        f"{relative(path)}:{line}"
        for path in sources(*PACKAGES)
        if not matches(relative(path), ENGINE)
        for line, target in imports(ast.parse(path.read_text()))
        if target.partition(".")[0] == "llama_cpp"
    ]
    assert wrong == []


def test_the_agent_process_loads_neither_llama_cpp_nor_numpy() -> None:
    modules = [
        relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in sources("agent", "api")
        if not matches(relative(path), ENGINE) and path.name != "__main__.py"
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "print([n for n in ('llama_cpp', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_module_names_say_what_they_own() -> None:
    names = [relative(path) for path in sources(*PACKAGES, "simulations", "tests")]
    assert [n for n in names if BANNED_NAMES & set(n.removesuffix(".py").split("/"))] == []


def test_files_stay_small_or_say_why() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in sources(*PACKAGES)}
    long = {name: length for name, length in lengths.items() if length > LINE_LIMIT}
    assert {name: length for name, length in long.items() if name not in LONG_FILES} == {}
    outdated = [name for name in LONG_FILES if lengths.get(name, LINE_LIMIT + 1) <= LINE_LIMIT]
    assert outdated == []


def text_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git clone")
    names = [name for name in listed.stdout.split("\0") if name]
    binary = (".gguf", ".png", ".npz", ".lock")
    return [ROOT / name for name in names if not name.endswith(binary) and (ROOT / name).is_file()]


def test_nothing_unfinished_is_marked_in_the_repository() -> None:
    banned = re.compile(r"\b(" + "|".join(BANNED_WORDS) + r")\b")
    found = [
        f"{relative(path)}: {match[0]}"
        for path in text_files()
        if (match := banned.search(path.read_text(errors="replace")))
    ]
    assert found == []


def test_no_machine_path_or_index_address_is_in_the_repository() -> None:
    banned = re.compile("/wo" + r"rk/(main|shared|wt-)|py" + r"pi\.org|pythonho" + r"sted\.org")
    found = [
        f"{relative(path)}: {match[0]}"
        for path in text_files()
        if (match := banned.search(path.read_text(errors="replace")))
    ]
    assert found == []
