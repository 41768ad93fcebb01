"""The store on disk, in Ollama's own layout: manifests by name, blobs by digest.

Blobs never change: each is written under a temporary name, checked, synced and renamed into
place. A manifest is renamed into place only when every blob it names is there, so a crash at any
moment leaves either the old model or the new one. File work happens in threads; one lock orders
all changes of manifests. Nothing is removed that an unreadable manifest might still name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import structlog
import trio

from agent.models.errors import BlobNotFound, DigestMismatch, DiskFull, UnusableModel
from agent.models.gguf import GgufHeader, parse_header
from agent.models.manifest import (
    MANIFEST_LIMIT_BYTES,
    Digest,
    Manifest,
    decode_manifest,
    digest_of,
)
from agent.models.names import ModelName, is_valid
from agent.models.offload import in_thread

WRITE_CHUNK_BYTES: Final = 1 << 20
"""Uploads are gathered to this size before a thread writes them."""
STALE_UPLOAD_S: Final = 24 * 3600.0
"""Unfinished files older than this, left by a crash, are removed at the start."""

LOCK_WAIT_S: Final = 10.0
LOCK_POLL_S: Final = 0.005

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest as it lies on disk. ``digest`` is 64 hex digits of its bytes."""

    name: ModelName
    path: Path
    manifest: Manifest
    digest: str
    modified_at_s: float
    stamp: tuple[int, int, int]
    """Modification time in ns, size and inode: a changed file has another stamp."""


class Store:
    """Blobs and manifests under ``models``; unfinished files under ``incoming``."""

    def __init__(self, models: Path, incoming: Path, *, noprune: bool = False) -> None:
        self._manifests = models / "manifests"
        self._blobs = models / "blobs"
        self._noprune = noprune
        self._wanted_incoming = incoming
        self._incoming: Path | None = None
        self.lock = trio.Lock()
        """Held by whoever changes manifests, from the check of blobs to the rename."""

    # Blobs.

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob lies, or would lie; older stores have a colon in the name."""
        path = self._blobs / digest.replace(":", "-")
        if not path.exists():
            legacy = self._blobs / digest
            if legacy.exists():
                return legacy
        return path

    def has_blob(self, digest: Digest) -> bool:
        return self.blob_path(digest).is_file()

    def read_blob(self, digest: Digest, limit_bytes: int) -> bytes:
        """A small blob. Raises BlobNotFound, or UnusableModel when it exceeds the limit."""
        try:
            with self.blob_path(digest).open("rb") as file:
                data = file.read(limit_bytes + 1)
        except FileNotFoundError:
            raise BlobNotFound(digest) from None
        if len(data) > limit_bytes:
            raise UnusableModel(f"the layer {digest} is larger than {limit_bytes} bytes")
        return data

    def read_header(self, digest: Digest) -> GgufHeader:
        """The GGUF header of a blob. Raises BlobNotFound or InvalidGguf."""
        try:
            return read_gguf_header(self.blob_path(digest))
        except FileNotFoundError:
            raise BlobNotFound(digest) from None

    def write_blob(self, data: bytes) -> tuple[Digest, bool]:
        """Store bytes in memory; the flag tells whether the blob is new."""
        digest = digest_of(data)
        if self.has_blob(digest):
            return digest, False
        with self.incoming_file(len(data)) as (file, temporary):
            file.write(data)
            place(file, temporary, self._blobs / digest.replace(":", "-"))
        return digest, True

    async def receive_blob(
        self, digest: Digest, chunks: AsyncIterator[bytes], size_bytes: int | None
    ) -> bool:
        """Stream an upload to disk; False when the blob was already there (nothing is read).

        Raises DigestMismatch for other content and DiskFull, before reading when the size is
        known. Cancellation and errors leave nothing behind.
        """
        if await in_thread(self.has_blob, digest):
            return False
        upload = await in_thread(_Upload, self, size_bytes)
        try:
            gathered: list[bytes] = []
            gathered_bytes = 0
            async for chunk in chunks:
                gathered.append(chunk)
                gathered_bytes += len(chunk)
                if gathered_bytes >= WRITE_CHUNK_BYTES:
                    await in_thread(upload.write, b"".join(gathered))
                    gathered.clear()
                    gathered_bytes = 0
            target = self._blobs / digest.replace(":", "-")
            await in_thread(upload.finish, b"".join(gathered), digest, target)
        finally:
            upload.close()
        return True

    # Manifests.

    @contextmanager
    def exclusive(self) -> Generator[None]:
        """Keeps other agents on the same store from changing manifests meanwhile.

        Raises TimeoutError when one of them holds the lock for LOCK_WAIT_S.
        """
        self._blobs.mkdir(parents=True, exist_ok=True)
        path = self._blobs.parent / ".llamesh.lock"
        deadline = time.monotonic() + LOCK_WAIT_S
        with path.open("ab") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"another agent holds {path}") from None
                    time.sleep(LOCK_POLL_S)
            yield

    def manifest_path(self, name: ModelName) -> Path:
        return self._manifests / name.host / name.namespace / name.model / name.tag

    def find_name(self, name: ModelName) -> ModelName | None:
        """The stored name that equals ``name`` without regard to case."""
        if self.manifest_path(name).is_file():
            return name
        return next((found for found in self.names() if found.key == name.key), None)

    def names(self) -> Iterator[ModelName]:
        """Every name with a manifest file, in no particular order."""
        for path in self._manifests.glob("*/*/*/*"):
            if path.name.startswith(".") or not path.is_file():
                continue
            host, namespace, model, tag = path.relative_to(self._manifests).parts
            name = ModelName(host, namespace, model, tag)
            if is_valid(name):
                yield name

    def read_manifest(self, name: ModelName) -> StoredManifest | None:
        """None without a manifest of exactly that name. Raises UnusableModel for a broken one."""
        path = self.manifest_path(name)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                data = file.read(MANIFEST_LIMIT_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        if len(data) > MANIFEST_LIMIT_BYTES:
            raise UnusableModel(f"the manifest of {name.short} is too large")
        try:
            manifest = decode_manifest(data)
        except ValueError as error:
            raise UnusableModel(f"the manifest of {name.short} is unreadable: {error}") from error
        return StoredManifest(
            name=name,
            path=path,
            manifest=manifest,
            digest=digest_of(data).removeprefix("sha256:"),
            modified_at_s=status.st_mtime,
            stamp=(status.st_mtime_ns, status.st_size, status.st_ino),
        )

    def write_manifest(self, name: ModelName, data: bytes) -> None:
        """Put a manifest in place and drop what only the old one needed. Hold the lock.

        Raises BlobNotFound when a blob it names is missing, and changes nothing then.
        """
        manifest = decode_manifest(data)
        for layer in manifest.blobs:
            if not self.has_blob(Digest(layer.digest)):
                raise BlobNotFound(layer.digest)
        old = self._layers_of(name)
        path = self.manifest_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.incoming_file(len(data)) as (file, temporary):
            file.write(data)
            place(file, temporary, path)
        self._prune(old - {layer.digest for layer in manifest.blobs})

    def delete_manifest(self, name: ModelName) -> bool:
        """Remove a manifest and what only it needed. Hold the lock. False without a manifest."""
        old = self._layers_of(name)
        path = self.manifest_path(name)
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        sync_directory(path.parent)
        for directory in (path.parent, path.parent.parent, path.parent.parent.parent):
            with suppress(OSError):  # not empty, which is the usual case
                directory.rmdir()
        self._prune(old)
        return True

    def _layers_of(self, name: ModelName) -> set[str]:
        """Digests a manifest names; none for a missing or unreadable one."""
        try:
            stored = self.read_manifest(name)
        except UnusableModel:
            return set()
        return {layer.digest for layer in stored.manifest.blobs} if stored else set()

    def _prune(self, candidates: set[str]) -> None:
        if self._noprune or not candidates:
            return
        used: set[str] = set()
        for path in self._manifests.glob("*/*/*/*"):
            try:
                data = path.read_bytes()
                used.update(layer.digest for layer in decode_manifest(data).blobs)
            except (OSError, ValueError) as error:
                log.warning("prune_skipped", manifest=str(path), reason=str(error))
                return
        for digest in sorted(candidates - used):
            path = self.blob_path(Digest(digest))
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("prune_failed", blob=digest, reason=str(error))
            else:
                log.info("blob_removed", blob=digest)

    # Unfinished files.

    @contextmanager
    def incoming_file(self, size_bytes: int | None) -> Generator[tuple[BinaryIO, Path]]:
        """A temporary file on the store's file system; removed unless it was placed."""
        if size_bytes is not None:
            self.check_space(size_bytes)
        temporary = self._incoming_directory() / f"{secrets.token_hex(16)}.part"
        try:
            with _disk_full(size_bytes, self._blobs), temporary.open("xb") as file:
                yield file, temporary
        finally:
            temporary.unlink(missing_ok=True)

    def check_space(self, size_bytes: int) -> None:
        """Raises DiskFull when the store's file system has less free space."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._blobs).free
        if size_bytes > free:
            raise DiskFull(_space_message(size_bytes, free, self._blobs))

    def _incoming_directory(self) -> Path:
        """``incoming`` if renames into the store work from there, else one inside the store."""
        if self._incoming is None:
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._wanted_incoming.mkdir(parents=True, exist_ok=True)
            same = self._wanted_incoming.stat().st_dev == self._blobs.stat().st_dev
            chosen = self._wanted_incoming if same else self._blobs.parent / ".llamesh-incoming"
            chosen.mkdir(exist_ok=True)
            now = time.time()
            for path in chosen.glob("*.part"):
                with suppress(OSError):
                    if now - path.stat().st_mtime > STALE_UPLOAD_S:
                        path.unlink()
            self._incoming = chosen
        return self._incoming


class _Upload:
    """One blob on its way to disk. Its methods run in threads, one at a time."""

    def __init__(self, store: Store, size_bytes: int | None) -> None:
        self._context = store.incoming_file(size_bytes)
        self._file, self._path = self._context.__enter__()
        self._hash = hashlib.sha256()
        self._size_bytes = size_bytes

    def write(self, data: bytes) -> None:
        with _disk_full(self._size_bytes, self._path):
            self._hash.update(data)
            self._file.write(data)

    def finish(self, data: bytes, digest: Digest, target: Path) -> None:
        self.write(data)
        actual = f"sha256:{self._hash.hexdigest()}"
        if actual != digest:
            raise DigestMismatch(expected=digest, actual=actual)
        with _disk_full(self._size_bytes, self._path):
            place(self._file, self._path, target)

    def close(self) -> None:
        """Quick enough for the event loop, so that it also runs when cancelled."""
        self._context.__exit__(None, None, None)


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a GGUF file. Raises InvalidGguf, or OSError when it cannot be read."""
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        return parse_header(partial(_pread, descriptor), os.fstat(descriptor).st_size)


def place(file: BinaryIO, temporary: Path, target: Path) -> None:
    """Sync a finished file and rename it to its final name, durably."""
    file.flush()
    os.fsync(file.fileno())
    temporary.replace(target)
    sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    """Make renames inside a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pread(descriptor: int, offset: int, length: int) -> bytes:
    parts: list[bytes] = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


@contextmanager
def _disk_full(size_bytes: int | None, path: Path) -> Generator[None]:
    """Turns the system's "no space" into DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        directory = path if path.is_dir() else path.parent
        free = shutil.disk_usage(directory).free
        raise DiskFull(_space_message(size_bytes, free, directory)) from error


def _space_message(size_bytes: int | None, free_bytes: int, directory: Path) -> str:
    need = "more space than there is" if size_bytes is None else f"{size_bytes} bytes"
    return f"not enough free space: {need} needed, {free_bytes} bytes free in {directory}"
