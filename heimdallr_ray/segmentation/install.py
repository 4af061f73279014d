"""Models on their way from a staging folder into a registry: judged, made readable without running, listed, moved.

The manifest is the registry: a folder that it does not list is not there. It is replaced in one step, so a process that
ends at any moment leaves a registry that holds. The digests of what a site imports first are pinned in it; the same
model with other bytes is refused afterwards, until somebody says that it is to be replaced.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from heimdallr_ray.errors import AlreadyRunning, BadArchive, WeightsMissing, WeightsTampered
from heimdallr_ray.segmentation.archives import Archive, archive_named
from heimdallr_ray.segmentation.disk import fsync_folder, storage_error
from heimdallr_ray.segmentation.licence import terms_of
from heimdallr_ray.segmentation.tasks import TASKS, ModelSpec
from heimdallr_ray.segmentation.weights import (
    CHECKPOINT_SUFFIX,
    DATASET_NAME,
    MANIFEST_NAME,
    PINS_KEY,
    WORK_FOLDER,
    demo_checkpoints,
    digest_of,
    empty_document,
    is_marked,
    read_document,
    read_manifest,
    store_document,
)

logger = logging.getLogger(__name__)
_STAGING: Final = "staging"
_PREVIOUS: Final = "previous"


@dataclass(frozen=True)
class Source:
    """Where a model came from, for the manifest.

    Attributes:
        name: address, or name of a file or folder; no path of this machine.
        archive_sha256: of the ZIP; empty for a folder.
        imported_at: ISO 8601.
    """

    name: str
    archive_sha256: str
    imported_at: str


@dataclass(frozen=True)
class Installed:
    """What became of one data set."""

    folder: str
    files: int
    size_bytes: int
    rewritten: int
    """Checkpoints that had to be rewritten to be readable without running them."""
    unchanged: bool
    """It was there already, with the same bytes."""


Tidy = Callable[[Path], bool]
"""Makes a checkpoint readable without running it; True where it was rewritten."""
Judge = Callable[[Path, ModelSpec, tuple[str, ...]], None]
"""Raises BadArchive where a model below a folder, with these files, cannot be built or lacks labels of its tasks."""


class OpenRegistry:
    """A registry that this process alone may change."""

    def __init__(self, folder: Path) -> None:
        """`opened` makes one."""
        self.folder = folder
        self.work = folder / WORK_FOLDER
        self.staging = self.work / _STAGING
        self._previous = self.work / _PREVIOUS

    def document(self) -> dict[str, Any]:
        """The manifest, or an empty one where there is none yet.

        Raises:
            WeightsTampered: it is malformed.
        """
        if not (self.folder / MANIFEST_NAME).exists():
            return empty_document()
        read_manifest(self.folder)
        return read_document(self.folder)

    def recover(self) -> None:
        """What a process that was killed has left is gone; a replacement that it began is undone."""
        shutil.rmtree(self.staging, ignore_errors=True)
        saved = self._previous / MANIFEST_NAME
        if saved.exists():
            before = read_document(self._previous)
            aside = [entry.name for entry in self._previous.iterdir() if entry.is_dir()]
            store_document(self.folder, _without(self.document(), aside))
            for name in aside:
                shutil.rmtree(self.folder / name, ignore_errors=True)
                (self._previous / name).rename(self.folder / name)
            fsync_folder(self.folder)
            store_document(self.folder, before)
            logger.warning("model.replacement_undone", extra={"folders": aside})
        shutil.rmtree(self._previous, ignore_errors=True)

    def is_whole(self, folder: str) -> bool:
        """The manifest lists the data set, and every listed file of it has the bytes that it lists.

        Raises:
            WeightsTampered: the manifest is malformed.
        """
        files = self.document()["files"]
        return _lists({"files": files}, folder) and self._holds(files, folder)

    def archive_digest(self, folder: str) -> str:
        """sha256 of the ZIP that an installed data set came from; empty where it came otherwise, or nobody knows.

        Raises:
            WeightsTampered: the manifest is malformed.
        """
        return str(self.document()[PINS_KEY].get(folder, {}).get("archive_sha256", ""))

    def _holds(self, files: dict[str, Any], folder: str) -> bool:
        entries = {name: entry for name, entry in files.items() if name.startswith(f"{folder}/")}
        try:
            return all(
                digest_of(self.folder / name) == (entry["sha256"], entry["size"]) for name, entry in entries.items()
            )
        except OSError:
            return False

    def install(
        self,
        places: Sequence[str],
        source: Source,
        tidy: Tidy,
        judge: Judge,
        *,
        replace: bool = False,
        synthetic: bool = False,
    ) -> tuple[Installed, ...]:
        """The models that were laid out in `staging` are in the registry and in its manifest.

        Args:
            places: their files, relative to `staging`.
            source: where they came from.
            tidy: applied to every checkpoint before it is listed.
            judge: asked about every model before it is listed.
            replace: a model that is there with other bytes gives way.
            synthetic: models made from phantoms are let in.

        Raises:
            BadArchive: not whole, not what upstream calls it, no model that can be built, or made from phantoms.
            OutOfMemory: the host has too little memory to look at it.
            WeightsTampered: the registry has the model with other bytes, and `replace` was not said.
            StorageFull, StorageFailed: the disk could not take it. The registry is as it was.
        """
        folders = sorted({place.split("/")[0] for place in places})
        try:
            return tuple(
                self._install_one(
                    _known(folder),
                    [place for place in places if place.startswith(f"{folder}/")],
                    source,
                    (tidy, judge),
                    replace=replace,
                    synthetic=synthetic,
                )
                for folder in folders
            )
        except OSError as error:
            raise storage_error(error) from error

    def _install_one(
        self,
        archive: Archive,
        places: list[str],
        source: Source,
        made_safe: tuple[Tidy, Judge],
        *,
        replace: bool,
        synthetic: bool,
    ) -> Installed:
        tidy, judge = made_safe
        _require_whole(archive, places)
        originals = {place: digest_of(self.staging / place) for place in places}
        phantom = _is_synthetic(self.staging, places, originals)
        if phantom and not synthetic:
            raise BadArchive(f"{archive.folder} was made from phantoms (DEMO WEIGHTS); only the demo profile uses it")
        document = self.document()
        if self._has_same(document, archive.folder, originals):
            return Installed(archive.folder, len(places), sum(size for _, size in originals.values()), 0, True)
        if not replace:
            _require_pins(document, archive.folder, originals)
        rewritten = sum(tidy(self.staging / place) for place in places if place.endswith(CHECKPOINT_SUFFIX))
        for model in _models_of(archive):
            judge(self.staging, model, tuple(places))
        listed = {place: digest_of(self.staging / place) for place in places}
        pin = {
            "source": source.name,
            "archive_sha256": source.archive_sha256,
            "imported_at": source.imported_at,
            "terms": terms_of(archive).name,
            "originals": {place: digest for place, (digest, _) in originals.items()},
        }
        changed = _without(document, [archive.folder])
        changed["synthetic"] = bool(changed["synthetic"]) or phantom
        changed["files"].update({place: {"sha256": digest, "size": size} for place, (digest, size) in listed.items()})
        changed[PINS_KEY][archive.folder] = pin
        self._swap(archive.folder, document, changed)
        size = sum(size for _, size in listed.values())
        logger.info("model.installed", extra={"folder": archive.folder, "bytes": size, "rewritten": rewritten})
        return Installed(archive.folder, len(places), size, rewritten, False)

    def _has_same(self, document: dict[str, Any], folder: str, originals: dict[str, tuple[str, int]]) -> bool:
        """The registry holds these very bytes, or what was made from them, undamaged."""
        pin = document[PINS_KEY].get(folder)
        entries = {name for name in document["files"] if name.startswith(f"{folder}/")}
        if pin is None or _digests(originals) != pin["originals"] or entries != originals.keys():
            return False
        return self._holds(document["files"], folder)

    def _swap(self, folder: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        target, listed = self.folder / folder, _lists(before, folder)
        _fsync_tree(self.staging / folder)
        shutil.rmtree(self._previous, ignore_errors=True)
        self._previous.mkdir()
        try:
            if listed:
                # The manifest never lists a folder that is being exchanged; should we be killed, `recover` goes back.
                store_document(self._previous, before)
                store_document(self.folder, _without(before, [folder]))
            if target.exists():
                target.rename(self._previous / folder)
            (self.staging / folder).rename(target)
            fsync_folder(self.folder)
            store_document(self.folder, after)
        except BaseException:
            self.recover()
            raise
        (self._previous / MANIFEST_NAME).unlink(missing_ok=True)
        shutil.rmtree(self._previous, ignore_errors=True)


@contextmanager
def opened(folder: Path) -> Generator[OpenRegistry]:
    """The registry, for this process alone; the folder is made where there is none.

    Raises:
        AlreadyRunning: another process changes it.
        WeightsTampered: its manifest is malformed.
        StorageFull, StorageFailed: it cannot be written.
    """
    registry = OpenRegistry(folder)
    try:
        registry.work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(registry.work / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise storage_error(error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning("another `heimdallr models` changes this registry") from error
        try:
            registry.recover()
            registry.staging.mkdir(exist_ok=True)
        except OSError as error:
            raise storage_error(error) from error
        try:
            yield registry
        finally:
            shutil.rmtree(registry.staging, ignore_errors=True)
    finally:
        os.close(descriptor)


def _known(folder: str) -> Archive:
    archive = archive_named(folder)
    if archive is None:
        raise BadArchive(f"{folder} is no model of TotalSegmentator")
    return archive


def _lists(document: dict[str, Any], folder: str) -> bool:
    return any(name.startswith(f"{folder}/") for name in document["files"])


def _without(document: dict[str, Any], folders: Sequence[str]) -> dict[str, Any]:
    kept = {name: entry for name, entry in document["files"].items() if name.split("/")[0] not in folders}
    pins = {name: pin for name, pin in document[PINS_KEY].items() if name not in folders}
    return {**document, "files": kept, PINS_KEY: pins}


def _digests(originals: dict[str, tuple[str, int]]) -> dict[str, str]:
    return {place: digest for place, (digest, _) in originals.items()}


def _require_pins(document: dict[str, Any], folder: str, originals: dict[str, tuple[str, int]]) -> None:
    pin = document[PINS_KEY].get(folder)
    pinned = pin["originals"] if pin is not None else None
    if pinned is None and _lists(document, folder):
        pinned = {name: entry["sha256"] for name, entry in document["files"].items() if name.startswith(f"{folder}/")}
    if pinned is not None and pinned != _digests(originals):
        raise WeightsTampered(
            f"{folder} is not the one that this registry pinned at its first import; if upstream has published a new "
            "one and you trust it, say --replace"
        )


def _models_of(archive: Archive) -> list[ModelSpec]:
    specs = {model for row in TASKS.values() for model in row.models if model.dataset_id == archive.dataset_id}
    return sorted(specs, key=lambda model: model.folder)


def _require_whole(archive: Archive, places: list[str]) -> None:
    """Every model of the data set that a task needs is there with its descriptions and checkpoints."""
    models = _models_of(archive)
    needed = {f"{model.folder}/{name}" for model in models for name in ("plans.json", DATASET_NAME)}
    for model in models:
        needed.update(model.checkpoints(places) or (model.checkpoint,))
    absent = sorted(needed - set(places))
    if absent:
        raise BadArchive(f"not the model that upstream names {archive.folder}: {absent[0]} is missing")


def _is_synthetic(staging: Path, places: list[str], originals: dict[str, tuple[str, int]]) -> bool:
    if any(digest in demo_checkpoints() for digest, _ in originals.values()):
        return True
    try:
        return any(is_marked((staging / p).read_bytes(), p) for p in places if p.endswith(f"/{DATASET_NAME}"))
    except (WeightsMissing, WeightsTampered) as error:
        raise BadArchive(error.detail) from error


def _fsync_tree(folder: Path) -> None:
    for current, _, _ in os.walk(folder):
        fsync_folder(Path(current))
