"""The lock files: complete, hashed, without an index address, and with the pins that matter."""

from __future__ import annotations

import importlib
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("bootstrap.lock", "dev.lock", "runtime.lock")
PINNED = ("libp2p", "llama-cpp-python", "pysyncobj", "hypercorn")


def lock(name: str) -> str:
    return (ROOT / "requirements" / name).read_text()


def entries(text: str) -> dict[str, list[str]]:
    """Requirement line to its hashes."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            current = line.removesuffix("\\").strip()
            found[current] = []
        elif digest := re.search(r"--hash=sha256:([0-9a-f]{64})\b", line):
            found[current].append(digest[1])
    return found


def versions(text: str) -> dict[str, str]:
    pairs = [re.match(r"([a-z0-9._-]+)==(\S+)", line) for line in entries(text)]
    return {pair[1]: pair[2] for pair in pairs if pair}


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_pinned_and_hashed(name: str) -> None:
    found = entries(lock(name))
    assert found
    for requirement, hashes in found.items():
        assert re.match(r"[a-z0-9._-]+==\S+", requirement), requirement
        assert hashes, requirement


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_names_an_index(name: str) -> None:
    assert not re.search(r"https?://|--index-url|--extra-index|--find-links|-i ", lock(name))


def test_the_pins_of_the_project_are_those_of_the_locks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in PINNED:
        exact = [d.partition("==")[2] for d in project["dependencies"] if d.startswith(f"{name}==")]
        assert exact, name
        for each in ("dev.lock", "runtime.lock"):
            assert versions(lock(each))[name] == exact[0]


def test_the_development_lock_holds_the_runtime_lock() -> None:
    assert versions(lock("runtime.lock")).items() <= versions(lock("dev.lock")).items()


@pytest.mark.parametrize("name", ["dev.lock", "runtime.lock"])
def test_fastecdsa_is_overridden_with_a_version_that_has_wheels(name: str) -> None:
    requirement = next(line for line in entries(lock(name)) if line.startswith("fastecdsa=="))
    # 2 has no wheels for current Pythons, 4 changed calls that libp2p makes.
    assert int(requirement.partition("==")[2].split(".")[0]) == 3
    # A release of one source archive has one hash; wheels for our Pythons bring many more.
    assert len(entries(lock(name))[requirement]) > 6


def test_libp2p_works_with_the_overridden_fastecdsa() -> None:
    assert int(metadata.version("fastecdsa").split(".")[0]) == 3
    ecc = importlib.import_module("libp2p.crypto.ecc")
    public = ecc.create_new_key_pair("P-256").public_key
    restored = ecc.ECCPublicKey.from_bytes(public.to_bytes(), "P-256")
    assert restored.to_bytes() == public.to_bytes()
    assert public.to_bytes() != ecc.create_new_key_pair("P-256").public_key.to_bytes()
