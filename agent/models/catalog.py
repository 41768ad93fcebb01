"""The models of this node: the one door to names, files and what is known of them."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog
import trio

from agent.models import create as creation
from agent.models.assemble import assemble
from agent.models.create_request import CreateProgress, CreateRequest
from agent.models.errors import (
    CreateFailed,
    InvalidGguf,
    ModelError,
    ModelNotFound,
    StoreNotWritable,
    UntranslatableDialect,
    UnusableModel,
)
from agent.models.installed import InstalledModel
from agent.models.manifest import Digest, parse_digest
from agent.models.names import ModelName, parse_name
from agent.models.offload import in_thread
from agent.models.show import ShowDetails, describe
from agent.models.store import Store, StoredManifest
from agent.models.weights import WeightsIndex
from agent.settings import Settings

RESOLVED_LIMIT: Final = 1024
"""Names as clients write them whose models stay at hand."""

log = structlog.get_logger()
_Stamp = tuple[int, int, int]


@contextmanager
def _store_errors_in_words() -> Generator[None]:
    """Tell what the file system refused as an error of the store."""
    try:
        yield
    except OSError as error:
        raise StoreNotWritable(f"the store could not be written: {error}") from error


def _accept_template(_: str) -> None:
    """Used when nobody who knows the template language was given."""


class Catalog:
    """Resolves, lists, shows, copies, deletes and creates models of the store.

    Errors are those of ``agent.models.errors``, and NotAvailable for what this release lacks.
    Cancelling any call leaves the store as it was before or after the whole change.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        validate_template: creation.ValidateTemplate = _accept_template,
    ) -> None:
        self._store = Store(settings.models, settings.home / "incoming", noprune=settings.noprune)
        self._weights = WeightsIndex(self._store, settings.home)
        self._validate_template = validate_template
        self._translating = trio.Lock()
        self._resolved: OrderedDict[str, tuple[Path, _Stamp, InstalledModel]] = OrderedDict()
        self._listed: dict[tuple[str, _Stamp], InstalledModel] = {}

    async def resolve(self, name: str) -> InstalledModel:
        """The model a client means, its weights ready to be loaded.

        A model that is already known costs two ``stat`` calls. Raises InvalidName,
        ModelNotFound, UnusableModel (UntranslatableDialect is one), InvalidGguf, BlobNotFound,
        or DiskFull when a translated copy does not fit.
        """
        known = self._resolved.get(name)
        if known is not None:
            path, stamp, model = known
            if _stamp(path) == stamp and model.weights_path.exists():
                self._resolved.move_to_end(name)
                return model
            del self._resolved[name]
        parsed = parse_name(name)
        stored, model = await in_thread(self._read, parsed, name, loadable=False)
        if not all(path.exists() for path in (model.weights_path, *model.projector_paths)):
            # One at a time, so that a large file is not translated twice.
            async with self._translating:
                stored, model = await in_thread(self._read, parsed, name, loadable=True)
        self._resolved[name] = (stored.path, stored.stamp, model)
        if len(self._resolved) > RESOLVED_LIMIT:
            self._resolved.popitem(last=False)
        return model

    async def list(self) -> tuple[InstalledModel, ...]:
        """Every model that can be read, newest first. Broken ones are logged and left out.

        Models whose weights need a translation are listed without making it.
        """
        return await in_thread(self._list)

    async def show(self, name: str, *, verbose: bool = False) -> ShowDetails:
        """Everything known of one model. Raises what ``resolve`` raises, except DiskFull and
        UntranslatableDialect: a model that cannot be loaded can be looked at."""
        return await in_thread(self._show, parse_name(name), name, verbose)

    async def copy(self, source: str, destination: str) -> None:
        """Another name for the same layers. Raises InvalidName (which name, in its text),
        ModelNotFound, StoreNotWritable."""
        old, new = parse_name(source), parse_name(destination)
        with _store_errors_in_words():
            async with self._store.lock:
                await in_thread(self._copy, old, new, source)

    async def delete(self, name: str) -> None:
        """Remove a name and the layers nobody else uses. Raises InvalidName, ModelNotFound,
        StoreNotWritable."""
        parsed = parse_name(name)
        with _store_errors_in_words():
            async with self._store.lock:
                await in_thread(self._delete, parsed, name)

    async def has_blob(self, digest: str) -> bool:
        """Raises InvalidDigest."""
        return await in_thread(self._store.has_blob, parse_digest(digest))

    async def receive_blob(
        self, digest: str, chunks: AsyncIterator[bytes], size_bytes: int | None
    ) -> bool:
        """Store an upload; False when it was there already. Raises InvalidDigest,
        DigestMismatch, DiskFull, StoreNotWritable. Nothing is left behind when cancelled."""
        with _store_errors_in_words():
            return await self._store.receive_blob(parse_digest(digest), chunks, size_bytes)

    async def create(self, request: CreateRequest) -> AsyncGenerator[CreateProgress]:
        """Make a model, telling each step. Raises CreateRejected, CreateFailed, NotAvailable,
        DiskFull.

        Holds no lock and no nursery between its steps, so it may be left at any of them; the
        name changes hands in the one before ``success``.
        """
        try:
            if request.files or request.adapters:
                yield CreateProgress(status="parsing GGUF")
            made = await in_thread(
                creation.plan, self._store, self._weights, request, self._validate_template
            )
            for layer in made.layers:
                yield CreateProgress(status=f"using existing layer {layer.digest}")
            for _, data in made.texts:
                digest, created = await in_thread(self._store.write_blob, data)
                verb = "creating new" if created else "using existing"
                yield CreateProgress(status=f"{verb} layer {digest}")
            yield CreateProgress(status="writing manifest")
            async with self._store.lock:
                await in_thread(self._commit, made)
        except OSError as error:
            raise CreateFailed(f"the store could not be written: {error}") from error
        log.info("model_created", model=made.name.full)
        yield CreateProgress(status="success")

    def _commit(self, made: creation.Plan) -> None:
        with self._store.exclusive():
            creation.commit(self._store, made)

    def _find(self, parsed: ModelName, name: str) -> StoredManifest:
        found = self._store.find_name(parsed)
        stored = self._store.read_manifest(found) if found is not None else None
        if stored is None:
            raise ModelNotFound(name)
        return stored

    def _read(
        self, parsed: ModelName, name: str, *, loadable: bool
    ) -> tuple[StoredManifest, InstalledModel]:
        stored = self._find(parsed, name)
        try:
            model = assemble(self._store, self._weights, stored, loadable=loadable)
        except InvalidGguf as error:
            raise InvalidGguf(f"a file of model '{name}' is damaged: {error}") from error
        refusal = self._weights.read(parse_digest(model.weights_digest)).refusal
        if refusal:
            raise UntranslatableDialect(refusal)
        return stored, model

    def _list(self) -> tuple[InstalledModel, ...]:
        models: list[InstalledModel] = []
        seen: dict[tuple[str, _Stamp], InstalledModel] = {}
        for name in self._store.names():
            try:
                stamp = _stamp(self._store.manifest_path(name))
                model = self._listed.get((name.full, stamp)) if stamp else None
                if model is None:
                    stored = self._store.read_manifest(name)
                    if stored is None:
                        continue
                    stamp = stored.stamp
                    model = assemble(self._store, self._weights, stored, loadable=False)
            except (ModelError, OSError) as error:
                log.warning("model_not_listed", model=name.full, reason=str(error))
                continue
            if stamp is not None:
                seen[name.full, stamp] = model
            models.append(model)
        self._listed = seen
        models.sort(key=lambda model: (-model.modified_at_s, model.name.key))
        return tuple(models)

    def _show(self, parsed: ModelName, name: str, verbose: bool) -> ShowDetails:
        stored = self._find(parsed, name)
        model = assemble(self._store, self._weights, stored, loadable=False)
        return describe(self._store, stored, model, verbose=verbose)

    def _copy(self, old: ModelName, new: ModelName, source: str) -> None:
        with self._store.exclusive():
            stored = self._find(old, source)
            target = self._store.find_name(new) or new
            if target == stored.name:
                return
            # The bytes as they are, so that the copy has the same digest.
            self._store.write_manifest(target, stored.path.read_bytes())
        log.info("model_copied", source=stored.name.full, destination=target.full)

    def _delete(self, parsed: ModelName, name: str) -> None:
        with self._store.exclusive():
            found = self._store.find_name(parsed)
            if found is None:
                raise ModelNotFound(name)
            try:
                stored = self._store.read_manifest(found)
            except UnusableModel:
                stored = None
            if not self._store.delete_manifest(found):
                raise ModelNotFound(name)
        for layer in stored.manifest.layers if stored else ():
            digest = Digest(layer.digest)
            if not self._store.has_blob(digest):
                self._weights.forget(digest)
        log.info("model_deleted", model=found.full)


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
