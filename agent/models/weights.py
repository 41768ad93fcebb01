"""What is known of a weights file by its digest: its summary, and a loadable copy of it.

Summaries are kept under ``index`` so that a restart reads no vocabulary again. Files in Ollama's
own dialect get a translated copy under ``translated``, made at first use, because llama.cpp
loads a path. Everything here blocks; callers use threads.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from agent.models.dialect import DIALECT_VERSION, Translation, translate
from agent.models.errors import BlobNotFound, DiskFull, UntranslatableDialect
from agent.models.gguf import parse_bytes
from agent.models.gguf_summary import summarise
from agent.models.installed import GgufSummary
from agent.models.manifest import Digest
from agent.models.store import Store, sync_directory

INDEX_VERSION: Final = 1
MEMORY_LIMIT: Final = 4096
"""Summaries kept in memory."""
_COPY_BYTES: Final = 64 * 1024 * 1024

log = structlog.get_logger()


class Weights(msgspec.Struct, frozen=True):
    """Facts about one weights file. ``refusal`` is why it cannot be translated, if so."""

    version: int
    dialect: int
    summary: GgufSummary
    """Of the translated form where there is one."""
    translated: bool = False
    refusal: str = ""


_decoder = msgspec.json.Decoder(Weights)


class WeightsIndex:
    """Summaries and translated copies of the store's weights."""

    def __init__(self, store: Store, home: Path) -> None:
        self._store = store
        self._index = home / "index"
        self._translated = home / "translated"
        self._known: OrderedDict[Digest, Weights] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, digest: Digest) -> Weights:
        """Raises BlobNotFound, or InvalidGguf for a file that is none."""
        with self._lock:
            known = self._known.get(digest)
        if known is None:
            known = self._read_file(digest)
        if known is None:
            known = self._examine(digest)
            self._write_file(digest, known)
        with self._lock:
            self._known[digest] = known
            self._known.move_to_end(digest)
            if len(self._known) > MEMORY_LIMIT:
                self._known.popitem(last=False)
        return known

    def path(self, digest: Digest) -> Path:
        """Where the loadable file is, or will be once ``ensure`` has run."""
        if self.read(digest).translated:
            return self._copy_path(digest)
        return self._store.blob_path(digest)

    def ensure(self, digest: Digest) -> Path:
        """The loadable file, translated first if need be.

        One call at a time: a translation removes what an unfinished one left behind. Raises
        UntranslatableDialect, DiskFull, BlobNotFound or InvalidGguf.
        """
        known = self.read(digest)
        if known.refusal:
            raise UntranslatableDialect(known.refusal)
        path = self.path(digest)
        if path.exists():
            return path
        translation = translate(self._store.read_header(digest)) if known.translated else None
        if translation is None:
            raise BlobNotFound(digest)
        self._sweep(digest)
        _write_copy(self._store.blob_path(digest), translation, path)
        log.info("weights_translated", blob=digest, architecture=translation.architecture)
        return path

    def forget(self, digest: Digest) -> None:
        """Drop what was derived from a blob that is gone."""
        with self._lock:
            self._known.pop(digest, None)
        for path in (self._index_path(digest), self._copy_path(digest)):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _sweep(self, digest: Digest) -> None:
        """Remove what a crash left of earlier copies, and copies by older rules."""
        older = f"{digest.removeprefix('sha256:')}-d*.gguf"
        for path in (*self._translated.glob("*.part"), *self._translated.glob(older)):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _examine(self, digest: Digest) -> Weights:
        header = self._store.read_header(digest)
        try:
            translation = translate(header)
        except UntranslatableDialect as error:
            summary = summarise(header, header.file_bytes)
            return Weights(INDEX_VERSION, DIALECT_VERSION, summary, refusal=str(error))
        if translation is None:
            summary = summarise(header, header.file_bytes)
            return Weights(INDEX_VERSION, DIALECT_VERSION, summary)
        size_bytes = translation.size_bytes
        summary = summarise(parse_bytes(translation.header, size_bytes), size_bytes)
        return Weights(INDEX_VERSION, DIALECT_VERSION, summary, translated=True)

    def _read_file(self, digest: Digest) -> Weights | None:
        try:
            known = _decoder.decode(self._index_path(digest).read_bytes())
        except (OSError, ValueError):
            return None
        current = (known.version, known.dialect) == (INDEX_VERSION, DIALECT_VERSION)
        return known if current and self._store.has_blob(digest) else None

    def _write_file(self, digest: Digest, known: Weights) -> None:
        """A cache: losing it costs time only, so it is renamed into place but not synced."""
        target = self._index_path(digest)
        temporary = target.with_suffix(f".{secrets.token_hex(8)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(known))
            temporary.replace(target)
        except OSError as error:
            log.warning("index_not_written", blob=digest, reason=str(error))
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _index_path(self, digest: Digest) -> Path:
        return self._index / f"{digest.removeprefix('sha256:')}.json"

    def _copy_path(self, digest: Digest) -> Path:
        name = f"{digest.removeprefix('sha256:')}-d{DIALECT_VERSION}.gguf"
        return self._translated / name


def _write_copy(source: Path, translation: Translation, target: Path) -> None:
    """New header and the old tensors, under a temporary name until complete and synced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if translation.size_bytes > free:
        raise DiskFull(
            f"not enough free space to translate {source.name}: {translation.size_bytes} bytes "
            f"needed, {free} bytes free in {target.parent}"
        )
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
    try:
        with source.open("rb", buffering=0) as old, temporary.open("xb", buffering=0) as new:
            _write_all(new.fileno(), translation.header)
            for segment in translation.segments:
                _copy_range(old.fileno(), new.fileno(), segment.offset, segment.length)
                _write_all(new.fileno(), bytes(segment.padding))
            os.fsync(new.fileno())
        temporary.replace(target)
        sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_range(source: int, target: int, offset: int, length: int) -> None:
    """Copy inside the kernel where it can, which shares the bytes on some file systems."""
    kernel_copy = getattr(os, "copy_file_range", None)
    while length:
        count = min(length, _COPY_BYTES)
        copied = 0
        if kernel_copy is not None:
            try:
                copied = int(kernel_copy(source, target, count, offset))
            except OSError:
                kernel_copy = None
        if kernel_copy is None:
            data = os.pread(source, min(count, 1 << 20), offset)
            _write_all(target, data)
            copied = len(data)
        if not copied:
            raise OSError(f"the weights file ended at byte {offset} while being copied")
        offset += copied
        length -= copied


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
