"""What `heimdallr models` does: download, import, list. The only code that fetches weights; no replica calls it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Settings
from heimdallr_ray.errors import (
    BadArchive,
    BadIdentifier,
    BadSetting,
    Broken,
    NotFound,
    OutOfMemory,
    WeightsMissing,
    WeightsTampered,
)
from heimdallr_ray.ids import Sha256
from heimdallr_ray.metrics.catalogue import CATALOGUE
from heimdallr_ray.segmentation import fetch as fetching
from heimdallr_ray.segmentation import registry as states
from heimdallr_ray.segmentation.archives import Archive, archive_named
from heimdallr_ray.segmentation.install import Installed, Judge, OpenRegistry, Source, Tidy, opened
from heimdallr_ray.segmentation.licence import Terms, require_licence, terms_of
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TASKS
from heimdallr_ray.segmentation.unpack import copy_folder, unpack_zip
from heimdallr_ray.segmentation.weights import (
    MANIFEST_NAME,
    WeightsSet,
    digest_of,
    read_manifest,
    registry_to_fill,
    verify,
)

_SEEN_FIRST: Final = "every CT study: what is in the image"


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
    with opened(folder) as registry:
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

    Raises:
        LicenceRequired: one of the models is licensed and the site is not.
        NotFound, BadArchive, TooLarge, WeightsMissing, WeightsTampered, StorageFull, StorageFailed, AlreadyRunning: see
            `unpack_zip`, `copy_folder` and `OpenRegistry.install`. Those installed before stay.
    """
    if not source.exists():
        raise NotFound(f"{source.name} is not there")
    safe = _made_safe()
    with opened(folder) as registry:
        for part in _parts(source):
            telling.say(part.name)
            sha256 = ""
            if part.is_file():
                sha256 = digest_of(part)[0]
                if digest is not None and sha256 != digest:
                    raise WeightsTampered(f"{part.name} has the sha256 {sha256}, not the one that was given")
                places = unpack_zip(part, registry.staging)
            else:
                if (part / MANIFEST_NAME).exists():
                    verify(part)
                places = copy_folder(part, registry.staging)
            found = {archive for place in places if (archive := archive_named(place.split("/")[0])) is not None}
            require_licence(sorted(found, key=lambda one: one.dataset_id), licensed=has_licence(settings))
            yield from _install(
                registry, places, Source(part.name, sha256, _now(clock)), safe, settings, replacing, only=None
            )


def _parts(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    archives = sorted(path for path in source.glob("*.zip") if path.is_file() and not path.is_symlink())
    others = [path for path in source.iterdir() if path.is_dir()]
    # A folder may hold both: ZIPs one by one, then its folders as one.
    return [*archives, *([source] if others or not archives else [])]


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
        registry.staging.mkdir(parents=True, exist_ok=True)


def require_all_usable(weights: WeightsSet) -> None:
    """Every installed model of a known task can be built, as shapes only.

    Raises:
        Broken: names those that cannot, each with its reason.
        OutOfMemory: a checkpoint does not fit into the host's memory.
        WeightsMissing, WeightsTampered: as `WeightsSet.read`.
    """
    from heimdallr_ray.segmentation.totalseg.judge import require_usable

    faults: list[str] = []
    for model in dict.fromkeys(model for row in TASKS.values() for model in row.models):
        if states.has_model(weights, model):
            try:
                require_usable(weights, model)
            except (OutOfMemory, WeightsMissing, WeightsTampered):
                raise
            except Broken as error:
                faults.append(error.detail)
    if faults:
        raise Broken("; ".join(faults))


def weights_at(folder: Path) -> WeightsSet | None:
    """The registry at `folder`; None where there is none.

    Raises:
        WeightsTampered: its manifest is malformed.
    """
    try:
        return read_manifest(folder)
    except WeightsMissing:
        return None


def measured_from(task: str) -> tuple[str, ...]:
    """The measurements that can be made from the label map of a task."""
    if task == FIRST_PASS:
        return (_SEEN_FIRST,)
    label_map = TASKS[task].upstream_task
    return tuple(q.id for metric in CATALOGUE for q in metric.quantities if label_map in q.tasks)


def listing(folder: Path) -> list[dict[str, Any]]:
    """Every task as JSON: what the registry at `folder` has of it, and what it is good for.

    Raises:
        WeightsMissing, WeightsTampered: see `registry.overview`.
    """
    place = registry_to_fill(folder)
    return [
        {
            "task": entry.task,
            "state": str(entry.state),
            "size_bytes": entry.size_bytes,
            "licence": "site" if entry.licence else "open",
            "measurements": list(measured_from(entry.task)),
            "models": [
                {
                    "dataset": model.dataset_id,
                    "folder": model.folder,
                    "state": str(model.state),
                    "size_bytes": model.size_bytes,
                    "checkpoints": dict(model.checkpoints),
                    "terms": model.terms.name,
                }
                for model in entry.models
            ],
            "command": "" if entry.state != states.ModelState.MISSING else states.command_for([entry.task], place),
        }
        for entry in states.overview(weights_at(folder))
    ]


def licences(settings: Settings) -> list[dict[str, Any]]:
    """Every task as JSON: the terms of its models, and whether this site may run it. Never a licence number."""
    present = has_licence(settings)
    found: list[dict[str, Any]] = []
    for row in TASKS.values():
        archives = wanted_archives([row.name])
        own = {terms_of(archive).name for archive in archives if archive.dataset_id in _own(row.name)}
        found.append(
            {
                "task": row.name,
                "terms": sorted(own),
                "needs_licence": row.licence,
                "may_run": present or not row.licence,
            }
        )
    return found


def _own(task: str) -> frozenset[int]:
    return frozenset(model.dataset_id for model in TASKS[task].models)
