"""llama-server from the llama.cpp source inside the llama-cpp-python source distribution.

Both sides of the comparison then run the same llama.cpp commit. It is built once and cached
under ``.cache/llama-server/VERSION``.

    python -m tests.benchmarks.llama_server [--jobs 2] [--source-archive FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".cache" / "llama-server"
DISTRIBUTION: Final = "llama-cpp-python"
LOCK: Final = ROOT / "requirements" / "runtime.lock"

CMAKE_FLAGS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    # The same backends as the wheel's build, and nothing that wants the network.
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)


class BuildFailed(Exception):
    """llama-server could not be built; the message says at which step and why."""


def installed_version() -> str:
    return importlib.metadata.version(DISTRIBUTION)


def server_path(version: str) -> Path:
    return CACHE / version / "build" / "bin" / "llama-server"


def ensure_server(jobs: int, archive: Path | None = None) -> Path:
    """The built binary, building it first if need be. Raises BuildFailed."""
    version = installed_version()
    binary = server_path(version)
    if binary.exists():
        return binary
    if shutil.which("cmake") is None:
        raise BuildFailed("cmake is missing; install the package cmake")
    folder = CACHE / version
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source"
    if not source.exists():
        unpack(archive or download(version, folder), source)
    configure = ["cmake", "-S", str(source), "-B", str(folder / "build"), *CMAKE_FLAGS]
    build = ["cmake", "--build", str(folder / "build"), "--target", "llama-server"]
    log = folder / "build.log"
    for command in (configure, [*build, "-j", str(jobs)]):
        print("+", *command, flush=True)
        with log.open("ab") as output:
            finished = subprocess.run(command, stdout=output, stderr=output, check=False)
        if finished.returncode != 0:
            raise BuildFailed(f"{command[1]} failed, see {log}")
    assert binary.exists(), f"the build left no {binary}"
    return binary


def download(version: str, folder: Path) -> Path:
    """Fetch the source archive, checked against the lock file's hash. Raises BuildFailed."""
    wanted = folder / "requirement.txt"
    wanted.write_text(locked_requirement(LOCK.read_text(), version))
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes",
        "--no-binary", DISTRIBUTION, "--dest", str(folder), "-r", str(wanted),
    ]  # fmt: skip
    print("+", *command, flush=True)
    finished = subprocess.run(command, check=False)
    archives = sorted(folder.glob("llama_cpp_python-*.tar.gz"))
    if finished.returncode != 0 or not archives:
        raise BuildFailed("the source distribution could not be downloaded")
    return archives[0]


def locked_requirement(lock: str, version: str) -> str:
    """The lock file's lines for the distribution: name, version, hashes."""
    pattern = rf"^{DISTRIBUTION}=={re.escape(version)}(?: ;[^\\\n]*)?( \\\n +--hash=\S+)+"
    found = re.search(pattern, lock, re.MULTILINE)
    if found is None:
        raise BuildFailed(f"{LOCK.name} does not pin {DISTRIBUTION} {version}")
    return found.group() + "\n"


def unpack(archive: Path, source: Path) -> None:
    """Extract the llama.cpp tree alone."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    print(f"unpacking {archive.name} sha256:{digest}", flush=True)
    partial = source.with_name("unpacking")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as bundle:
        members = [member for member in bundle if "/vendor/llama.cpp/" in member.name]
        bundle.extractall(partial, members, filter="data")
    (tree,) = partial.glob("*/vendor/llama.cpp")
    tree.rename(source)
    shutil.rmtree(partial)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build llama-server for the benchmarks.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--source-archive", type=Path, default=None)
    arguments = parser.parse_args()
    print(ensure_server(arguments.jobs, arguments.source_archive))


if __name__ == "__main__":
    main()
