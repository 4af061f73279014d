"""The weights registry: a folder, and a manifest that says which bytes belong in it.

`manifest.json`: {"format": 1, "synthetic": bool, "files": {"relative/path": {"sha256": "...", "size": n}}, ...}.
`imported` in it says of each data set where it came from and pins the digests of upstream's own files (`install`).
`synthetic` alone is not believed: the marker in a model's own dataset.json counts as well, and so do the digests of the
packaged demo checkpoints, which an edited dataset.json does not change (`any_synthetic`).
Nothing is loaded whose bytes differ from its entry: a checkpoint is a pickle, and a pickle is a program.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, cast

from heimdallr_ray.errors import BadIdentifier, WeightsMissing, WeightsTampered
from heimdallr_ray.ids import Sha256
from heimdallr_ray.segmentation.archives import fetch_command
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.disk import fsync_folder
from heimdallr_ray.segmentation.task_table import TOTAL_FAST

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1
DATASET_NAME = "dataset.json"
"""nnU-Net's description of a model, in each model's folder."""
CHECKPOINT_SUFFIX = ".pth"
PINS_KEY = "imported"
WORK_FOLDER = ".incoming"
"""Inside a registry, for what is not in it yet. Hidden names are never listed, and so never loaded."""
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_MAX_DATASET_BYTES = 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_NAMED_AT_MOST = 5
DAMAGED_NAME = f".{MANIFEST_NAME}.damaged"
"""Where a manifest that could not be read is kept when a new one is written."""
_MEND = (
    "; to mend it, where you trust what lies there: `heimdallr models manifest FOLDER`, which lists it anew and sets "
    "the old one aside; else remove it and fetch or import the models anew"
)
SYNTHETIC_MARKER = "SYNTHETIC"
"""Word in the description of a model's dataset.json that says: made by us on phantoms, no third party's weights."""


@dataclass(frozen=True)
class FileEntry:
    """What a file of the registry must be."""

    sha256: Sha256
    size_bytes: int


@dataclass(frozen=True)
class WeightsSet:
    """A registry folder whose manifest was read.

    Attributes:
        folder: where the model folders are.
        synthetic: the manifest says that all of it was made from phantoms.
        files: path relative to `folder`, with forward slashes, to its entry.
    """

    folder: Path
    synthetic: bool
    files: Mapping[str, FileEntry]

    def has_folder(self, relative: str) -> bool:
        """True where the manifest lists at least one file below `relative`."""
        prefix = relative.rstrip("/") + "/"
        return any(name.startswith(prefix) for name in self.files)

    def entry(self, relative: str) -> FileEntry:
        """The entry of one file.

        Raises:
            WeightsMissing: the manifest does not list it.
        """
        try:
            return self.files[relative]
        except KeyError as error:
            raise WeightsMissing(f"{relative} is not in {MANIFEST_NAME}") from error

    def read(self, relative: str) -> bytes:
        """The bytes of one file, exactly those that were hashed.

        Raises:
            WeightsMissing: not listed, or not on disk.
            WeightsTampered: other size or digest than listed.
        """
        entry = self.entry(relative)
        try:
            with (self.folder / relative).open("rb") as stream:
                content = stream.read(entry.size_bytes + 1)
        except OSError as error:
            raise WeightsMissing(f"{relative} cannot be read: {error.strerror}") from error
        if len(content) != entry.size_bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise WeightsTampered(f"{relative} differs from {MANIFEST_NAME}")
        return content


def _entry_of(relative: str, value: object) -> FileEntry:
    pure = PurePosixPath(relative)
    if pure.is_absolute() or not pure.parts or ".." in pure.parts or "\\" in relative or str(pure) != relative:
        raise WeightsTampered(f"{MANIFEST_NAME} names a path outside its folder{_MEND}")
    try:
        fields = cast("Mapping[str, Any]", value)
        digest, size = Sha256.parse(fields["sha256"]), fields["size"]
    except (BadIdentifier, KeyError, TypeError) as error:
        raise WeightsTampered(f"{MANIFEST_NAME}: malformed entry for {relative}{_MEND}") from error
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise WeightsTampered(f"{MANIFEST_NAME}: malformed size for {relative}{_MEND}")
    return FileEntry(digest, size)


def _parsed(folder: Path) -> dict[str, Any]:
    try:
        with (folder / MANIFEST_NAME).open("rb") as stream:
            content = stream.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise WeightsMissing(
            f"no {MANIFEST_NAME} in the weights folder: {error.strerror}; run: {fetch_command((TOTAL_FAST,), folder)}"
        ) from error
    if len(content) > _MAX_MANIFEST_BYTES:
        raise WeightsTampered(f"{MANIFEST_NAME} is too large{_MEND}")
    try:
        parsed: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WeightsTampered(f"{MANIFEST_NAME} is not JSON{_MEND}") from error
    if not isinstance(parsed, dict):
        raise WeightsTampered(f"{MANIFEST_NAME} is not an object{_MEND}")
    return cast("dict[str, Any]", parsed)


def empty_document() -> dict[str, Any]:
    """A manifest that lists nothing."""
    return {"format": MANIFEST_FORMAT, "synthetic": False, "files": {}, PINS_KEY: {}}


def read_document(folder: Path) -> dict[str, Any]:
    """The manifest of `folder` as JSON, every key of it, for whoever changes it.

    Raises:
        WeightsMissing, WeightsTampered: as `read_manifest`.
    """
    read_manifest(folder)
    document = _parsed(folder)
    pins = document.setdefault(PINS_KEY, {})
    if not isinstance(pins, dict) or not all(
        isinstance(pin, dict) and isinstance(cast("dict[str, Any]", pin).get("originals"), dict)
        for pin in cast("dict[str, object]", pins).values()
    ):
        raise WeightsTampered(f"{MANIFEST_NAME}: malformed {PINS_KEY}{_MEND}")
    return document


def store_document(folder: Path, document: Mapping[str, Any]) -> Path:
    """The manifest of `folder` is `document`, on the disk, in one step; its path.

    Raises:
        OSError: it could not be written; then the old one stands.
    """
    target = folder / MANIFEST_NAME
    temporary = folder / f".{MANIFEST_NAME}.tmp"
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(document, stream, indent=1, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(target)
    fsync_folder(folder)
    return target


def read_manifest(folder: Path) -> WeightsSet:
    """The registry as its manifest describes it; no file is hashed yet.

    Raises:
        WeightsMissing: no manifest.
        WeightsTampered: malformed, of another format, or naming a path outside the folder.
    """
    document = _parsed(folder)
    files, synthetic = document.get("files"), document.get("synthetic")
    if document.get("format") != MANIFEST_FORMAT or not isinstance(files, dict) or not isinstance(synthetic, bool):
        raise WeightsTampered(f"{MANIFEST_NAME} has another form than format {MANIFEST_FORMAT}{_MEND}")
    entries = {name: _entry_of(name, value) for name, value in cast("dict[str, object]", files).items()}
    return WeightsSet(folder, synthetic, entries)


def registry_to_fill(folder: Path) -> Path | None:
    """What a command that brings models has to name; None for the demo's weights, which are a part of the package."""
    return None if folder == weights_dir() else folder


def digest_of(file: Path) -> tuple[str, int]:
    """sha256 and size of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def faults(weights: WeightsSet, *, hashed: bool = True) -> Generator[tuple[str, WeightsMissing | WeightsTampered]]:
    """Each listed file that is not what its entry says, and why.

    Args:
        weights: the registry.
        hashed: by its bytes; else by its presence and size alone, which costs no reading.
    """
    for relative, entry in weights.files.items():
        file = weights.folder / relative
        try:
            found = digest_of(file) if hashed else (str(entry.sha256), file.stat().st_size)
        except OSError as error:
            yield relative, WeightsMissing(f"{relative} cannot be read: {error.strerror}")
        else:
            if found != (entry.sha256, entry.size_bytes):
                yield relative, WeightsTampered(f"{relative} differs from {MANIFEST_NAME}")


def verify(folder: Path) -> WeightsSet:
    """The registry, every listed file having been hashed.

    Raises:
        WeightsMissing: no manifest, or a listed file is absent.
        WeightsTampered: a file differs from its entry, or the manifest is malformed. Either names the first files.
    """
    weights = read_manifest(folder)
    found = [error for _, error in faults(weights)]
    if found:
        told = "; ".join(error.detail for error in found[:_NAMED_AT_MOST])
        more = f"; and {len(found) - _NAMED_AT_MOST} more" if len(found) > _NAMED_AT_MOST else ""
        kind = WeightsTampered if any(isinstance(error, WeightsTampered) for error in found) else WeightsMissing
        raise kind(f"{told}{more}")
    return weights


def is_marked(dataset: bytes, name: str) -> bool:
    """True where the bytes of a dataset.json say that its model was made from phantoms.

    Raises:
        WeightsTampered: too large, or not a JSON object.
    """
    if len(dataset) > _MAX_DATASET_BYTES:
        raise WeightsTampered(f"{name} is too large")
    try:
        parsed: object = json.loads(dataset)
    except (ValueError, RecursionError) as error:
        raise WeightsTampered(f"{name} is not JSON") from error
    if not isinstance(parsed, dict):
        raise WeightsTampered(f"{name} is not an object")
    return SYNTHETIC_MARKER in str(cast("dict[str, Any]", parsed).get("description", ""))


@cache
def demo_checkpoints() -> frozenset[str]:
    """Digests of the packaged demo checkpoints: these bytes were made from phantoms under whatever name they come.

    Raises:
        WeightsMissing, WeightsTampered: the package's own list cannot be read. Then no weights can be told from them.
    """
    packaged = read_manifest(weights_dir())
    return frozenset(entry.sha256 for name, entry in packaged.files.items() if name.endswith(CHECKPOINT_SUFFIX))


def any_synthetic(weights: WeightsSet) -> bool:
    """True where the manifest, the dataset.json of a listed model or the digest of a file tells of phantoms.

    Raises:
        WeightsMissing, WeightsTampered: a dataset.json cannot be read, or is not the one of the manifest.
    """
    if weights.synthetic or any(entry.sha256 in demo_checkpoints() for entry in weights.files.values()):
        return True
    datasets = [name for name in weights.files if PurePosixPath(name).name == DATASET_NAME]
    return any(is_marked(weights.read(name), name) for name in datasets)


def _marked_on_disk(file: Path) -> bool:
    with file.open("rb") as stream:
        return is_marked(stream.read(_MAX_DATASET_BYTES + 1), file.name)


def is_damaged(folder: Path) -> bool:
    """True where there is a manifest in `folder` that is none."""
    try:
        read_document(folder)
    except WeightsMissing:
        return False
    except WeightsTampered:
        return True
    return False


def _pins_or_aside(folder: Path) -> dict[str, Any] | None:
    """The pins of the manifest of `folder`, None where there is none; a damaged one is kept under another name."""
    if not (folder / MANIFEST_NAME).exists():
        return None
    if is_damaged(folder):
        (folder / MANIFEST_NAME).replace(folder / DAMAGED_NAME)
        fsync_folder(folder)
        logger.warning("manifest.set_aside", extra={"kept_as": DAMAGED_NAME})
        return None
    return cast("dict[str, Any]", read_document(folder)[PINS_KEY])


def write_manifest(folder: Path, *, synthetic: bool, extra: Mapping[str, Any] | None = None) -> Path:
    """The manifest of everything below `folder`, written durably; returns its path.

    The pins of first imports are kept. One that is damaged is set aside as `DAMAGED_NAME`, and its pins are lost.

    Args:
        folder: registry with one folder per data set.
        synthetic: made from phantoms by this project; a model that carries the marker, or is one of the packaged demo
            checkpoints, makes it so whatever is said.
        extra: further keys for a person to read (training recipe, licence, scores); may not replace ours.

    Raises:
        WeightsTampered: a dataset.json is not a JSON object.
    """
    listed = [file for file in sorted(folder.rglob("*")) if not file.relative_to(folder).parts[0].startswith(".")]
    synthetic = synthetic or any(_marked_on_disk(file) for file in listed if file.name == DATASET_NAME)
    files: dict[str, dict[str, str | int]] = {}
    for file in listed:
        if file.is_file() and file.name != MANIFEST_NAME:
            digest, size = digest_of(file)
            files[file.relative_to(folder).as_posix()] = {"sha256": digest, "size": size}
            synthetic = synthetic or digest in demo_checkpoints()
    document = {**(extra or {}), "format": MANIFEST_FORMAT, "synthetic": synthetic, "files": files}
    kept = _pins_or_aside(folder)
    if kept is not None:
        document[PINS_KEY] = {name: pin for name, pin in kept.items() if any(f.startswith(f"{name}/") for f in files)}
    return store_document(folder, document)
