"""TotalSegmentator's ZIPs and folders, laid out in a staging folder: only what a model needs, within limits.

Names from outside become paths only where they match the layout of a model (`Dataset…/trainer__plans__configuration/…`)
part by part. Everything else, pickles of training logs included, is left behind.
"""

from __future__ import annotations

import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Final

from heimdallr_ray.errors import BadArchive, NotFound, TooLarge
from heimdallr_ray.segmentation.archives import archive_named
from heimdallr_ray.segmentation.disk import fsync_file, storage_error
from heimdallr_ray.zips import ArchiveLimits, Budget, check_directory, check_end_record

LIMITS: Final = ArchiveLimits(max_entries=10_000, max_unpacked_bytes=8 << 30)
MAX_CHECKPOINT_BYTES: Final = 2 << 30
MAX_JSON_BYTES: Final = 16 << 20
MAX_FOLDER_ENTRIES: Final = 100_000
"""Looked at below an imported folder."""
_MAX_DEPTH: Final = 8
_CHUNK_BYTES: Final = 1 << 20
_MODEL_FOLDER: Final = re.compile(r"[A-Za-z0-9]+(?:_[A-Za-z0-9]+)*__[A-Za-z0-9]+(?:_[A-Za-z0-9]+)*__[a-z0-9_]+")
_KEPT: Final = re.compile(
    r"plans\.json|dataset\.json|dataset_fingerprint\.json|fold_(?:\d{1,2}|all)/checkpoint_final\.pth"
)


class NoModels(BadArchive):
    """What is to be imported is whole, and holds no model."""


def place_of(name: str) -> str | None:
    """Where a file goes in a registry, from its name in an archive or its path below a folder; None: it is not kept.

    Args:
        name: parts divided by slashes; what stands before the data set's folder does not matter.
    """
    parts = PurePosixPath(name).parts
    for index, part in enumerate(parts[:-2]):
        if archive_named(part) is not None:
            inside = "/".join(parts[index + 2 :])
            kept = _MODEL_FOLDER.fullmatch(parts[index + 1]) and _KEPT.fullmatch(inside)
            return f"{part}/{parts[index + 1]}/{inside}" if kept else None
    return None


def _limit_of(place: str) -> int:
    return MAX_JSON_BYTES if place.endswith(".json") else MAX_CHECKPOINT_BYTES


def unpack_zip(archive_path: Path, staging: Path, limits: ArchiveLimits = LIMITS) -> tuple[str, ...]:
    """The models of the ZIP lie below `staging`, each file on the disk; their places.

    Raises:
        BadArchive: damaged, encrypted, with links or overlapping entries, a name that leaves it; NoModels: no model.
        TooLarge: more entries or bytes than the limits allow, or a larger ratio than a model has.
        StorageFull, StorageFailed: the disk could not take it.
    """
    try:
        check_end_record(archive_path, limits)
        with zipfile.ZipFile(archive_path) as archive:
            size = archive_path.stat().st_size
            members = check_directory(archive.infolist(), archive.start_dir, size, limits)
            budget = Budget(limits, size)
            places: list[str] = []
            for _, member in members:
                place = place_of(member.filename)
                if place is None:
                    continue
                if place in places:
                    raise BadArchive("two entries are the same file of a model")
                with archive.open(member) as stream:
                    _copy(_Counted(stream, budget), staging / place, _limit_of(place))
                places.append(place)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, UnicodeError) as error:
        raise BadArchive("the ZIP archive is damaged") from error
    except OSError as error:
        raise storage_error(error) from error
    return _found(places, archive_path.name)


def copy_folder(folder: Path, staging: Path) -> tuple[str, ...]:
    """The models at or below `folder` lie below `staging`, each file on the disk; their places. Links are not followed.

    Raises:
        NotFound: there is no such folder.
        NoModels: no model in it.
        TooLarge: more files than an import looks at, or a file larger than one of a model.
        StorageFull, StorageFailed: the disk could not be read or written.
    """
    if not folder.is_dir():
        raise NotFound(f"{folder.name} is no folder")
    places: dict[str, None] = {}
    try:
        for name, path in _files(folder):
            place = place_of(name)
            if place is not None and place not in places:
                with path.open("rb") as stream:
                    _copy(stream, staging / place, _limit_of(place))
                places[place] = None
    except OSError as error:
        raise storage_error(error) from error
    return _found(places, folder.name)


def _found(places: Iterable[str], name: str) -> tuple[str, ...]:
    found = tuple(sorted(places))
    if not any(place.endswith(".pth") for place in found):
        raise NoModels(f"{name}: no model of TotalSegmentator in it")
    return found


def _files(folder: Path) -> Iterable[tuple[str, Path]]:
    """Regular files below `folder`, named from the name of `folder` itself on."""
    root = folder.resolve()
    pending: list[tuple[Path, int]] = [(root, 0)]
    looked_at = 0
    while pending:
        current, depth = pending.pop()
        for entry in sorted(current.iterdir()):
            looked_at += 1
            if looked_at > MAX_FOLDER_ENTRIES:
                raise TooLarge(f"more than {MAX_FOLDER_ENTRIES} files in the folder; name the models' own one")
            if entry.is_symlink():
                continue
            if entry.is_dir() and depth < _MAX_DEPTH:
                pending.append((entry, depth + 1))
            elif entry.is_file():
                yield entry.relative_to(root.parent).as_posix(), entry


class _Counted:
    """A member of an archive; what comes out of it is counted."""

    def __init__(self, stream: IO[bytes], budget: Budget) -> None:
        self._stream = stream
        self._budget = budget

    def read(self, size: int) -> bytes:
        return self._budget.read(self._stream, size)


def _copy(source: IO[bytes] | _Counted, target: Path, limit: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(target.parent).free < limit // 64:
        raise OSError(28, "No space left on device")
    written = 0
    with target.open("xb") as stream:
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > limit:
                raise TooLarge(f"{target.name} has more than {limit >> 20} MiB")
            stream.write(chunk)
    fsync_file(target)
