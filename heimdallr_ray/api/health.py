"""Whether it lives, whether it can work, what it is doing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import metadata

from fastapi import APIRouter, Response

from heimdallr_ray import __version__
from heimdallr_ray.api import models
from heimdallr_ray.api.access import ANYONE, READER, SERVICES
from heimdallr_ray.api.failures import documented
from heimdallr_ray.api.services import IDLE, READY, WELL, ApiServices
from heimdallr_ray.api.views import disk_view
from heimdallr_ray.catalog import worklist as catalog
from heimdallr_ray.config import Settings
from heimdallr_ray.errors import Draining, HeimdallrError, NotReady, StorageFull, WeightsMissing
from heimdallr_ray.listener.overview import watermarks
from heimdallr_ray.listener.room import RoomLevel, measure
from heimdallr_ray.pipelines.demand import demand_of
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.notes import HOMES, read_notes, read_refusal
from heimdallr_ray.segmentation.registry import missing_needed, missing_words
from heimdallr_ray.segmentation.weights import read_manifest

PACKAGES = ("ray", "pydicom", "pynetdicom", "TotalSegmentator", "nnunetv2", "torch", "numpy", "fastapi")

_SEGMENTER = "Segmenter"


def version_of(package: str) -> str:
    """The installed version, or `absent`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _database(services: ApiServices) -> str:
    services.database.check()
    return "answers"


def _spool(settings: Settings) -> str:
    folder = settings.spool_dir
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OSError("the spool folder is missing or not writable")
    return "writable"


def _disk(settings: Settings) -> str:
    room, marks = measure(settings.data_dir), watermarks(settings)
    free = f"{room.free_bytes >> 20} MiB free"
    if room.level(marks) is RoomLevel.REFUSE:
        raise StorageFull(
            f"{room.used_percent:.0f} % used, {free}: images are refused from {marks.refuse_percent:g} % on, or below "
            f"{marks.min_free_bytes >> 20} MiB"
        )
    return free


def _pages(services: ApiServices) -> str:
    if services.static_dir is None:
        return "not built"
    return "built"


def _intake(services: ApiServices) -> str:
    if services.draining():
        raise Draining
    return "open"


def models_check(settings: Settings, components: Mapping[str, str]) -> str:
    """What the Segmenter says of its models, or that they are there and it may start.

    Raises:
        WeightsMissing: a model that the site needs is not installed; says which command brings it.
        NotReady: the last start of a Segmenter on this host was refused; says why, and what to change.
    """
    word = components.get(_SEGMENTER)
    if word == READY:
        said = dict.fromkeys(words for one in read_notes(settings.run_dir / HOMES) for words in one.notes)
        return "; ".join(("loaded", *said))
    try:
        weights = read_manifest(settings.resolved_weights_dir or weights_dir())
    except WeightsMissing:
        # Its words name a folder, which nobody who asks from outside has to know.
        weights = None
    if weights is None and word == IDLE:
        # A Segmenter that may sleep runs on a node of its own, and the registry with it.
        return "not on this node"
    absent = missing_needed(weights, demand_of(settings.measurements))
    if absent:
        raise WeightsMissing(missing_words(absent))
    refused = read_refusal(settings.run_dir)
    if refused:
        raise NotReady(refused.partition(":")[0] if str(settings.data_dir) in refused else refused)
    return "installed"


def _checked(name: str, check: Callable[[], str]) -> models.Check:
    try:
        return models.Check(name=name, ok=True, detail=check())
    except HeimdallrError as error:
        return models.Check(name=name, ok=False, detail=f"{error.code}: {error.detail}")
    except OSError as error:
        return models.Check(name=name, ok=False, detail=error.strerror or str(error))


def readiness(services: ApiServices) -> models.Readiness:
    """Every check is made, also after one has failed."""
    settings = services.settings
    components: Mapping[str, str] = services.components() if services.components else {}
    checks = [
        _checked("database", lambda: _database(services)),
        _checked("spool", lambda: _spool(settings)),
        _checked("disk", lambda: _disk(settings)),
        _checked("web pages", lambda: _pages(services)),
        _checked("intake", lambda: _intake(services)),
        _checked("models", lambda: models_check(settings, components)),
    ]
    well = all(check.ok for check in checks) and WELL.issuperset(components.values())
    return models.Readiness(ready=well, checks=checks, components=dict(components))


def _disk_view(settings: Settings) -> models.DiskView | None:
    try:
        return disk_view(measure(settings.data_dir), watermarks(settings))
    except HeimdallrError:
        return None


def status_view(services: ApiServices) -> models.StatusView:
    """The installation at a glance."""
    now = services.clock.now()
    with services.database.read() as session:
        studies = catalog.counts_by_state(session)
        queue = catalog.queue_depth(session)
    return models.StatusView(
        studies=studies,
        jobs={"queued": queue.queued, "running": queue.running, "dead": queue.dead},
        queue_depth=queue.queued + queue.running,
        oldest_wait_s=max(0.0, (now - queue.oldest_run_at).total_seconds()) if queue.oldest_run_at else None,
        version=__version__,
        build=services.build,
        versions={package: version_of(package) for package in PACKAGES},
        profile=services.settings.profile,
        synthetic=services.settings.profile == "demo",
        idle_seconds=services.settings.idle_seconds,
        settle_after_release_seconds=services.settings.completion.site.after_release_s,
        disk=_disk_view(services.settings),
        server_now=now,
    )


def build_router() -> APIRouter:
    """Routes of health, readiness and status."""
    router = APIRouter(prefix="/api/v1", tags=["operations"])

    @router.get("/health", dependencies=[ANYONE], summary="The process answers")
    async def health() -> models.Health:
        """Asks nothing of anybody: it fails only where the process does."""
        return models.Health(status="alive")

    @router.get(
        "/ready",
        dependencies=[ANYONE],
        responses={503: {"model": models.Readiness}},
        summary="Studies can be taken in and shown",
    )
    def ready(response: Response, services: ApiServices = SERVICES) -> models.Readiness:
        """200 where every check holds, else 503 with the same body."""
        found = readiness(services)
        response.status_code = 200 if found.ready else 503
        return found

    @router.get(
        "/status", dependencies=[READER], responses=documented(401, 403, 503), summary="The installation at a glance"
    )
    def status(services: ApiServices = SERVICES) -> models.StatusView:
        """Studies by state, queue, versions."""
        return status_view(services)

    return router
