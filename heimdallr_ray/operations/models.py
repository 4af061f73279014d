"""How models come into a registry: downloaded, imported. The only code that fetches weights; no replica calls it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Settings
from heimdallr_ray.errors import (
    BadArchive,
    BadIdentifier,
    BadSetting,
    NotFound,
    TooLarge,
    WeightsTampered,
)
from heimdallr_ray.folders import make_private
from heimdallr_ray.ids import Sha256
from heimdallr_ray.segmentation import fetch as fetching
from heimdallr_ray.segmentation import registry as states
from heimdallr_ray.segmentation.archives import Archive, archive_named
from heimdallr_ray.segmentation.disk import storage_error
from heimdallr_ray.segmentation.install import Installed, Judge, OpenRegistry, Source, Tidy, opened
from heimdallr_ray.segmentation.licence import Terms, require_licence, terms_of
from heimdallr_ray.segmentation.unpack import MAX_FOLDER_ENTRIES, NoModels, copy_folder, unpack_zip
from heimdallr_ray.segmentation.weights import (
    MANIFEST_NAME,
    digest_of,
    verify,
)

_NAMED_AT_MOST: Final = 10


@dataclass(frozen=True)
class Telling:
    """How a long command speaks.

    Attributes:
        say: one line about what is done now.
        on_bytes: name of the archive, bytes so far, bytes in all or None.
        sleep: between attempts.
    """

    say: Callable[[str], None]
    on_bytes: Callable[[str, int, int | None], None]
    sleep: Callable[[float], None]


def registry_folder(settings: Settings, into: Path | None) -> Path:
    """The registry that a command changes.

    Raises:
        BadSetting: it would be the demo's weights, which are a part of the package.
    """
    folder = into or settings.resolved_weights_dir
    if folder is None:
        raise BadSetting("the demo's weights are a part of the package; say --profile site, or --into FOLDER")
    return folder


def has_licence(settings: Settings) -> bool:
    """The site has set a licence number of TotalSegmentator."""
    return bool(settings.totalsegmentator_licence.get_secret_value())


def wanted_archives(names: Iterable[str]) -> tuple[Archive, ...]:
    """What has to be installed for tasks, numbers or folders of data sets, each archive once.

    Raises:
        NotFound: one of them is unknown.
    """
    return tuple(dict.fromkeys(archive for name in names for archive in states.archives_for(name)))


def terms_of_all(archives: Iterable[Archive]) -> Mapping[Terms, tuple[str, ...]]:
    """Each of the terms that `archives` come under, and the folders that it is about."""
    found: dict[Terms, tuple[str, ...]] = {}
    for archive in archives:
        terms = terms_of(archive)
        found[terms] = (*found.get(terms, ()), archive.folder)
    return found


def parse_digests(values: Sequence[str], archives: Sequence[Archive]) -> dict[str, Sha256]:
    """Folder to the sha256 that the site knows its archive by, from `HEX` (of the only one) or `FOLDER=HEX`.

    Raises:
        BadSetting: no digest, or of none of `archives`.
    """
    known = {archive.folder for archive in archives}
    found: dict[str, Sha256] = {}
    for value in values:
        name, _, digest = value.rpartition("=")
        folder = name.removesuffix(".zip") or (next(iter(known)) if len(known) == 1 else "")
        if folder not in known:
            raise BadSetting(f"--sha256 takes FOLDER=HEX, with one of {', '.join(sorted(known))}")
        try:
            found[folder] = Sha256.parse(digest.lower())
        except BadIdentifier as error:
            raise BadSetting("--sha256 takes 64 hexadecimal digits") from error
    return found


def fetch(
    settings: Settings,
    archives: Sequence[Archive],
    folder: Path,
    telling: Telling,
    clock: Clock,
    *,
    mirror: str | None = None,
    digests: Mapping[str, Sha256] | None = None,
    replacing: bool = False,
    bounds: fetching.Bounds | None = None,
) -> Iterator[Installed]:
    """Each archive is downloaded, judged and installed in turn; what is there and whole is not downloaded again.

    Raises:
        LicenceRequired: the site may not have one of them; nothing was asked of anybody.
        DownloadFailed, BadArchive, TooLarge, WeightsTampered, StorageFull, StorageFailed, AlreadyRunning: see
            `fetching.download`, `unpack_zip` and `OpenRegistry.install`. Those installed before stay.
    """
    require_licence(archives, licensed=has_licence(settings))
    safe = _made_safe()
    with _opened(settings, folder) as registry:
        for archive in archives:
            if not replacing and registry.is_whole(archive.folder):
                _require_pinned(registry, archive.folder, digests or {})
                telling.say(f"{archive.folder}: already installed and unchanged")
                continue
            request = _request(settings, archive, mirror)
            telling.say(f"{archive.file_name} from {urlsplit(request.address).hostname}")
            got = fetching.download(
                request,
                registry.work / archive.file_name,
                bounds=bounds,
                say=telling.say,
                sleep=telling.sleep,
                progress=lambda done, total, name=archive.file_name: telling.on_bytes(name, done, total),
            )
            with _gone_afterwards(got.path):
                _require_digest(archive.folder, got.sha256, digests or {})
                source = Source(request.address, got.sha256, _now(clock))
                places = unpack_zip(got.path, registry.staging)
                yield from _install(registry, places, source, safe, settings, replacing, only=archive.folder)


def bring_in(
    settings: Settings,
    source: Path,
    folder: Path,
    telling: Telling,
    clock: Clock,
    *,
    digest: Sha256 | None = None,
    replacing: bool = False,
) -> Iterator[Installed]:
    """The models of a ZIP of TotalSegmentator, of a folder of models or of a folder of ZIPs are installed.

    What lies beside the ZIPs of a folder and holds no model is named and passed over.

    Raises:
        LicenceRequired: one of the models is licensed and the site is not.
        NotFound, BadArchive, TooLarge, WeightsMissing, WeightsTampered, StorageFull, StorageFailed, AlreadyRunning: see
            `unpack_zip`, `copy_folder` and `OpenRegistry.install`. Those installed before stay.
    """
    with _readable(source):
        parts, beside = _parts(source)
    safe = _made_safe()
    with _opened(settings, folder) as registry:
        for part in parts:
            telling.say(part.name)
            try:
                with _readable(part):
                    places, sha256 = _laid_out(part, registry.staging, digest)
            except NoModels:
                if len(parts) == 1 or part != source:
                    raise
                break
            found = {archive for place in places if (archive := archive_named(place.split("/")[0])) is not None}
            require_licence(sorted(found, key=lambda one: one.dataset_id), licensed=has_licence(settings))
            yield from _install(
                registry, places, Source(part.name, sha256, _now(clock)), safe, settings, replacing, only=None
            )
            if part == source:
                beside = [one for one in beside if not one.is_dir()]
    if beside:
        told = sorted(one.name for one in beside)
        more = f" and {len(told) - _NAMED_AT_MOST} more" if len(told) > _NAMED_AT_MOST else ""
        telling.say(f"passed over, no model of TotalSegmentator in it: {', '.join(told[:_NAMED_AT_MOST])}{more}")


def _parts(source: Path) -> tuple[list[Path], list[Path]]:
    """What is imported one after the other, and what else lies in a folder of ZIPs.

    Raises:
        NotFound: there is nothing.
        TooLarge: the folder has more files than an import looks at.
        OSError: it cannot be looked at.
    """
    if source.is_file():
        return [source], []
    if not source.is_dir():
        raise NotFound(f"{source.name} is not there, or neither a file nor a folder")
    entries = list(islice(source.iterdir(), MAX_FOLDER_ENTRIES + 1))
    if len(entries) > MAX_FOLDER_ENTRIES:
        raise TooLarge(f"more than {MAX_FOLDER_ENTRIES} files in {source.name}")
    archives = sorted(one for one in entries if one.suffix == ".zip" and one.is_file() and not one.is_symlink())
    others = [one for one in entries if one not in archives]
    # A folder may hold both: ZIPs one by one, then its folders as one.
    folders = any(one.is_dir() for one in others)
    return [*archives, *([source] if folders or not archives else [])], others if archives else []


def _laid_out(part: Path, staging: Path, digest: Sha256 | None) -> tuple[tuple[str, ...], str]:
    """The places of the models of a ZIP or a folder, which lie below `staging`, and the ZIP's sha256."""
    if part.is_file():
        sha256 = digest_of(part)[0]
        if digest is not None and sha256 != digest:
            raise WeightsTampered(f"{part.name} has the sha256 {sha256}, not the one that was given")
        return unpack_zip(part, staging), sha256
    if (part / MANIFEST_NAME).exists():
        verify(part)
    return copy_folder(part, staging), ""


@contextmanager
def _opened(settings: Settings, folder: Path) -> Generator[OpenRegistry]:
    """As `opened`; a data folder that is made for its registry is as private as one that another command makes.

    Raises:
        StorageFull, StorageFailed, AlreadyRunning, WeightsTampered: as `opened`.
    """
    if folder.is_relative_to(settings.data_dir):
        try:
            make_private(settings.data_dir)
        except OSError as error:
            raise storage_error(error) from error
    with opened(folder) as registry:
        yield registry


@contextmanager
def _readable(part: Path) -> Generator[None]:
    """Failures of the file system are typed, and name what could not be read or copied.

    Raises:
        StorageFull, StorageFailed: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        known = storage_error(error)
        raise type(known)(f"{part.name}: {known.detail}") from error


def _made_safe() -> tuple[Tidy, Judge]:
    from heimdallr_ray.segmentation.totalseg.checkpoint import tidy_checkpoint
    from heimdallr_ray.segmentation.totalseg.judge import require_buildable

    return tidy_checkpoint, require_buildable


def _now(clock: Clock) -> str:
    return clock.now().isoformat(timespec="seconds")


def _request(settings: Settings, archive: Archive, mirror: str | None) -> fetching.Request:
    if mirror is not None:
        return fetching.Request(archive.mirrored(mirror))
    if not archive.licensed:
        return fetching.Request(archive.address)
    body = {
        "license_number": settings.totalsegmentator_licence.get_secret_value(),
        "task": archive.licence_task,
        "version": metadata.version("TotalSegmentator"),
    }
    return fetching.Request(archive.address, licence_body=body)


@contextmanager
def _gone_afterwards(path: Path) -> Generator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _require_digest(folder: str, sha256: str, digests: Mapping[str, Sha256]) -> None:
    given = digests.get(folder)
    if given is not None and sha256 != given:
        raise WeightsTampered(f"{folder}: the archive has the sha256 {sha256}, not the one that was given")


def _require_pinned(registry: OpenRegistry, folder: str, digests: Mapping[str, Sha256]) -> None:
    """What is installed came from the archive that the site knows by its digest, where it gave one."""
    given = digests.get(folder)
    if given is None:
        return
    pinned = registry.archive_digest(folder)
    if pinned != given:
        known = f"came from an archive with the sha256 {pinned}" if pinned else "did not come from an archive"
        raise WeightsTampered(
            f"{folder} is installed and {known}, not the one that was given; --replace fetches it anew"
        )


def _install(
    registry: OpenRegistry,
    places: Sequence[str],
    source: Source,
    safe: tuple[Tidy, Judge],
    settings: Settings,
    replacing: bool,
    *,
    only: str | None,
) -> tuple[Installed, ...]:
    folders = {place.split("/")[0] for place in places}
    if only is not None and folders != {only}:
        raise BadArchive(f"the archive holds {', '.join(sorted(folders))}, not {only}")
    try:
        return registry.install(places, source, *safe, replace=replacing, synthetic=settings.profile == "demo")
    finally:
        shutil.rmtree(registry.staging, ignore_errors=True)
        with _readable(registry.staging):
            registry.staging.mkdir(parents=True, exist_ok=True)
