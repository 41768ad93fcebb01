"""Sets up ``.venv`` of this clone: the locked dependencies, llama.cpp built for this machine,
and the project itself. Nothing is installed anywhere else.

Runs on a bare Python 3.11 or newer. Called by every ``make`` target that needs the environment;
when nothing changed since the last time it ends at once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"
STAMP = VENV / "llamesh-setup"
BUILD_OPTIONS = VENV / "llamesh-build-options"
ENGINE = "llama-cpp-python"
MACOS_TOOLS = "xcode-select --install"


class Missing(NamedTuple):
    """Something this machine lacks, and the package that has it."""

    what: str
    debian: str
    fedora: str
    macos: str


class SetupFailed(Exception):
    """Set-up cannot go on; the text says why."""


def main() -> int:
    """Bring ``.venv`` up to date; exit status 1 with a reason if that cannot be done."""
    options = build_options()
    wanted = stamp(options)
    if STAMP.is_file() and STAMP.read_text() == wanted and PYTHON.exists():
        return 0
    try:
        report_missing()
        install(options)
    except SetupFailed as problem:
        print(f"setup: {problem}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as problem:
        command = shlex.join(str(part) for part in problem.cmd)
        print(f"setup: this command failed:\n  {command}", file=sys.stderr)
        return 1
    BUILD_OPTIONS.write_text("\n".join(options))
    STAMP.write_text(wanted)
    return 0


def build_options() -> list[str]:
    """Build settings of llama.cpp, as ``cmake.define.X=Y`` and ``cmake.args=...``.

    From ``CMAKE_ARGS`` if set (an empty one means none), else those of the last build, so that
    a plain ``make test`` does not turn a CUDA build back into a CPU one. They are passed as
    build settings and not only left in the environment, because uv's cache of built packages
    tells builds apart by settings alone.
    """
    text = os.environ.get("CMAKE_ARGS")
    if text is None:
        return (
            BUILD_OPTIONS.read_text().split("\n") if BUILD_OPTIONS.is_file() else default_options()
        )
    options = default_options()
    for word in shlex.split(text):
        name, separator, value = word.removeprefix("-D").partition("=")
        if word.startswith("-D") and separator:
            options = [o for o in options if not o.startswith(f"cmake.define.{name}=")]
            options.append(f"cmake.define.{name.partition(':')[0]}={value}")
        else:
            options.append(f"cmake.args={word}")
    return options


def default_options() -> list[str]:
    """The RPC backend is what later splits a model over machines."""
    return ["cmake.define.GGML_RPC=ON"]


def stamp(options: list[str]) -> str:
    """What the environment was made from; any difference means set-up has work to do."""
    digest = hashlib.sha256()
    for path in (
        REQUIREMENTS / "bootstrap.lock",
        REQUIREMENTS / "dev.lock",
        ROOT / "pyproject.toml",
    ):
        digest.update(path.read_bytes())
    digest.update("\n".join(options).encode())
    digest.update(str(ROOT).encode())
    return digest.hexdigest() + "\n"


def report_missing() -> None:
    """Raise SetupFailed naming everything missing and the packages that have it."""
    missing: list[Missing] = []
    if not works(os.environ.get("CC"), "cc", "gcc", "clang"):
        missing.append(Missing("a C compiler", "gcc", "gcc", MACOS_TOOLS))
    if not works(os.environ.get("CXX"), "c++", "g++", "clang++"):
        missing.append(Missing("a C++ compiler", "g++", "gcc-c++", MACOS_TOOLS))
    if not works("cmake"):
        missing.append(Missing("cmake", "cmake", "cmake", "brew install cmake"))
    if not works(os.environ.get("MAKE"), "make", "gmake"):
        missing.append(Missing("make", "make", "make", MACOS_TOOLS))
    if not PYTHON.exists() and not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        missing.append(
            Missing(
                "Python's venv module", f"python{version}-venv", "python3", "brew install python"
            )
        )
    if not missing:
        return
    lines = ["this machine lacks " + ", ".join(item.what for item in missing)]
    lines.append("  Debian, Ubuntu:  sudo apt install " + " ".join(m.debian for m in missing))
    lines.append("  Fedora:          sudo dnf install " + " ".join(m.fedora for m in missing))
    lines.append("  macOS:           " + " && ".join(dict.fromkeys(m.macos for m in missing)))
    raise SetupFailed("\n".join(lines))


def works(*candidates: str | None) -> bool:
    """Whether any of the commands exists and answers ``--version``."""
    for candidate in candidates:
        words = shlex.split(candidate) if candidate else []
        if words and shutil.which(words[0]):
            done = subprocess.run(
                [*words, "--version"], capture_output=True, check=False, stdin=subprocess.DEVNULL
            )
            if done.returncode == 0:
                return True
    return False


def install(options: list[str]) -> None:
    """Create ``.venv`` and fill it. Raises SetupFailed or CalledProcessError."""
    began = time.monotonic()
    if not PYTHON.exists():
        say(f"creating .venv with Python {sys.version.split()[0]}")
        run(sys.executable, "-m", "venv", "--clear", VENV)
    if not UV.exists() or not fresh_enough():
        say("installing uv into .venv")
        pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        run(*pip, "install", "--no-deps", "--require-hashes", "-r", REQUIREMENTS / "bootstrap.lock")
    say(
        "installing the locked dependencies; the first time, llama.cpp is compiled for this "
        "machine (about 5 minutes on 2 cores), later the build is reused"
    )
    settings = [f"--config-settings-package={ENGINE}:{option}" for option in options]
    rebuilt = BUILD_OPTIONS.is_file() and BUILD_OPTIONS.read_text() != "\n".join(options)
    run(
        UV, "pip", "install", "--quiet", "--python", PYTHON, "--no-deps", "--require-hashes",
        "-r", REQUIREMENTS / "dev.lock", "--no-binary", ENGINE, *settings,
        *(["--reinstall-package", ENGINE] if rebuilt else []),
    )  # fmt: skip
    remove_outdated_stubs()
    run(
        UV, "pip", "install", "--quiet", "--python", PYTHON, "--no-deps", "--no-build-isolation",
        "--editable", ROOT,
    )  # fmt: skip
    say(f"done in {time.monotonic() - began:.0f} s: .venv/bin/llamesh is ready")


def fresh_enough() -> bool:
    """Whether ``.venv`` has the locked uv."""
    locked = (REQUIREMENTS / "bootstrap.lock").read_text().partition("uv==")[2].split()[0]
    done = subprocess.run([UV, "--version"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.split()[1:2] == [locked]


def remove_outdated_stubs() -> None:
    """libp2p brings in trio-typing, whose stubs describe a trio of years ago and would hide
    trio's own annotations from the type checker. Its run-time part stays."""
    for stubs in VENV.glob("lib/python3*/site-packages/trio-stubs"):
        shutil.rmtree(stubs)


def run(*command: str | Path) -> None:
    """Run a child with nothing on its standard input."""
    subprocess.run(command, check=True, cwd=ROOT, stdin=subprocess.DEVNULL)


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
